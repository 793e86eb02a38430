import resource
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcharrnn.data import tfrecord_reader, tfrecord_writer
from tfcharrnn.data.examples import Examples
from tfcharrnn.errors import UserError

# ids of one, two and three bytes
IDS = st.one_of(st.integers(0, 127), st.integers(128, 16_383), st.integers(16_384, 2**21 - 1))


def example(ids):
    feature = {"seq": tf.train.Feature(int64_list=tf.train.Int64List(value=ids))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)


def framed(serialised):
    """Records as TensorFlow itself writes them."""
    with tempfile.NamedTemporaryFile() as file:
        with tf.io.TFRecordWriter(file.name) as writer:
            for record in serialised:
                writer.write(record)
        return Path(file.name).read_bytes()


def examples(sequences):
    lengths = np.array([len(ids) for ids in sequences], np.int64)
    return Examples.from_lengths(np.array([id for ids in sequences for id in ids], np.int32), lengths)


def write(paths, sequences):
    """Spreads records over files, as data folders do."""
    first = 0
    for index, path in enumerate(paths):
        last = first + len(sequences) // len(paths) + (index < len(sequences) % len(paths))
        tfrecord_writer.write_records(path, [examples(sequences[first:last])])
        first = last


def read(paths, seq_length, vocabulary_size, count):
    """Reads records of one length."""
    return tfrecord_reader.read_records(paths, vocabulary_size, count, count * seq_length, (seq_length, seq_length))


@given(st.integers(0, 5), st.integers(1, 40), st.data())
def test_serialised_records_are_those_of_protobuf(count, seq_length, data):
    rows = st.lists(IDS, min_size=seq_length, max_size=seq_length)
    sequences = data.draw(st.lists(rows, min_size=count, max_size=count))
    array = np.array(sequences, np.int32).reshape(count, seq_length)
    assert tfrecord_writer.serialise(Examples.from_rows(array)) == framed(map(example, sequences))


@given(st.lists(st.lists(st.integers(0, 127), min_size=1, max_size=300), max_size=6), st.data())
def test_records_of_different_lengths_are_those_of_protobuf(sequences, data):
    if sequences and data.draw(st.booleans()):
        data.draw(st.sampled_from(sequences)).append(data.draw(IDS))
    assert tfrecord_writer.serialise(examples(sequences)) == framed(map(example, sequences))


@pytest.mark.parametrize("largest", [0, 127, 128, 16_383, 16_384, 0x10FFFF])
@pytest.mark.parametrize("seq_length", [1, 111, 112, 200, 16_380, 70_000])
def test_serialised_records_are_those_of_protobuf_at_every_size(largest, seq_length):
    array = np.random.default_rng(0).integers(0, largest, (2, seq_length), np.int32, endpoint=True)
    array[0, -1] = largest
    assert tfrecord_writer.serialise(Examples.from_rows(array)) == framed(map(example, array))


@pytest.mark.parametrize("num_shards", [1, 2, 3, 10, 12])
def test_records_are_read_back_in_order(tmp_path, num_shards):
    sequences = np.arange(50, dtype=np.int32).reshape(10, 5)
    paths = [tmp_path / f"{index}.tfrecord" for index in range(num_shards)]
    write(paths, sequences)
    assert read(paths, 5, 50, 10).pad().tolist() == sequences.tolist()


def test_nothing_is_read_from_nothing():
    nothing = read([], 7, 10, 0)
    assert (len(nothing), nothing.width, nothing.ids.size) == (0, 0, 0)


@settings(max_examples=8)
@given(st.lists(st.lists(st.integers(0, 299), min_size=2, max_size=40), min_size=1, max_size=10), st.integers(1, 3))
def test_records_of_different_lengths_are_read_back(tmp_path_factory, sequences, num_shards):
    folder = tmp_path_factory.mktemp("records")
    paths = [folder / f"{index}.tfrecord" for index in range(num_shards)]
    write(paths, sequences)
    lengths = [len(ids) for ids in sequences]
    bounds = (min(lengths), max(lengths))
    got = tfrecord_reader.read_records(paths, 300, len(sequences), sum(lengths), bounds)
    assert got.ids.dtype == np.int32
    assert [got.ids[at : at + size].tolist() for at, size in zip(got.starts, got.lengths, strict=True)] == sequences
    for wrong in ((bounds[0] + 1, bounds[1] + 1), (bounds[0] - 1, bounds[1] - 1)):
        with pytest.raises(UserError, match="a record has a wrong length"):
            tfrecord_reader.read_records(paths, 300, len(sequences), sum(lengths), wrong)
    with pytest.raises(UserError, match=r"too short for what|records with .* but dataset.json says"):
        tfrecord_reader.read_records(paths, 300, len(sequences), sum(lengths) + 1, bounds)
    with pytest.raises(UserError, match="has more records than"):
        tfrecord_reader.read_records(paths, 300, len(sequences), sum(lengths) - 1, bounds)


def test_many_long_records_are_read_back(tmp_path):
    sequences = np.random.default_rng(0).integers(0, 70, (3, 800_000), np.int32)
    write([tmp_path / "x.tfrecord"], sequences)
    assert np.array_equal(read([tmp_path / "x.tfrecord"], 800_000, 70, 3).pad(), sequences)


def test_a_full_disk_is_one_error(tmp_path):
    path = tmp_path / "x.tfrecord"
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(UserError, match=rf"^{path}: cannot be written .*free space") as caught:
            write([path], np.ones((1000, 1000), np.int32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seq_length", "vocabulary_size", "expected", "message"),
    [
        (5, 49, 10, "a record has ids outside the vocabulary"),
        (5, 50, 9, "has more records than"),
        (5, 50, 11, "has 10 records with 50 ids, but dataset.json says 11 with 55"),
        (4, 50, 10, "a record has a wrong length for this layout"),
        (6, 50, 10, "a record has a wrong length for this layout"),
        (5, 50, 10**12, "too short for what"),
        (10**6, 50, 10**11, "too short for what"),
        (10**6, 50, 50, "too short for what"),
    ],
)
def test_records_unlike_what_is_expected_are_one_error(tmp_path, seq_length, vocabulary_size, expected, message):
    path = tmp_path / "x.tfrecord"
    write([path], np.arange(50).reshape(10, 5))
    with pytest.raises(UserError, match=message) as caught:
        read([path], seq_length, vocabulary_size, expected)
    assert str(caught.value).startswith(str(tmp_path))
    assert "prepare the data again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"not a protocol buffer",
        tf.train.Example().SerializeToString(),
        example([-1, 1, 2, 3, 4]),
        example([2**40, 1, 2, 3, 4]),
        tf.train.Example(
            features=tf.train.Features(
                feature={"seq": tf.train.Feature(float_list=tf.train.FloatList(value=[1.0] * 5))}
            )
        ).SerializeToString(),
    ],
)
def test_foreign_records_are_one_error(tmp_path, record):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(framed([record] * 10))
    with pytest.raises(UserError, match=r"x\.tfrecord: |too short"):
        read([path], 5, 50, 1)


def test_missing_shard_is_one_error(tmp_path):
    with pytest.raises(UserError, match=r"x\.tfrecord: cannot be read \(No such file"):
        read([tmp_path / "x.tfrecord"], 5, 50, 1)


def test_folder_in_the_place_of_a_shard_is_one_error(tmp_path):
    (tmp_path / "x.tfrecord").mkdir()
    with pytest.raises(UserError, match="prepare the data again"):
        read([tmp_path / "x.tfrecord"], 5, 50, 1)


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("records") / "x.tfrecord"
    write([path], np.arange(50).reshape(10, 5))
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(UserError, match="prepare the data again"):
        read([path], 5, 50, 10)


@given(st.integers(0, 10**6))
def test_any_cut_is_noticed(tmp_path_factory, size):
    path = tmp_path_factory.mktemp("records") / "x.tfrecord"
    write([path], np.arange(50).reshape(10, 5))
    data = path.read_bytes()
    path.write_bytes(data[: size % len(data)])
    with pytest.raises(UserError, match="prepare the data again"):
        read([path], 5, 50, 10)
