import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfcharrnn import records
from tfcharrnn.errors import ConfigError, UserError

# ids of one, two and three bytes
IDS = st.one_of(st.integers(0, 127), st.integers(128, 16_383), st.integers(16_384, 2**21 - 1))


def example(ids):
    feature = {"seq": tf.train.Feature(int64_list=tf.train.Int64List(value=ids))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)


def cut_by_hand(text, seq_length, step):
    sequences, start = [], 0
    while start + seq_length - 1 <= len(text):
        sequence = [0]
        for position in range(start, start + seq_length - 1):
            sequence.append(text[position])
        sequences.append(sequence)
        start += step
    return sequences


def write(paths, sequences):
    records.write(paths, records.serialise(np.array(sequences, np.int32)), len(sequences))


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(2, 20), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75]))
def test_cut_sequences_reads_as_the_contract(text, seq_length, overlap):
    step = seq_length - 1 - math.ceil(overlap * (seq_length - 1))
    if step == 0:
        with pytest.raises(ConfigError, match=f"^--overlap={overlap}"):
            records.cut_sequences(np.array(text, np.int32), seq_length, overlap, 0)
        return
    expected = cut_by_hand(text, seq_length, step)
    sequences = records.cut_sequences(np.array(text, np.int32), seq_length, overlap, 0)
    assert sequences.tolist() == expected
    assert sequences.shape == (len(expected), seq_length)
    assert sequences.dtype == np.int32
    assert records.num_sequences(len(text), seq_length, overlap) == len(expected)


@given(st.integers(0, 2000))
def test_sequences_without_overlap_number_characters_by_199(characters):
    sequences = records.cut_sequences(np.ones(characters, np.int32), 200, 0.0, 0)
    assert len(sequences) == characters // 199


@pytest.mark.parametrize(
    ("seq_length", "overlap", "step"),
    [(200, 0.0, 199), (101, 0.07, 93), (101, 0.29, 71), (4, 0.5, 1), (201, 0.5, 100), (11, 1e-5, 9), (101, 0.99, 1)],
)
def test_stride_takes_the_overlap_as_the_decimal_it_is_written(seq_length, overlap, step):
    assert records.stride(seq_length, overlap) == step
    assert records.stride(seq_length, np.float64(overlap)) == step


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(2, 20))
def test_cut_whole_covers_each_character_once(text, seq_length):
    sequences, lengths = records.cut_whole(np.array(text, np.int32), seq_length, 0)
    assert sequences.shape == (len(lengths), seq_length) == (math.ceil(len(text) / (seq_length - 1)), seq_length)
    assert np.all(sequences[:, 0] == 0)
    assert [id for row, length in zip(sequences.tolist(), lengths, strict=True) for id in row[1:length]] == text
    assert all(
        row[length:] == [0] * (seq_length - length) for row, length in zip(sequences.tolist(), lengths, strict=True)
    )


@given(st.integers(0, 5), st.integers(1, 40), st.data())
def test_serialised_records_are_those_of_protobuf(count, seq_length, data):
    rows = st.lists(IDS, min_size=seq_length, max_size=seq_length)
    sequences = data.draw(st.lists(rows, min_size=count, max_size=count))
    array = np.array(sequences, np.int32).reshape(count, seq_length)
    assert records.serialise(array) == [example(row) for row in sequences]


@pytest.mark.parametrize("largest", [0, 127, 128, 16_383, 16_384, 0x10FFFF])
@pytest.mark.parametrize("seq_length", [1, 111, 112, 200, 16_380, 70_000])
def test_serialised_records_are_those_of_protobuf_at_every_size(largest, seq_length):
    array = np.random.default_rng(0).integers(0, largest, (2, seq_length), np.int32, endpoint=True)
    array[0, -1] = largest
    assert records.serialise(array) == [example(row) for row in array]


@pytest.mark.parametrize("num_shards", [1, 2, 3, 10, 12])
def test_records_are_spread_evenly_and_read_back_in_order(tmp_path, num_shards):
    sequences = np.arange(50, dtype=np.int32).reshape(10, 5)
    paths = [tmp_path / f"{index}.tfrecord" for index in range(num_shards)]
    write(paths, sequences)
    assert records.read(paths, 5, 50, 10).tolist() == sequences.tolist()
    counts = [sum(1 for _ in tf.data.TFRecordDataset(str(path))) for path in paths]
    assert sum(counts) == 10
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


def test_nothing_is_read_from_nothing():
    assert records.read([], 7, 10, 0).shape == (0, 7)


def test_many_long_records_are_read_back(tmp_path):
    sequences = np.random.default_rng(0).integers(0, 70, (3, 800_000), np.int32)
    write([tmp_path / "x.tfrecord"], sequences)
    assert np.array_equal(records.read([tmp_path / "x.tfrecord"], 800_000, 70, 3), sequences)


def test_a_full_disk_is_one_error():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(UserError, match=r"^/dev/full: cannot be written .*free space") as caught:
        write([full], np.ones((1000, 1000), np.int32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("seq_length", "vocabulary_size", "expected", "message"),
    [
        (5, 49, 10, "ids outside the vocabulary"),
        (5, 50, 9, "more records than"),
        (5, 50, 11, "10 records where dataset.json counts 11"),
        (4, 50, 10, "not of this layout"),
        (6, 50, 10, "not of this layout"),
        (5, 50, 10**12, "too short for what"),
        (10**6, 50, 10**11, "too short for what"),
        (10**6, 50, 50, "too short for what"),
    ],
)
def test_records_unlike_what_is_expected_are_one_error(tmp_path, seq_length, vocabulary_size, expected, message):
    path = tmp_path / "x.tfrecord"
    write([path], np.arange(50).reshape(10, 5))
    with pytest.raises(UserError, match=message) as caught:
        records.read([path], seq_length, vocabulary_size, expected)
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
    records.write([path], [record] * 10, 10)
    with pytest.raises(UserError, match=r"x\.tfrecord: |too short"):
        records.read([path], 5, 50, 1)


def test_missing_shard_is_one_error(tmp_path):
    with pytest.raises(UserError, match=r"x\.tfrecord: cannot be read \(No such file"):
        records.read([tmp_path / "x.tfrecord"], 5, 50, 1)


def test_folder_in_the_place_of_a_shard_is_one_error(tmp_path):
    (tmp_path / "x.tfrecord").mkdir()
    with pytest.raises(UserError, match="prepare the data again"):
        records.read([tmp_path / "x.tfrecord"], 5, 50, 1)


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("records") / "x.tfrecord"
    write([path], np.arange(50).reshape(10, 5))
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(UserError, match="prepare the data again"):
        records.read([path], 5, 50, 10)


@given(st.integers(0, 10**6))
def test_any_cut_is_noticed(tmp_path_factory, size):
    path = tmp_path_factory.mktemp("records") / "x.tfrecord"
    write([path], np.arange(50).reshape(10, 5))
    data = path.read_bytes()
    path.write_bytes(data[: size % len(data)])
    with pytest.raises(UserError, match="prepare the data again"):
        records.read([path], 5, 50, 10)
