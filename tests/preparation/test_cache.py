"""The cache of texts that are prepared on the fly."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from folders import contents, names
from large_texts import LARGE, in_blocks, write_texts

from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.preparation import data_folder, staging
from tfcharrnn.preparation.cache import find_data, prepare_cached


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


@pytest.mark.parametrize("small", [0, 2**20])
def test_a_cached_text_has_the_name_of_its_file_now(tmp_path, monkeypatch, small):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    configs = {}
    for name in ("my.txt", "renamed_copy.txt", "texts/a.txt"):
        (tmp_path / name).write_bytes(b"Some text. " * 200)
        path = tmp_path / "texts" if "/" in name else tmp_path / name
        configs[Path(name).name] = DataConfig(input=(str(path),), **LARGE)
    with in_blocks(block=500, small=small):
        prepared = {name: prepare_cached(config) for name, config in configs.items()}
    assert len({data.path for data in prepared.values()}) == 1
    assert {name: data.name for name, data in prepared.items()} == {name: name for name in configs}
    for name, config in configs.items():
        found = find_data(config, "", prepared["my.txt"].fingerprint)
        assert found.name == name and found.path == prepared["my.txt"].path
    for path in (tmp_path / "my.txt", tmp_path / "texts/a.txt"):
        path.unlink()
    assert find_data(configs["my.txt"], "", found.fingerprint).name == "my.txt"
    assert find_data(configs["a.txt"], "", found.fingerprint).name == "texts"
    assert find_data(DataConfig(), "", prepare_cached(DataConfig()).fingerprint).name == "python"


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


def test_a_large_text_is_cached_like_a_small_one(tmp_path, monkeypatch):
    config = DataConfig(input=write_texts(tmp_path, b"Some text. " * 200), **LARGE)
    small = prepare_cached(config, tmp_path / "small")
    with in_blocks(block=500):
        large = prepare_cached(config, tmp_path / "large")
        assert (large.path.name, contents(large.path)) == (small.path.name, contents(small.path))
        monkeypatch.setattr(data_folder, "write_from_files", lambda *rest: pytest.fail("it was made again"))
        assert prepare_cached(config, tmp_path / "large").path == large.path
    (note,) = (tmp_path / "large").glob(".*")
    assert re.fullmatch(r"\.[0-9a-f]{16}\.json", note.name)
    assert names(tmp_path / "large") == [note.name, large.path.name]


@pytest.mark.parametrize("damage", ["nothing", "text", "folder", "{", "[]", '{"folder": "../x"}', '{"folder": 1}'])
def test_a_cached_text_is_not_read_again(tmp_path, monkeypatch, damage):
    config = DataConfig(input=write_texts(tmp_path, b"Some text. " * 200), **LARGE)
    with in_blocks(block=500):
        before = prepare_cached(config, tmp_path / "cache")
        expected = contents(before.path)
        (note,) = (tmp_path / "cache").glob(".*.json")
        if damage == "nothing":
            monkeypatch.setattr(staging, "open_staging", lambda *rest, **how: pytest.fail("it was read again"))
        elif damage == "text":
            write_texts(tmp_path, b"Another one" * 200)
            assert prepare_cached(config, tmp_path / "cache").fingerprint != before.fingerprint
            return
        elif damage == "folder":
            (before.path / "vocab.json").unlink()
        else:
            note.write_text(damage)
        assert contents(prepare_cached(config, tmp_path / "cache").path) == expected


def test_a_pipe_is_not_remembered(tmp_path):
    for text in (b"Some text. ", b"And more. "):
        read, write = os.pipe()
        os.write(write, text * 20)
        os.close(write)
        data = prepare_cached(DataConfig(input=(f"/dev/fd/{read}",), seq_length=9), tmp_path / "cache")
        os.close(read)
        assert data.characters == 20 * len(text)


@pytest.mark.parametrize("days", [6, 8])
@pytest.mark.parametrize("at_work", [False, True])
def test_what_was_begun_long_ago_is_removed_from_the_cache(tmp_path, days, at_work):
    config = DataConfig(input=write_texts(tmp_path, b"Some text. " * 200), **LARGE)
    old = tmp_path / "cache" / f".{'0' * 16}.partial"
    (old / "key").mkdir(parents=True)
    then = time.time() - days * 24 * 3600
    for folder in (old / "key", old):
        os.utime(folder, (then, then))
    with in_blocks(block=500):
        lock = files.lock_file(staging.lock_path(old), "prepare data") if at_work else None
        prepare_cached(config, tmp_path / "cache")
        if lock:
            files.unlock_file(staging.lock_path(old), lock)
    assert old.exists() == (at_work or days < 7)


_CACHE = """
import pathlib, sys
from tfcharrnn.preparation import cache, staging, text_blocks
from tfcharrnn.config import DataConfig
text_blocks.BLOCK_BYTES, staging.SMALL_BYTES = 500, int(sys.argv[3])
print(cache.prepare_cached(DataConfig(input=(sys.argv[1],), seq_length=11), pathlib.Path(sys.argv[2])).path)
"""


@pytest.mark.parametrize("small", [0, 2**20])
def test_several_processes_that_fill_one_cache_end_well(tmp_path, small):
    (path,) = write_texts(tmp_path, b"Some text. " * 5000)
    command = [sys.executable, "-c", _CACHE, path, str(tmp_path / "cache"), str(small)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    said = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(said) == 1
    assert len([name for name in names(tmp_path / "cache") if not name.startswith(".")]) == 1
    assert not list((tmp_path / "cache").glob(".*.lock")) + list((tmp_path / "cache").glob(".*.partial"))
