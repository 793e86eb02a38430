"""Data folders of the layouts lines, windows and stream, read with nothing but TensorFlow and the contract."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from folders import prepare

from tfcharrnn.data import chunking
from tfcharrnn.data.dataset import open_data
from tfcharrnn.errors import UserError

SPLITS = ("train", "val", "test")


def records_of(folder, split):
    """Every record of a split as symbols."""
    symbols = json.loads((folder / "vocab.json").read_text())["symbols"]
    shards = sorted(str(path) for path in folder.iterdir() if re.fullmatch(rf"{split}-.*\.tfrecord", path.name))
    parse = {"seq": tf.io.VarLenFeature(tf.int64)}
    parsed = (tf.io.parse_single_example(record, parse)["seq"] for record in tf.data.TFRecordDataset(shards))
    return [[symbols[id] for id in ids.values.numpy()] for ids in parsed]


def description(folder):
    return json.loads((folder / "dataset.json").read_text())


LINES = [f"{'ab' * (index % 7)}{index}" for index in range(60)]


@pytest.mark.parametrize(
    ("delimiter", "between"),
    [
        (r"\n", "\n"),
        (r"\n\n+", "\n\n\n"),
        (r"[.!?]\s*", "! \n"),
        (r"(;)(,)?|(-)", ";,"),
        (r"\W*(?=\Z|\W)|\W+", "\t "),
    ],
)
def test_lines_are_records_between_a_beginning_and_an_end(tmp_path, delimiter, between):
    text = between.join(["", LINES[0], "", "Z" * 20, *LINES[1:], ""])
    settings = {"layout": "lines", "delimiter": delimiter, "max_length": 14, "num_shards": 2}
    data = prepare(tmp_path / "data", text, **settings, val_fraction=0.2, test_fraction=0.1)
    records = {split: records_of(data.path, split) for split in SPLITS}
    lines = {split: ["".join(record[1:-1]) for record in records[split]] for split in SPLITS}
    kept = [line for line in LINES if len(line) + 2 <= 14]
    assert len(kept) < len(LINES), "some are too long"
    assert all(record[0] == "<S>" and record[-1] == "</S>" for split in SPLITS for record in records[split])
    assert sorted(lines["train"] + lines["val"] + lines["test"]) == sorted(kept)
    assert [len(lines["val"]), len(lines["test"])] == [len(kept) // 5, len(kept) // 10]
    symbols = ["<PAD>", "<S>", "</S>", *sorted(set("".join(kept)))]
    assert json.loads((data.path / "vocab.json").read_text()) == {"format": 1, "symbols": symbols}
    assert "Z" not in symbols, "it stands in no line that was kept"

    said = description(data.path)
    assert (said["layout"], said["delimiter"], said["max_length"]) == ("lines", delimiter, 14)
    assert said["dropped"]["too_long"] == len(LINES) - len(kept) + 1
    assert said["dropped"]["empty"] == re.sub(delimiter, lambda match: "\0", text).split("\0").count("") >= 2
    assert open_data(data.path).dropped == said["dropped"]
    for split in SPLITS:
        assert said["splits"][split]["records"] == len(lines[split])
        assert said["splits"][split]["characters"] == len("".join(lines[split]))
        read = data.read(split)
        assert np.all(read.pad()[np.arange(read.width) >= read.lengths[:, np.newaxis]] == 0)
        ids = [row[:length] for row, length in zip(read.pad(), read.lengths, strict=True)]
        assert [[data.vocabulary.symbols[id] for id in row] for row in ids] == records[split]


def test_the_longest_line_that_may_be_is_kept(tmp_path):
    data = prepare(tmp_path / "data", "abc\nabcd\nabcde", layout="lines", max_length=6)
    assert records_of(data.path, "train") == [["<S>", *"abc", "</S>"], ["<S>", *"abcd", "</S>"]]
    assert data.dropped == {"empty": 0, "too_long": 1}
    assert "1 too long" in data.describe()


def test_a_text_without_a_line_to_keep_is_one_error(tmp_path):
    with pytest.raises(
        UserError, match=r"has no line of 1 to 3 characters to train on; .* --delimiter or --max_length$"
    ):
        prepare(tmp_path / "data", "abcd\nabcde\n", layout="lines", max_length=5)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("layout", ["stream", "windows"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_pieces_on_disk_put_together_are_the_text(tmp_path, monkeypatch, layout, num_shards):
    monkeypatch.setattr(chunking, "_BATCH", 8192)
    text = "".join(np.random.default_rng(0).choice(list("abcdef \n"), 25_000))
    settings = {"layout": layout, "seq_length": 40, "num_shards": num_shards}
    data = prepare(tmp_path / "data", text, **settings, val_fraction=0.2, test_fraction=0.1)
    for split, start, end in [("train", 0, 17_500), ("val", 17_500, 22_500), ("test", 22_500, 25_000)]:
        pieces = records_of(data.path, split)
        assert "".join(map("".join, pieces)) == text[start:end]
        assert len(pieces) == data.splits[split].records > (split != "test")
        assert data.vocabulary.decode(data.read(split).ids) == text[start:end]
    assert data.vocabulary.symbols == tuple(sorted(set(text))), "there are no special symbols"


def test_the_description_says_how_a_text_is_cut(tmp_path):
    windows = prepare(tmp_path / "windows", "abc" * 100, layout="windows", seq_length=40, stride=3)
    said = description(windows.path)
    assert (said["layout"], said["seq_length"], said["stride"]) == ("windows", 40, 3)
    assert "87 train" in windows.describe()
    stream = prepare(tmp_path / "stream", "abc" * 100, layout="stream", seq_length=40)
    assert "stride" not in description(stream.path)
    assert "300 characters train" in stream.describe()
    other = prepare(tmp_path / "other", "abc" * 100, layout="windows", seq_length=40, stride=4)
    assert len({windows.fingerprint, stream.fingerprint, other.fingerprint}) == 3
    for data in (windows, stream, other):
        assert open_data(data.path).config == data.config


@pytest.mark.parametrize("layout", ["stream", "windows"])
def test_the_shortest_text_with_an_example(tmp_path, layout):
    assert prepare(tmp_path / "data", "abcdef", layout=layout, seq_length=5).splits["train"].records == 1
    with pytest.raises(UserError, match=r"of 5 characters is shorter than one example; .* --seq_length of at most 4$"):
        prepare(tmp_path / "short", "abcde", layout=layout, seq_length=5)
    assert prepare(tmp_path / "advised", "abcde", layout=layout, seq_length=4).splits["train"].records == 1
