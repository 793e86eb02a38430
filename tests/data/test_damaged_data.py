"""Data folders that were damaged, or come from elsewhere."""

import json
import sys

import pytest

from tfcharrnn.data.dataset import open_data
from tfcharrnn.errors import ConfigError, UserError


def change(folder, **values):
    where = folder / "dataset.json"
    where.write_text(json.dumps({**json.loads(where.read_text()), **values}))


def change_split(folder, **values):
    splits = json.loads((folder / "dataset.json").read_text())["splits"]
    change(folder, splits={**splits, "train": {**splits["train"], **values}})


def error_of(folder, split="train"):
    with pytest.raises(UserError) as caught:
        open_data(folder).read(split)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(folder))
    assert not isinstance(caught.value, ConfigError), "a damaged file is no wrong flag"
    return message


@pytest.mark.parametrize("path", ["none", "n" * 300])
def test_missing_folder_says_how_to_make_one(tmp_path, path):
    message = error_of(tmp_path / path)
    assert "not a data folder" in message
    assert "python -m tfcharrnn.prepare" in message


@pytest.mark.parametrize("name", ["dataset.json", "vocab.json"])
@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.9])
def test_truncated_description_is_one_error(folder, name, keep):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    assert "damaged" in error_of(folder)


@pytest.mark.parametrize("name", ["vocab.json", "train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord"])
def test_missing_file_is_one_error_that_names_it(folder, name):
    (folder / name).unlink()
    assert error_of(folder).startswith(str(folder / name))


JUNK = [None, False, -1, 1.5, 10**18, 10**400, "x", [], {}, [None], [[]], ["x"], {"train": 1}]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:20])
@pytest.mark.parametrize("name", ["format", "layout", "seq_length", "splits"])
def test_wrong_value_in_the_description_is_one_error(folder, name, junk):
    change(folder, **{name: junk})
    assert "dataset.json: " in error_of(folder)


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:20])
@pytest.mark.parametrize("name", ["characters", "records", "shards"])
def test_wrong_value_in_a_split_is_one_error(folder, name, junk):
    change_split(folder, **{name: junk})
    assert "dataset.json: damaged" in error_of(folder)


@pytest.mark.parametrize("junk", [None, True, 1, "x", [1], ["x"], [[]], [{}]])
def test_wrong_inputs_are_one_error(folder, junk):
    change(folder, inputs=junk)
    assert "dataset.json: damaged" in error_of(folder)


@pytest.mark.parametrize("name", ["format", "layout", "seq_length", "splits", "inputs"])
def test_missing_value_is_one_error(folder, name):
    where = folder / "dataset.json"
    description = json.loads(where.read_text())
    del description[name]
    where.write_text(json.dumps(description))
    assert "dataset.json: " in error_of(folder)


def test_description_nested_too_deep_is_one_error(folder):
    where = folder / "dataset.json"
    description = where.read_text()
    refused = 0
    # where Python gives up differs by version; at 100,000 every one does
    for depth in (*range(sys.getrecursionlimit() - 200, sys.getrecursionlimit()), 100_000):
        where.write_text(description.replace("{", '{"deep": ' + "[" * depth + "]" * depth + ",", 1))
        try:
            open_data(folder)
        except UserError as error:
            assert "damaged" in str(error)
            refused += 1
    assert refused


@pytest.mark.parametrize("newer", [2, 10**18])
def test_newer_format_is_said_to_be_that(folder, newer):
    change(folder, format=newer)
    assert "written by a newer version" in error_of(folder)


@pytest.mark.parametrize("count", [17, 19, 10**9, 10**11, 10**18])
def test_wrong_count_takes_no_memory(folder, count):
    assert open_data(folder).splits["train"].records == 18
    change_split(folder, records=count, characters=max(count, 900))
    assert "dataset.json" in error_of(folder)


@pytest.mark.parametrize("seq_length", [49, 51, 2, 1_000_000])
def test_wrong_seq_length_is_one_error(folder, seq_length):
    change(folder, seq_length=seq_length)
    assert "prepare the data again" in error_of(folder)


def test_other_layout_is_one_error(folder):
    change(folder, layout="no-such-layout")
    assert "--layout must be one of" in error_of(folder)


@pytest.mark.parametrize(
    "shards",
    [
        ["../train-00000-of-00001.tfrecord"],
        ["/etc/passwd"],
        ["train-00000-of-00002.tfrecord", "../data/train-00001-of-00002.tfrecord"],
        ["train-00000-of-00002.tfrecord", "train-00000-of-00002.tfrecord"],
        ["train-00001-of-00002.tfrecord", "train-00000-of-00002.tfrecord"],
        ["val-00000-of-00002.tfrecord", "val-00001-of-00002.tfrecord"],
        ["train-00000-of-00001.tfrecord\0"],
        ["train-\ud800.tfrecord"],
        ["train-00000-of-00002.tfrecord", None],
        [["train-00000-of-00001.tfrecord"]],
        [""],
        ["."],
        [],
    ],
)
def test_shards_of_other_names_are_refused(folder, shards):
    change_split(folder, shards=shards)
    assert "'shards' does not name the files of 18 records" in error_of(folder)


def test_data_without_training_records_is_one_error(folder):
    change_split(folder, records=0, shards=[])
    assert "no training records" in error_of(folder)


def test_shard_of_other_data_is_one_error(folder):
    (folder / "val-00000-of-00002.tfrecord").write_bytes((folder / "train-00000-of-00002.tfrecord").read_bytes())
    assert "has more records than dataset.json says" in error_of(folder, "val")


def test_ids_outside_the_vocabulary_are_one_error(folder):
    where = folder / "vocab.json"
    symbols = json.loads(where.read_text())["symbols"]
    where.write_text(json.dumps({"format": 1, "symbols": symbols[:-1]}))
    assert "a record has ids outside the vocabulary" in error_of(folder)


def test_flipped_bit_in_a_shard_is_one_error(folder):
    shard = folder / "train-00001-of-00002.tfrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    assert error_of(folder).startswith(f"{shard}: damaged")
    assert open_data(folder).read("val").pad().shape == (2, 50), "the other split is whole"
