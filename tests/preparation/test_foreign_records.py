"""Records of other programs: what TensorFlow alone writes becomes a data folder with the same records."""

import json
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

tf = pytest.importorskip("tensorflow")

from tfcharrnn import prepare_data  # noqa: E402
from tfcharrnn.config import DataConfig  # noqa: E402
from tfcharrnn.errors import UserError  # noqa: E402
from tfcharrnn.inference import trained_model  # noqa: E402
from tfcharrnn.preparation.foreign_records import read_foreign_records  # noqa: E402
from tfcharrnn.training import setup  # noqa: E402

TEXT = "it was the best of times,\nit was the worst of times;\n" * 40


def write(path, sequences, compression=""):
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for ids in sequences:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=ids))
            example = tf.train.Example(features=tf.train.Features(feature={"seq": feature}))
            writer.write(example.SerializeToString())
    return path


def make_vocabulary(text, special=("<S>",), seed=0):
    """Returns ids in no order at all."""
    symbols = [*special, *sorted(set(text))]
    random.Random(seed).shuffle(symbols)
    return {symbol: index for index, symbol in enumerate(symbols)}


def make_sequences(text, ids, width):
    steps = range(0, len(text) - width + 2, width - 1)
    return [[ids["<S>"], *(ids[c] for c in text[start : start + width - 1])] for start in steps]


@pytest.fixture
def course(tmp_path):
    """A folder as a script of a course writes it: one file of records, and a pickled vocabulary without a suffix."""
    ids = make_vocabulary(TEXT)
    sequences = make_sequences(TEXT, ids, 40)
    write(tmp_path / "skp.tfrecords", sequences)
    (tmp_path / "skp_vocab").write_bytes(pickle.dumps(ids))
    return tmp_path, ids, sequences


def decode(data, split="train"):
    records = data.read(split)
    symbols = data.vocabulary.symbols
    return [
        "".join(symbols[index] for index in records.ids[start : start + length])
        for start, length in zip(records.starts, records.lengths, strict=True)
    ]


def test_every_record_is_there_in_order_and_in_our_ids(course, tmp_path):
    folder, ids, sequences = course
    corpus, config = read_foreign_records([folder / "skp.tfrecords"], folder / "skp_vocab", {"val_fraction": 0.0})
    data = prepare_data(config, tmp_path / "data", corpus=corpus)
    symbols = {index: symbol for symbol, index in ids.items()}
    assert decode(data) == ["".join(symbols[index] for index in sequence) for sequence in sequences]
    assert data.config.layout == "sequences" and data.config.seq_length == 40
    assert data.name == "skp.tfrecords, skp_vocab"


def test_a_model_is_trained_on_them_and_writes(course, tmp_path):
    folder, _, _ = course
    flags = [f"--from_records={folder}/skp.tfrecords", f"--vocabulary={folder}/skp_vocab", "--val_fraction=0"]
    command = [sys.executable, "-m", "tfcharrnn.prepare", *flags, f"--output_dir={tmp_path / 'data'}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{tmp_path / 'data'}\n"
    setup.train_model(
        tmp_path / "run", data_dir=tmp_path / "data", hidden_size=8, batch_size=4, steps=3, sample_length=5, quiet=True
    )
    assert len(trained_model.load_model(tmp_path / "run").generate(length=20)) == 20


@pytest.mark.parametrize("form", ["json list", "json object", "pickle 0", "pickle 2", "lines"])
def test_the_vocabulary_may_have_any_form_and_name(course, form):
    folder, ids, _ = course
    symbols = sorted(ids, key=ids.__getitem__)
    path = folder / "symbols"
    if form == "json list":
        path.write_text(json.dumps(symbols))
    elif form == "json object":
        path.write_text(json.dumps(ids))
    elif form == "lines":
        path.write_text("".join(f"{symbol}\n" for symbol in symbols))
    else:
        path.write_bytes(pickle.dumps(ids, int(form[-1])))
    corpus, _ = read_foreign_records([folder / "skp.tfrecords"], path, {})
    assert TEXT.startswith(corpus.text) and len(TEXT) - len(corpus.text) < 39


@given(st.lists(st.text("ab\n ", min_size=1, max_size=7), min_size=1, max_size=6), st.booleans(), st.booleans())
def test_lines_of_any_length(tmp_path_factory, lines, with_end, compressed):
    folder = tmp_path_factory.mktemp("lines")
    with_end |= len(set(map(len, lines))) == 1  # otherwise they are sequences
    ids = make_vocabulary("ab\n ", ("<PAD>", "<S>", *(["</S>"] if with_end else [])))
    end = [ids["</S>"]] if with_end else []
    sequences = [[ids["<S>"], *(ids[c] for c in line), *end, *[ids["<PAD>"]] * (len(line) % 3)] for line in lines]
    path = write(folder / "lines.tfrecord", sequences, "GZIP" if compressed else "")
    (folder / "vocab.json").write_text(json.dumps(ids))
    corpus, config = read_foreign_records([path], folder / "vocab.json", {"val_fraction": 0.0})
    assert config.layout == "lines"
    found = decode(prepare_data(config, folder / "data", corpus=corpus))
    assert found == [f"<S>{line}</S>" for line in lines]


def test_overlapping_sequences_are_told_from_others(tmp_path):
    ids = make_vocabulary(TEXT)
    sequences = [[ids["<S>"], *(ids[c] for c in TEXT[start : start + 10])] for start in range(0, 200, 5)]
    path = write(tmp_path / "overlapping", sequences)
    (tmp_path / "vocab").write_bytes(pickle.dumps(ids))
    corpus, config = read_foreign_records([path], tmp_path / "vocab", {"overlap": 0.5, "val_fraction": 0.0})
    assert corpus.text == TEXT[:205]
    assert len(decode(prepare_data(config, tmp_path / "data", corpus=corpus))) == len(sequences)
    with pytest.raises(UserError, match=r"--overlap=0\.2: record 2 does not repeat 2 characters"):
        read_foreign_records([path], tmp_path / "vocab", {"overlap": 0.2})


def test_every_record_is_checked(course):
    folder, ids, sequences = course
    path, vocabulary = folder / "skp.tfrecords", folder / "skp_vocab"
    start = ids["<S>"]
    for bad, message in (
        ([3, 4, 5] if start != 3 else [4, 5], "record 8: does not begin with <S>"),
        ([start, 1 if start != 1 else 2, start], "record 8: has <S> among its characters"),
        ([start, 99], "ids outside the vocabulary"),
        ([], "wrong length"),
    ):
        write(path, [*sequences[:7], bad, *sequences[7:]])
        with pytest.raises(UserError, match=message):
            read_foreign_records([path], vocabulary, {})
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="cut short"):
        read_foreign_records([path], vocabulary, {})
    write(path, [])
    with pytest.raises(UserError, match="has no records"):
        read_foreign_records([path], vocabulary, {})
    with pytest.raises(UserError, match=r"missing\.tfrecords: cannot be read \(No such file"):
        read_foreign_records([folder / "missing.tfrecords"], vocabulary, {})


def test_settings_that_would_change_the_records_are_refused(course):
    folder, _, _ = course
    for settings, message in (
        ({"seq_length": 30}, "--seq_length=30: the records have 40 symbols"),
        ({"layout": "lines"}, "--layout=lines: the records are sequences"),
        ({"lowercase": True}, "--lowercase: the text of records is taken as it is"),
    ):
        with pytest.raises(UserError, match=message):
            read_foreign_records([folder / "skp.tfrecords"], folder / "skp_vocab", settings)
    _, config = read_foreign_records(
        [folder / "skp.tfrecords"], folder / "skp_vocab", {"layout": "stream", "seq_length": 8}
    )
    assert config == DataConfig(layout="stream", seq_length=8)


def test_a_vocabulary_without_a_start_is_refused(course):
    folder, ids, _ = course
    (folder / "bare.json").write_text(json.dumps([symbol for symbol in ids if len(symbol) == 1]))
    with pytest.raises(UserError, match="has no <S>, with which every record begins"):
        read_foreign_records([folder / "skp.tfrecords"], folder / "bare.json", {})


def test_nothing_in_a_pickled_vocabulary_is_run(course, tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "was_run"), "w")

    (tmp_path / "bomb").write_bytes(pickle.dumps({"<S>": Bomb()}))
    with pytest.raises(UserError, match="could run code"):
        read_foreign_records([course[0] / "skp.tfrecords"], tmp_path / "bomb", {})
    assert not (tmp_path / "was_run").exists()


def test_ids_beyond_one_byte(tmp_path):
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 400)))
    ids = make_vocabulary(text)
    path = write(tmp_path / "records", make_sequences(text, ids, 21))
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    corpus, config = read_foreign_records([path], tmp_path / "vocab.json", {"val_fraction": 0.0})
    data = prepare_data(config, tmp_path / "data", corpus=corpus)
    assert "".join(decode(data)).replace("<S>", "") == text
    assert np.array_equal(np.unique(data.read("train").ids), np.arange(401))
