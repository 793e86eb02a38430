"""Reading from the middle of the files of a split."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcharrnn.data import shards, tfrecord_writer
from tfcharrnn.data.chunking import CHUNK_LENGTH
from tfcharrnn.data.examples import Examples
from tfcharrnn.errors import UserError


def write(folder, sequences, num_shards, compression="none"):
    """The files of some records."""
    paths = [folder / f"{compression}-{index}.tfrecord" for index in range(num_shards)]
    first = 0
    for index, path in enumerate(paths):
        last = first + len(sequences) // num_shards + (index < len(sequences) % num_shards)
        lengths = np.array([len(ids) for ids in sequences[first:last]], np.int64)
        ids = np.array([id for ids in sequences[first:last] for id in ids], np.int32)
        tfrecord_writer.write_records(path, [Examples.from_lengths(ids, lengths)], compression)
        first = last
    return paths


def open_shards(paths, sequences, lengths, compression="none", vocabulary_size=300):
    size = sum(map(len, sequences))
    return shards.Shards(paths, vocabulary_size, len(sequences), size, lengths, compression)


def rows(examples):
    return [examples.ids[at : at + size].tolist() for at, size in zip(examples.starts, examples.lengths, strict=True)]


@pytest.mark.parametrize("compression", ["none", "gzip"])
@settings(max_examples=20)
@given(
    st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=40), min_size=1, max_size=40),
    st.integers(1, 7),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5),
)
def test_any_range_is_read(tmp_path_factory, compression, sequences, num_shards, ranges):
    paths = write(tmp_path_factory.mktemp("shards"), sequences, num_shards, compression)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_PART_SIZE", 50)
        patch.setattr(shards, "_BLOCK_SIZE", 100)
        patch.setattr(shards, "_INDEX_SPACING", 40)
        reader = open_shards(paths, sequences, (1, 40), compression)
        for first, last in [*ranges, (0, len(sequences)), *ranges]:
            first, last = min(first, len(sequences)), min(last, len(sequences))
            assert rows(reader.read(first, last)) == sequences[first:last]


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("vocabulary_size", [128, 300])
@pytest.mark.parametrize("size", [1, CHUNK_LENGTH, CHUNK_LENGTH + 1, 5 * CHUNK_LENGTH, 7 * CHUNK_LENGTH - 3])
def test_any_range_of_a_text_is_read(tmp_path, compression, vocabulary_size, size):
    ids = np.random.default_rng(0).integers(0, vocabulary_size, size)
    pieces = [ids[at : at + CHUNK_LENGTH].tolist() for at in range(0, size, CHUNK_LENGTH)]
    reader = open_shards(
        write(tmp_path, pieces, 3, compression), pieces, (1, CHUNK_LENGTH), compression, vocabulary_size
    )
    for first, last in [(0, size), (size // 3, size // 2), (size // 2, size), (max(0, size - 5), size)]:
        got = [id for chunk in reader.read_text(first, last) for id in chunk.tolist()]
        assert got == ids[first:last].tolist()


def test_of_records_of_equal_length_only_the_requested_ones_are_read(tmp_path, monkeypatch):
    sequences = np.arange(1000).reshape(100, 10) % 128
    read = []
    monkeypatch.setattr(
        shards._PlainFile,
        "read",
        lambda self, *span, real=shards._PlainFile.read: read.append(span) or real(self, *span),
    )
    reader = open_shards(write(tmp_path, sequences.tolist(), 2), sequences, (10, 10), vocabulary_size=128)
    assert rows(reader.read(48, 52)) == sequences[48:52].tolist()
    frame = tfrecord_writer.frame_size(10)
    assert read == [(48 * frame, 50 * frame), (0, 2 * frame)]


def test_a_compressed_file_is_not_read_from_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_BLOCK_SIZE", 10_000)
    sequences = np.random.default_rng(1).integers(0, 250, (2000, 50)).tolist()
    reader = open_shards(write(tmp_path, sequences, 1, "gzip"), sequences, (50, 50), "gzip")
    reader.read(1999, 2000)
    taken, pread = [], shards.os.pread
    monkeypatch.setattr(shards.os, "pread", lambda *args: taken.append(args) or pread(*args))
    assert rows(reader.read(1000, 1010)) == sequences[1000:1010]
    assert len(taken) <= 3


def read_error(path, count, lengths, compression="none", vocabulary_size=128):
    """The error of reading one file to its end."""
    with pytest.raises(UserError) as caught:
        shards.Shards([path], vocabulary_size, count, count * lengths[1], lengths, compression).read(0, count)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith("prepare the data again") and "\n" not in message
    return message


@pytest.mark.parametrize("vocabulary_size", [50, 300])
@pytest.mark.parametrize("compression", ["none", "gzip"])
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(tmp_path_factory, compression, vocabulary_size, position, bit):
    (path,) = write(tmp_path_factory.mktemp("x"), np.arange(50).reshape(10, 5).tolist(), 1, compression)
    data = bytearray(path.read_bytes())
    position %= len(data)
    # the time and system in its header mean nothing, nor do the bits that fill up the last byte before its checksum
    if compression == "gzip" and (position < 10 or position == len(data) - 9):
        return
    data[position] ^= 1 << bit
    path.write_bytes(data)
    read_error(path, 10, (5, 5), compression, vocabulary_size)


@pytest.mark.parametrize("compression", ["none", "gzip"])
@given(st.integers(0, 10**6))
def test_any_cut_is_noticed(tmp_path_factory, compression, size):
    (path,) = write(tmp_path_factory.mktemp("x"), np.arange(50).reshape(10, 5).tolist(), 1, compression)
    data = path.read_bytes()
    path.write_bytes(data[: size % len(data)])
    with pytest.raises(UserError, match="prepare the data again"):
        shards.Shards([path], 50, 10, 50, (5, 5), compression).read(0, 10)


@pytest.mark.parametrize("size", [2**62, 2**40, 2**31, 0])
@pytest.mark.parametrize(("compression", "vocabulary_size"), [("none", 50), ("none", 300), ("gzip", 50)])
def test_a_size_that_cannot_be_is_one_error(tmp_path, compression, vocabulary_size, size):
    (path,) = write(tmp_path, np.arange(50).reshape(10, 5).tolist(), 1, compression)
    data = bytearray(path.read_bytes() if compression == "none" else gzip.decompress(path.read_bytes()))
    at = 3 * tfrecord_writer.frame_size(5)
    data[at : at + 8] = struct.pack("<Q", size)
    path.write_bytes(data if compression == "none" else gzip.compress(data))
    assert "damaged" in read_error(path, 10, (5, 5), compression, vocabulary_size)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_another_number_of_records_is_one_error(tmp_path, compression):
    (path,) = write(tmp_path, np.arange(50).reshape(10, 5).tolist(), 1, compression)
    assert "more records than" in read_error(path, 9, (5, 5), compression)
    if compression == "gzip":
        assert "fewer records than" in read_error(path, 11, (5, 5), compression)
    else:
        with pytest.raises(UserError, match="fewer records than"):
            shards.Shards([path], 128, 11, 55, (5, 5)).read(0, 11)


def test_wrong_records_and_missing_files_are_one_error(tmp_path):
    (path,) = write(tmp_path, np.arange(50).reshape(10, 5).tolist(), 1)
    assert "outside the vocabulary" in read_error(path, 10, (5, 5), vocabulary_size=49)
    with pytest.raises(UserError, match="a record has a wrong length"):
        shards.Shards([path], 50, 10, 50, (6, 6)).read(0, 10)
    with pytest.raises(UserError, match="too short for what"):
        shards.Shards([path], 50, 10, 10**9, (5, 5))
    with pytest.raises(UserError, match=r"none: cannot be read \(No such file"):
        shards.Shards([tmp_path / "none"], 50, 10, 50, (5, 5))
    reader = shards.Shards([path], 50, 10, 50, (5, 5))
    path.unlink()
    with pytest.raises(UserError, match=r"tfrecord: cannot be read \(No such file"):
        reader.read(0, 1)
