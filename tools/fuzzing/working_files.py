"""Readers of the files that a command goes on with: staging folders and logs; and what is not a file in its place."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from fuzzing.damage import Files, Special, damage_bytes, damage_content, damage_json
from fuzzing.own_formats import OWN_READERS, Reader
from tfcharrnn.config import DataConfig
from tfcharrnn.data import dataset, tfrecord_writer
from tfcharrnn.preparation import data_folder, staging, text_blocks
from tfcharrnn.runs import logs
from tfcharrnn.runs import run_folder as run_lib

WORKING_READERS: dict[str, Reader] = {}


# an interrupted preparation


class _Stopped(BaseException):
    """Takes the place of a kill."""


@contextlib.contextmanager
def _in_small_blocks() -> Iterator[None]:
    with mock.patch.object(text_blocks, "BLOCK_BYTES", 500), mock.patch.object(staging, "SMALL_BYTES", 0):
        yield


def _stage_config(folder: Path) -> DataConfig:
    return DataConfig(input=(str(folder / "text.gz"),), layout="lines", delimiter="[.]", num_shards=3, val_fraction=0.3)


def _make_staging(folder: Path) -> None:
    text = "".join(f"line {index} \u00e9. " for index in range(150))
    (folder / "text.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    write = tfrecord_writer.write_records
    written: list[Any] = []

    def stop(*args: Any) -> None:
        if len(written) == 4:
            raise _Stopped
        written.append(args)
        write(*args)

    interrupted = mock.patch.object(tfrecord_writer, "write_records", stop)
    with _in_small_blocks(), interrupted, contextlib.suppress(_Stopped):
        data_folder.prepare_data(_stage_config(folder), folder / "data", jobs=1)


def _damage_staging(rng: random.Random, originals: Files) -> Files:
    names = sorted(name for name in originals if name.startswith(".data.partial/"))
    damaged: Files = {}
    for name in rng.sample(names, rng.choice((1, 1, 1, 2, 5))):
        kind = rng.random()
        if kind < 0.2:
            damaged[name] = Special(rng.choice(Special.KINDS))
        elif kind < 0.3:
            damaged[name] = originals[rng.choice(names)]
        elif name.endswith(".json"):
            damaged[name] = damage_content(rng, originals[name], 0.6, damage_json)
        else:
            damaged[name] = damage_bytes(rng, originals[name])
    return damaged


def _resume_staging(folder: Path) -> Any:
    work = folder / "work"
    work.mkdir()
    try:
        shutil.copytree(folder / ".data.partial", work / ".data.partial", symlinks=True, copy_function=_copy)
        with _in_small_blocks():
            data = data_folder.prepare_data(_stage_config(folder), work / "data", jobs=1)
        assert os.listdir(work) == ["data"], "it leaves something"
        assert not any(path.is_symlink() or not path.is_file() for path in data.path.iterdir())
        return {path.name: path.read_bytes() for path in data.path.iterdir()}
    finally:
        shutil.rmtree(work)


def _copy(source: str, target: str) -> None:
    Special.copy(Path(source), Path(target))


def _check_staging(contents: Any, damaged: Files, whole: Any) -> None:
    """Correct: the data folder of an undisturbed preparation; there is no error, since damaged work is done again."""
    assert contents == whole


WORKING_READERS["staging"] = Reader(_make_staging, _damage_staging, _resume_staging, _check_staging)


# logs


def _make_logs(folder: Path) -> None:
    writer = logs.LogWriter(folder)
    for step in range(1, 9):
        writer.write_rows([{"step": step, "epoch": step / 3, "loss": 2.5 / step, "val_loss": None}])
        writer.write_sample(f"step {step}, smoothed loss 2.5", "some text\n--- no title\n")


def _damage_logs(rng: random.Random, originals: Files) -> Files:
    name = rng.choice(("metrics.jsonl", "metrics.jsonl", "samples.txt"))
    if rng.random() < 0.1:
        return {name: Special(rng.choice(Special.KINDS))}
    if name == "samples.txt" or rng.random() < 0.5:
        return {name: damage_bytes(rng, originals[name])}
    lines = originals[name].splitlines()
    at = rng.randrange(len(lines))
    lines[at] = damage_json(rng, lines[at])
    return {name: b"\n".join(lines) + b"\n"}


def _read_logs(folder: Path) -> Any:
    samples = logs.read_samples(folder)
    return logs.read_metrics(folder), logs.read_intact_metrics(folder), samples


def _check_logs(value: Any, damaged: Files, whole: Any) -> None:
    """Correct: rows of numbers, the same from both readers but for a last line that is cut; samples of texts."""
    rows, intact, samples = value
    assert repr(rows) == repr(intact.rows[: len(rows)])  # NaN is not equal to itself
    assert len(intact.rows) - len(rows) + len(intact.errors) <= 1 and all("step" in row for row in rows)
    assert all(isinstance(number, (int, float)) for row in rows for number in row.values())
    assert all(set(sample) == {"title", "text"} for sample in samples)
    assert "metrics.jsonl" in damaged or rows == whole[0]


WORKING_READERS["logs"] = Reader(_make_logs, _damage_logs, _read_logs, _check_logs)


# what is not a file


def _make_folders(folder: Path) -> None:
    OWN_READERS["config.json"].make(folder)
    OWN_READERS["checkpoint"].make(folder)
    _make_logs(folder)
    (folder / "data").mkdir()
    OWN_READERS["records"].make(folder / "data")


def _damage_kind(rng: random.Random, originals: Files) -> Files:
    return {rng.choice(sorted(originals)): Special(rng.choice(Special.KINDS))}


def _read_folders(folder: Path) -> Any:
    from tfcharrnn.runs import checkpoints  # imports TensorFlow, which must not be loaded in a process that forks

    run = run_lib.load(folder)
    found = checkpoints.find(folder)
    found.close()
    data = dataset.open_data(folder / "data")
    return run, found.step, _read_logs(folder), [len(data.read(name)) for name in ("train", "val")]


def _check_folders(value: Any, damaged: Files, whole: Any) -> None:
    """Correct: all of it; only samples may be missing."""
    assert value[:2] == whole[:2] and value[2][:2] == whole[2][:2] and value[3] == whole[3]
    assert all(name == "samples.txt" for name, data in damaged.items() if isinstance(data, Special))


WORKING_READERS["special"] = Reader(_make_folders, _damage_kind, _read_folders, _check_folders)
