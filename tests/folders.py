"""Data folders for the tests."""

import string

import numpy as np

from tfcharrnn.config import DataConfig
from tfcharrnn.preparation.corpora import Corpus
from tfcharrnn.preparation.data_folder import prepare_data

TEXT = "".join(string.printable[(7 * index + index // 13) % 100] for index in range(1000))


def prepare(folder, text, **settings):
    settings = {"val_fraction": 0.0, **settings}
    return prepare_data(DataConfig(**settings), folder, corpus=Corpus("text", text, ()))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# settings of each layout, for a text of `numbered_lines`
LAYOUT_SETTINGS = {
    "sequences": {"layout": "sequences", "seq_length": 12},
    "lines": {"layout": "lines", "max_length": 40},
    "stream": {"layout": "stream", "seq_length": 30},
    "windows": {"layout": "windows", "seq_length": 9, "stride": 7},
}


def numbered_lines(count):
    """A text of lines of different lengths, each beginning with its number."""
    lengths = np.random.default_rng(0).integers(0, 25, count)
    return "\n".join(f"{n}:" + "abcdefghij klmnopqrstuvwxyz"[:length] for n, length in enumerate(lengths))
