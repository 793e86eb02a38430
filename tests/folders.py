"""Data folders for the tests."""

import string

from tfcharrnn.config import DataConfig
from tfcharrnn.data.dataset import prepare_data
from tfcharrnn.preparation.corpora import Corpus

TEXT = "".join(string.printable[(7 * index + index // 13) % 100] for index in range(1000))


def prepare(folder, text, **settings):
    settings = {"val_fraction": 0.0, **settings}
    return prepare_data(DataConfig(**settings), folder, corpus=Corpus("text", text, ()))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())
