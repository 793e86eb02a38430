"""Data folders are written completely, or not at all."""

import json
import os
import re
import subprocess
import sys

import pytest
import tensorflow as tf
from folders import TEXT, contents, names, prepare
from hypothesis import given
from hypothesis import strategies as st

import tfcharrnn
from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking, dataset
from tfcharrnn.data.dataset import open_data
from tfcharrnn.errors import UserError
from tfcharrnn.preparation import corpora
from tfcharrnn.preparation.corpora import Corpus
from tfcharrnn.preparation.data_folder import prepare_data


def read_by_the_contract(folder, split):
    """The sequences of a split as text, read with nothing but TensorFlow and what the contract says."""
    symbols = json.loads((folder / "vocab.json").read_text())["symbols"]
    shards = sorted(
        str(path) for path in folder.iterdir() if re.fullmatch(rf"{split}-\d{{5}}-of-\d{{5}}.tfrecord", path.name)
    )
    sequences = []
    for records in tf.data.TFRecordDataset(shards).batch(1000):
        for ids in tf.io.parse_example(records, {"seq": tf.io.RaggedFeature(tf.int64)})["seq"].to_list():
            assert symbols[ids[0]] == "<S>"
            sequences.append("".join(symbols[id] for id in ids[1:]))
    return sequences


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=100), st.integers(2, 5), st.integers(1, 3)
)
def test_records_reproduce_the_text(tmp_path_factory, text, seq_length, num_shards):
    folder = tmp_path_factory.mktemp("data") / "data"
    prepare(folder, text, seq_length=seq_length, num_shards=num_shards)
    whole = len(text) // (seq_length - 1) * (seq_length - 1)
    assert "".join(read_by_the_contract(folder, "train")) == text[:whole]


@pytest.mark.parametrize("size", [199, 200, 397, 398, 40_000])
def test_characters_make_a_record_for_each_199(tmp_path, size):
    data = prepare(tmp_path / "data", ("abc" * size)[:size])
    assert data.splits["train"].records == size // 199
    assert data.read("train").pad().shape == (size // 199, 200)


def test_overlapping_sequences_are_cut_by_the_contract(tmp_path):
    prepare(tmp_path / "data", TEXT, seq_length=11, overlap=0.25)  # ceil(2.5) of 10 characters are repeated
    assert read_by_the_contract(tmp_path / "data", "train") == [TEXT[at : at + 10] for at in range(0, 1000 - 9, 7)]


@pytest.mark.parametrize(("overlap", "step"), [(0.0, 10), (0.25, 7), (0.9, 1)])
def test_blocks_do_not_show(tmp_path, monkeypatch, overlap, step):
    monkeypatch.setattr(chunking, "_BATCH", 64)
    prepare(tmp_path / "data", TEXT, seq_length=11, overlap=overlap)
    assert read_by_the_contract(tmp_path / "data", "train") == [TEXT[at : at + 10] for at in range(0, 1000 - 9, step)]


def test_splits_are_cut_by_position(tmp_path):
    data = prepare(tmp_path / "data", TEXT, seq_length=11, val_fraction=0.2, test_fraction=0.1)
    for split, start, end in [("train", 0, 700), ("val", 700, 900), ("test", 900, 1000)]:
        assert "".join(read_by_the_contract(data.path, split)) == TEXT[start:end]
        assert data.splits[split].characters == end - start
        assert data.splits[split].records == (end - start) // 10
    assert data.characters == 1000
    assert set("".join(data.vocabulary.symbols[1:])) == set(TEXT), "the vocabulary is of all parts"


def test_split_shorter_than_a_sequence_has_no_shards(tmp_path):
    data = prepare(tmp_path / "data", TEXT, seq_length=60, val_fraction=0.05)
    assert data.splits["val"] == dataset.Split(50, 0, ())
    assert len(data.read("val")) == 0
    assert names(data.path) == ["dataset.json", "train-00000-of-00001.tfrecord", "vocab.json"]


def test_shards_are_named_in_order_and_even(tmp_path):
    data = prepare(tmp_path / "data", TEXT, seq_length=11, num_shards=3)
    assert data.splits["train"].shards == tuple(f"train-0000{index}-of-00003.tfrecord" for index in range(3))
    counts = [sum(1 for _ in tf.data.TFRecordDataset(str(data.path / name))) for name in data.splits["train"].shards]
    assert counts == [34, 33, 33]
    assert "".join(read_by_the_contract(data.path, "train")) == TEXT


def test_read_gives_what_the_contract_reads(good):
    data = open_data(good)
    for split in ("train", "val"):
        assert [data.vocabulary.decode(row) for row in data.read(split).pad()] == read_by_the_contract(good, split)


def test_vocabulary_is_special_symbols_and_then_code_points(good):
    vocabulary = json.loads((good / "vocab.json").read_text())
    assert vocabulary == {"format": 1, "symbols": ["<S>", *sorted(set(TEXT))]}


def test_description_says_how_the_folder_was_made_and_names_no_path(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("Some Text 1\n" * 50)
    config = DataConfig(
        input=(str(path),), seq_length=20, overlap=0.5, lowercase=True, drop_digits=True, drop_chars="x"
    )
    data = prepare_data(config, tmp_path / "data")
    description = json.loads((data.path / "dataset.json").read_text())
    assert str(tmp_path) not in (data.path / "dataset.json").read_text()
    assert description["layout"] == "sequences"
    assert (description["seq_length"], description["overlap"]) == (20, 0.5)
    assert description["normalisation"] == {
        "lowercase": True, "drop_digits": True, "drop_chars": "x", "encoding": "utf-8",
    }  # fmt: skip
    assert description["inputs"] == [{"name": "a.txt", "bytes": 600, "sha256": files.file_sha256(path)}]
    assert description["characters"] == 500 == data.characters
    assert description["splits"]["train"]["records"] == data.splits["train"].records
    assert data.name == "a.txt"


def test_shakespeare_is_reproduced(tmp_path, shakespeare):
    data = tfcharrnn.prepare_data(DataConfig(input=(str(shakespeare),)), tmp_path / "data")
    text = shakespeare.read_text()
    assert data.characters == len(text) == 1_115_394
    assert len(data.vocabulary) == 66
    train = len(text) - len(text) // 20
    ids = data.read("train").pad()
    assert ids.shape == (train // 199, 200)
    assert data.vocabulary.decode(ids) == text[: train // 199 * 199]
    assert data.vocabulary.decode(data.read("val").ids) == text[train : train + len(text) // 20 // 199 * 199]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_length": 1002}, "training split of 1000 characters is shorter than one example; .*at most 1001$"),
        ({"seq_length": 500, "val_fraction": 0.9}, "training split of 100 characters .*at most 101$"),
        ({"seq_length": 2, "overlap": 0.5}, "^--overlap=0.5: "),
    ],
)
def test_text_that_is_too_short_leaves_nothing_behind(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "data", TEXT, **settings)
    assert names(tmp_path) == []


def test_the_length_that_the_error_advises_works(tmp_path):
    assert prepare(tmp_path / "data", TEXT, seq_length=1001).splits["train"].records == 1


def test_input_that_is_missing_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match=r"no\.txt: cannot be read"):
        prepare_data(DataConfig(input=(str(tmp_path / "no.txt"),)), tmp_path / "data")
    assert names(tmp_path) == []


def test_folder_that_exists_is_refused_before_the_text_is_read(folder, monkeypatch):
    before = contents(folder)
    monkeypatch.setattr(corpora, "load", lambda config: pytest.fail("it was read"))
    with pytest.raises(UserError, match=f"^{folder}: exists already; .*--output_dir or pass --overwrite$"):
        prepare_data(DataConfig(), folder)
    assert contents(folder) == before


def test_overwrite_replaces_a_data_folder(folder, tmp_path):
    prepare_data(DataConfig(seq_length=10), folder, overwrite=True, corpus=Corpus("other", "abc" * 100, ()))
    assert open_data(folder).config.seq_length == 10
    assert names(folder) == [
        "dataset.json",
        "train-00000-of-00001.tfrecord",
        "val-00000-of-00001.tfrecord",
        "vocab.json",
    ]
    assert names(tmp_path) == ["data"]


def test_overwrite_removes_nothing_but_data_folders(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    (tmp_path / "notes.txt").write_text("more work")
    with pytest.raises(
        UserError, match=r"home: --overwrite would remove thesis\.tex, which is not part of a data folder"
    ):
        prepare_data(DataConfig(), tmp_path / "home", overwrite=True)
    with pytest.raises(UserError, match=r"notes\.txt: --overwrite replaces only a data folder"):
        prepare_data(DataConfig(), tmp_path / "notes.txt", overwrite=True)
    assert contents(tmp_path) == {"home/thesis.tex": b"years of work", "notes.txt": b"more work"}


@pytest.mark.parametrize("place", ["", ".", "..", "sub/.."])
def test_a_folder_that_cannot_be_replaced_is_one_error(tmp_path, monkeypatch, place):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub" if place != "sub/.." else tmp_path)
    with pytest.raises(
        UserError, match=r"the current folder or its parent cannot be replaced; choose another --output_dir$"
    ):
        prepare_data(DataConfig(), place, overwrite=True)
    assert names(tmp_path) == ["sub"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("failing", range(1, 6))
def test_a_write_that_fails_leaves_what_was_there(folder, tmp_path, monkeypatch, overwrite, failing):
    before = contents(tmp_path)
    synced = []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == failing:  # a shard of each split, the vocabulary, the description, and the folder
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = folder if overwrite else tmp_path / "new"
    with pytest.raises(UserError, match=r"cannot be written .*; free space or choose another folder"):
        prepare_data(DataConfig(seq_length=10), path, overwrite=overwrite, corpus=Corpus("text", TEXT, ()))
    assert contents(tmp_path) == before
    assert names(tmp_path) == ["data"]


def test_an_interrupt_leaves_what_was_there(folder, tmp_path, monkeypatch):
    before = contents(tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tfcharrnn.data.tfrecord_writer.write_records", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_data(DataConfig(seq_length=10), folder, overwrite=True, corpus=Corpus("text", TEXT, ()))
    assert contents(tmp_path) == before
    assert names(tmp_path) == ["data"]


def test_preparing_needs_no_tensorflow(tmp_path):
    code = (
        "import sys, tfcharrnn as t; t.prepare_data(t.DataConfig(), sys.argv[1]); sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], check=True)
