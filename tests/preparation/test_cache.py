"""Data that is prepared on the fly, and kept."""

import os

import numpy as np
import pytest
from folders import contents, names

from tfcharrnn.config import DataConfig
from tfcharrnn.preparation import data_folder
from tfcharrnn.preparation.cache import prepare_cached


def test_second_call_opens_what_the_first_one_made(tmp_path, monkeypatch):
    config = DataConfig(seq_length=100)
    first = prepare_cached(config, tmp_path)
    monkeypatch.setattr(data_folder, "prepare_data", lambda *arguments, **settings: pytest.fail("it was made again"))
    second = prepare_cached(config, tmp_path)
    assert (first.path, first.fingerprint) == (second.path, second.fingerprint)
    assert np.array_equal(first.read("val").pad(), second.read("val").pad())


def test_other_settings_and_other_texts_have_other_folders(tmp_path):
    path = tmp_path / "a.txt"
    seen = set()
    for text in ("abc" * 100, "abd" * 100):
        path.write_text(text)
        for seq_length in (10, 20):
            seen.add(prepare_cached(DataConfig(input=(str(path),), seq_length=seq_length), tmp_path / "cache").path)
    assert len(seen) == 4
    assert sorted(seen) == sorted((tmp_path / "cache").iterdir())


def test_cache_knows_a_text_by_its_content_not_its_place(tmp_path):
    paths = [tmp_path / place / "a.txt" for place in ("here", "there")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("abc" * 100)
    here, there = (prepare_cached(DataConfig(input=(str(path),), seq_length=10), tmp_path / "cache") for path in paths)
    assert here.path == there.path


def test_cache_is_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "a.txt"
    path.write_text("abc" * 100)
    assert prepare_cached(DataConfig(input=(str(path),), seq_length=10)).path.parent == tmp_path / "tfcharrnn" / "data"


def _empty_folder(folder):
    for path in folder.iterdir():
        path.unlink()


def _flip_a_bit(folder):
    shard = folder / "train-00000-of-00001.tfrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        _empty_folder,
        _flip_a_bit,
        lambda folder: (folder / "dataset.json").write_text("{"),
        lambda folder: (folder / "dataset.json").unlink(),
        lambda folder: (folder / "vocab.json").unlink(),
        lambda folder: os.truncate(folder / "val-00000-of-00001.tfrecord", 10),
    ],
)
def test_damaged_cache_is_made_again(tmp_path, damage):
    path = tmp_path / "a.txt"
    path.write_text("abc" * 100)
    config = DataConfig(input=(str(path),), seq_length=10, val_fraction=0.1)
    made = prepare_cached(config, tmp_path / "cache")
    before = contents(made.path)
    damage(made.path)
    assert contents(made.path) != before
    assert prepare_cached(config, tmp_path / "cache").path == made.path
    assert contents(made.path) == before
    assert names(tmp_path / "cache") == [made.path.name]
