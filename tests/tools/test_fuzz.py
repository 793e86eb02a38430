"""Readers withstand damaged files, a few of them here, and the fuzzer notices what a reader does wrong."""

import dataclasses
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import numpy as np
import pytest
from fuzzing.own_formats import masked_crc
from paths import TOOLS

from tfcharrnn.errors import UserError


def failing(monkeypatch, tmp_path, read, bound=0):
    """Returns the first failure that is found in a reader that reads like this."""
    good = fuzz.READERS["npy"]
    calls = []

    def broken(folder):
        calls.append(folder)
        return good.read(folder) if len(calls) == 1 else read(folder)

    monkeypatch.setitem(fuzz.READERS, "npy", dataclasses.replace(good, read=broken))
    tally = fuzz.run_watched("npy", 0, range(10), tmp_path, bound)
    assert tally.failure is not None
    assert tally.failure[0] == 0
    assert (tmp_path / "array.npy").read_bytes() != (tmp_path / "whole.npy").read_bytes()
    return tally.failure[1]


@pytest.fixture(autouse=True)
def whole_too(monkeypatch):
    make = fuzz.READERS["npy"].make

    def and_keep(folder):
        make(folder)
        (folder / "whole.npy").write_bytes((folder / "array.npy").read_bytes())

    monkeypatch.setitem(fuzz.READERS, "npy", dataclasses.replace(fuzz.READERS["npy"], make=and_keep))


@pytest.mark.parametrize("name", [name for name in fuzz.READERS if not name.startswith("keras")])
def test_every_reader_withstands_damaged_files(name):
    done = subprocess.run(
        [sys.executable, TOOLS / "fuzz.py", f"--reader={name}", "--count=150", "--seed=1"],
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    tried, errors, correct = map(int, done.stdout.decode().splitlines()[1].split()[1:4])
    assert tried == errors + correct == 150
    assert (correct == 150) if name == "staging" else (errors > 50)  # damaged work is done again


def test_the_same_case_is_the_same_damage():
    files = {"vocab.json": b'{"format": 1, "symbols": ["a", "b"]}'}
    damage = fuzz.READERS["vocab.json"].damage
    assert damage(random.Random("0/x/7"), files) == damage(random.Random("0/x/7"), files)


def test_an_error_of_another_kind_is_noticed(monkeypatch, tmp_path):
    assert failing(monkeypatch, tmp_path, lambda folder: {}["x"]) == "KeyError: 'x'"


def test_an_error_that_does_not_name_the_file_is_noticed(monkeypatch, tmp_path):
    def vague(folder):
        raise UserError("something is wrong")

    assert "does not name the file" in failing(monkeypatch, tmp_path, vague)


def test_wrong_data_is_noticed(monkeypatch, tmp_path):
    assert "AssertionError" in failing(monkeypatch, tmp_path, lambda folder: np.full(3, np.nan))


def test_memory_beyond_the_bound_is_noticed(monkeypatch, tmp_path):
    assert failing(monkeypatch, tmp_path, lambda folder: bytearray(2**30), bound=2**29).startswith("MemoryError")


def test_a_reader_that_never_ends_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz, "_SECONDS", 0.2)
    assert "took longer" in failing(monkeypatch, tmp_path, lambda folder: time.sleep(60))


def test_a_crash_is_noticed(monkeypatch, tmp_path):
    assert "ended with code -9" in failing(monkeypatch, tmp_path, lambda folder: os.kill(os.getpid(), 9))


def test_a_failure_is_reported_with_its_seed_case_and_files(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fuzz.tempfile, "gettempdir", lambda: str(tmp_path))
    good = fuzz.READERS["npy"]

    def check(value, damaged, whole):
        assert "array.npy" in damaged and len(damaged) > 1, "planted"

    monkeypatch.setitem(fuzz.READERS, "npy", dataclasses.replace(good, check=check))
    with pytest.raises(UserError, match=r"npy: case \d+ of seed 3: AssertionError: planted") as caught:
        fuzz.fuzz(["npy"], 1000, 3, 2)
    found = re.search(r"kept in (\S+); again: .*--reader=npy --seed=3 --first=(\d+)", str(caught.value))
    assert Path(found[1]).name == f"fuzz-npy-3-{found[2]}"
    assert (Path(found[1]) / "array.npy").exists()


def test_checksums_are_those_of_tensorflow(tmp_path):
    tf = pytest.importorskip("tensorflow")
    with tf.io.TFRecordWriter(str(tmp_path / "x")) as writer:
        writer.write(b"abc")
    data = (tmp_path / "x").read_bytes()
    assert data == data[:8] + masked_crc(data[:8]) + b"abc" + masked_crc(b"abc")
