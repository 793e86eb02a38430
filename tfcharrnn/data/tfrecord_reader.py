"""Reads sequences of ids from TFRecord files, with TensorFlow."""

from __future__ import annotations

import contextlib
import gzip
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn import files
from tfcharrnn.data.examples import Examples
from tfcharrnn.data.tfrecord_writer import FEATURE, PREPARE_AGAIN, split_frames
from tfcharrnn.errors import UserError, first_line

# ids parsed at a time; parsing needs 64 bits for each
_PARSED_IDS = 2**20
# bytes that one byte of a gzip file can hold; https://zlib.net/zlib_tech.html says 1032
_MAX_COMPRESSION_RATIO = 1100
# ids of the longest record that another program may have written
_MAX_FOREIGN_LENGTH = 1_000_000
# bytes read from disk at a time
_BUFFER_SIZE = 2**18
_TENSORFLOW_NAMES = {"none": "", "gzip": "GZIP"}
# the size at the start of a frame, and the bytes of a frame around the record
_SIZE, _OVERHEAD = struct.Struct("<Q"), 16


def read_records(
    paths: Sequence[Path],
    vocabulary_size: int,
    num_records: int,
    num_symbols: int,
    lengths: tuple[int, int],
    compression: str = "none",
) -> Examples:
    """Reads all records of TFRecord files, in order.

    Args:
        paths: the files.
        vocabulary_size: every id must be less than this.
        num_records: expected number of records.
        num_symbols: expected number of ids.
        lengths: least and greatest number of ids in a record.
        compression: `none` or `gzip`.

    Raises:
        UserError: a missing or damaged file, a record with a wrong length or id, or a wrong number of records.
    """
    if not paths and not num_records:
        return Examples.from_lengths(np.empty(0, np.int32), np.empty(0, np.int64))
    folder = paths[0].parent
    get_file_sizes(paths, max(num_symbols, num_records), compression)  # before memory is allocated
    ids, sizes = np.empty(num_symbols, np.int32), np.empty(num_records, np.int64)
    ids_read, records_read = 0, 0
    batch_size = max(1, _PARSED_IDS // max(1, num_symbols // max(1, num_records)))
    for path in paths:
        _check_file(path, compression)
        for more_ids, more_sizes in _parse_file(path, batch_size, vocabulary_size, lengths, compression):
            ids_end, records_end = ids_read + len(more_ids), records_read + len(more_sizes)
            if records_end > num_records or ids_end > num_symbols:
                raise UserError(f"{path}: has more records than dataset.json says; {PREPARE_AGAIN}")
            ids[ids_read:ids_end] = more_ids
            sizes[records_read:records_end] = more_sizes
            ids_read, records_read = ids_end, records_end
    if (records_read, ids_read) != (num_records, num_symbols):
        raise UserError(
            f"{folder}: has {records_read} records with {ids_read} ids, but dataset.json says {num_records} with "
            f"{num_symbols}; {PREPARE_AGAIN}"
        )
    return Examples.from_lengths(ids, sizes)


def iterate_sequences(path: Path, vocabulary_size: int, compression: str) -> Iterator[npt.NDArray[np.int64]]:
    """Yields the ids of each record of a file that another program wrote.

    Args:
        path: the file.
        vocabulary_size: every id must be less than this.
        compression: `none` or `gzip`.

    Raises:
        UserError: a missing or damaged file, or a record without ids or with an id outside the vocabulary.
    """
    _check_file(path, compression)
    for ids, sizes in _parse_file(path, 1000, vocabulary_size, (1, _MAX_FOREIGN_LENGTH), compression):
        yield from np.split(ids, np.cumsum(sizes)[:-1])


def get_file_sizes(paths: Sequence[Path], num_symbols: int, compression: str) -> list[int]:
    """Returns the sizes of files in bytes, and checks that they can hold `num_symbols` ids.

    Raises:
        UserError: a file is missing, or all together are too short.
    """
    try:
        sizes = [files.regular_file_size(path) for path in paths]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); {PREPARE_AGAIN}") from None
    # an id takes at least one byte before compression
    if num_symbols > sum(sizes) * (1 if compression == "none" else _MAX_COMPRESSION_RATIO):
        raise UserError(f"{paths[0].parent}: its files are too short for what dataset.json says; {PREPARE_AGAIN}")
    return sizes


def parse_frames(path: Path, content: bytes, vocabulary_size: int, lengths: tuple[int, int]) -> Examples:
    """Parses part of a file, with the same checks as for a whole one.

    Args:
        path: the file, for error messages.
        content: whole frames, uncompressed; at least one.
        vocabulary_size: every id must be less than this.
        lengths: least and greatest number of ids in a record.

    Raises:
        UserError: a damaged record, or one with a wrong length or id.
    """
    records = tf.constant(split_frames(path, content))
    ids, sizes = _parse_records(path, records, vocabulary_size, lengths)
    return Examples.from_lengths(ids.astype(np.int32), sizes)


class FrameScan(NamedTuple):
    """The whole frames that a scan has passed.

    Attributes:
        num_frames: how many there are.
        end: the position after the last of them.
    """

    num_frames: int
    end: int


def scan_frames(content: bytes | mmap.mmap, start: int, max_frames: int) -> FrameScan:
    """Scans the frames of records: eight bytes of size, four of checksum, the record, and four of checksum.

    Args:
        content: part of a file.
        start: position of a frame in it.
        max_frames: most frames to pass.
    """
    size, unpack, at = len(content), _SIZE.unpack_from, start
    for index in range(max_frames):
        if at + _OVERHEAD > size:
            return FrameScan(index, at)
        end = at + _OVERHEAD + unpack(content, at)[0]
        if end > size:
            return FrameScan(index, at)
        at = end
    return FrameScan(max_frames, at)


def _parse_file(
    path: Path, batch_size: int, vocabulary_size: int, lengths: tuple[int, int], compression: str
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yields the concatenated ids of `batch_size` records at a time, and the number of ids in each record.

    Raises:
        UserError: a damaged record, or one with a wrong length or id.
    """
    with _name_file(path):
        for serialised in _make_dataset(os.fsencode(path), batch_size, compression):
            yield _parse_records(path, serialised, vocabulary_size, lengths)


def _parse_records(
    path: Path, serialised: tf.Tensor, vocabulary_size: int, lengths: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the concatenated ids of records, and the number of ids in each.

    Raises:
        UserError: a record is not of the layout, or has a wrong length or id.
    """
    with _name_file(path):
        ids, sizes = (array.numpy() for array in _parse(serialised))
    if sizes.min() < lengths[0] or sizes.max() > lengths[1]:
        raise UserError(f"{path}: a record has a wrong length for this layout; {PREPARE_AGAIN}")
    if ids.min() < 0 or ids.max() >= vocabulary_size:
        raise UserError(f"{path}: a record has ids outside the vocabulary; {PREPARE_AGAIN}")
    return ids, sizes


@contextlib.contextmanager
def _name_file(path: Path) -> Iterator[None]:
    """Turns TensorFlow's errors into one that names the file."""
    try:
        yield
    except (tf.errors.OpError, UnicodeDecodeError) as error:  # the latter if the message would quote a record
        raise UserError(f"{path}: damaged or not of this layout ({first_line(error)}); {PREPARE_AGAIN}") from None


def _make_dataset(name: bytes, batch_size: int, compression: str) -> tf.data.Dataset:
    """Makes a dataset of batches of serialised records."""
    # The bare operation, since its wrapper class would be traced for each file. Autotuning has nothing to tune with one
    # reader, and takes ten times as long as reading a small file.
    dataset = tf.data.experimental.from_variant(
        tf.raw_ops.TFRecordDataset(
            filenames=[name], compression_type=_TENSORFLOW_NAMES[compression], buffer_size=_BUFFER_SIZE
        ),
        tf.TensorSpec([], tf.string),
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.batch(batch_size).with_options(options)


def _check_file(path: Path, compression: str) -> None:
    """Checks the frames of a file."""
    try:
        (_check_frames if compression == "none" else _check_compressed_frames)(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {PREPARE_AGAIN}") from None


def _check_frames(path: Path) -> None:
    """Checks that each frame ends within its file; TensorFlow would allocate any size it reads there, or abort."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = scan_frames(content, 0, max_frames=size).end
    if end < size:
        raise UserError(f"{path}: damaged (the record at byte {end} is cut short); {PREPARE_AGAIN}")


def _check_compressed_frames(path: Path) -> None:
    """Checks that each frame ends within its gzip file, by decompressing all of it."""
    try:
        with gzip.open(path) as file:
            while frame := file.read(_SIZE.size):
                left = _SIZE.unpack(frame)[0] + _OVERHEAD - _SIZE.size if len(frame) == _SIZE.size else 1
                while left:
                    block = file.read(min(left, _BUFFER_SIZE))
                    if not block:
                        raise UserError(f"{path}: damaged (a record is cut short); {PREPARE_AGAIN}")
                    left -= len(block)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); {PREPARE_AGAIN}") from None


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def _parse(serialised: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Parses records into their concatenated ids and the number of ids in each; 0 for a record without the feature."""
    ragged = tf.io.parse_example(serialised, {FEATURE: tf.io.RaggedFeature(tf.int64)})[FEATURE]
    return ragged.values, ragged.row_lengths()
