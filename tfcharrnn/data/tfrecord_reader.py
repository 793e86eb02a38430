"""Reading records: sequences of ids, kept in the TFRecord files that `tfrecords` writes."""

from __future__ import annotations

import gzip
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn import files
from tfcharrnn.data.examples import Examples
from tfcharrnn.data.tfrecord_writer import FEATURE
from tfcharrnn.errors import UserError, first_line

# ids that are parsed together; 64-bit numbers for a moment
_PARSED_IDS = 2**20
# to one byte at the most; https://zlib.net/zlib_tech.html says 1032
_MOST_COMPRESSED = 1100
# bytes read from disk together
_BUFFER = 2**18
_TENSORFLOW_NAMES = {"none": "", "gzip": "GZIP"}
# of a record's frame
_SIZE, _AROUND = struct.Struct("<Q"), 16


def read(
    paths: Sequence[Path],
    vocabulary_size: int,
    count: int,
    num_symbols: int,
    lengths: tuple[int, int],
    compression: str = "none",
) -> Examples:
    """Reads every record of TFRecord files, in order.

    Args:
        paths: the files.
        vocabulary_size: ids must be below this.
        count: how many records there must be.
        num_symbols: how many ids they must have together.
        lengths: how many ids a record must have at least and at most.
        compression: of the files: `none` or `gzip`.

    Raises:
        UserError: a missing or damaged file, a record of a wrong length or with a wrong id, or a wrong count.
    """
    again = "prepare the data again"
    if not paths and not count:
        return Examples.side_by_side(np.empty(0, np.int32), np.empty(0, np.int64))
    folder = paths[0].parent
    checked_sizes(paths, max(num_symbols, count), compression)  # before memory is taken
    ids, sizes = np.empty(num_symbols, np.int32), np.empty(count, np.int64)
    at, records = 0, 0
    mean_length = max(1, num_symbols // max(1, count))
    for path in paths:
        try:
            (_check_sizes if compression == "none" else _check_compressed_sizes)(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {again}") from None
        size = max(1, _PARSED_IDS // mean_length)
        for more_ids, more_sizes in _parsed(path, os.fsencode(path), size, vocabulary_size, lengths, compression):
            if records + len(more_sizes) > count or at + len(more_ids) > num_symbols:
                raise UserError(f"{path}: more records than dataset.json counts; {again}")
            ids[at : at + len(more_ids)] = more_ids
            sizes[records : records + len(more_sizes)] = more_sizes
            at, records = at + len(more_ids), records + len(more_sizes)
    if (records, at) != (count, num_symbols):
        raise UserError(
            f"{folder}: {records} records of {at} ids where dataset.json counts {count} of {num_symbols}; {again}"
        )
    return Examples.side_by_side(ids, sizes)


def checked_sizes(paths: Sequence[Path], num_symbols: int, compression: str) -> list[int]:
    """The sizes of files in bytes, which can hold so many ids.

    Raises:
        UserError: a file is missing, or all together are too short.
    """
    again = "prepare the data again"
    try:
        sizes = [files.regular_size(path) for path in paths]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); {again}") from None
    # an id takes at least a byte before any compression
    if num_symbols > sum(sizes) * (1 if compression == "none" else _MOST_COMPRESSED):
        raise UserError(f"{paths[0].parent}: its files are too short for what dataset.json counts; {again}")
    return sizes


def of_frames(path: Path, content: bytes, count: int, vocabulary_size: int, lengths: tuple[int, int]) -> Examples:
    """The records in a part of a file, which TensorFlow checks and parses as it does those of a whole one.

    Args:
        path: the file, for errors.
        content: whole records in their frames, as `frames` counts them, uncompressed.
        count: how many they are, at least one.
        vocabulary_size: ids must be below this.
        lengths: how many ids a record must have at least and at most.

    Raises:
        UserError: a damaged record, one of a wrong length, or with a wrong id.
    """
    name = f"ram://tfcharrnn-{threading.get_ident()}"  # TensorFlow reads records from files; this is one in memory
    with tf.io.gfile.GFile(name, "wb") as file:
        file.write(content)
    try:
        parts = list(_parsed(path, name.encode(), count, vocabulary_size, lengths, "none"))
    finally:
        tf.io.gfile.remove(name)
    ids, sizes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Examples.side_by_side(ids.astype(np.int32), sizes)


def frames(content: bytes | mmap.mmap, at: int, count: int) -> tuple[int, int]:
    """Goes over records in their frames: eight bytes of size, four of checksum, the record, four of checksum.

    Args:
        content: a part of a file.
        at: where in it a frame begins.
        count: how many to go over at most.

    Returns:
        Over how many it went that are whole, and where the next one begins.
    """
    size, unpack = len(content), _SIZE.unpack_from
    for index in range(count):
        if at + _AROUND > size:
            return index, at
        end = at + _AROUND + unpack(content, at)[0]
        if end > size:
            return index, at
        at = end
    return count, at


def _parsed(
    path: Path, name: bytes, size: int, vocabulary_size: int, lengths: tuple[int, int], compression: str
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """The ids of a file's records, one after another, and how many each has, some `size` records at a time.

    Raises:
        UserError: it names `path`; TensorFlow knows the file as `name`.
    """
    again = "prepare the data again"
    try:
        for serialised in _batches(name, size, compression):
            ids, sizes = (array.numpy() for array in _parse(serialised))
            if sizes.min() < lengths[0] or sizes.max() > lengths[1]:
                raise UserError(f"{path}: holds a record of a wrong length, so it is not of this layout; {again}")
            if ids.min() < 0 or ids.max() >= vocabulary_size:
                raise UserError(f"{path}: holds ids outside the vocabulary; {again}")
            yield ids, sizes
    except (tf.errors.OpError, UnicodeDecodeError) as error:  # the latter where the message would quote a record
        raise UserError(f"{path}: damaged or not of this layout ({first_line(error)}); {again}") from None


def _batches(name: bytes, size: int, compression: str) -> tf.data.Dataset:
    """The records of a file as they are, in batches."""
    # the bare operation, for the class around it would be traced for each file; and with one reader there is nothing
    # to tune, which takes ten times as long as reading a small file
    dataset = tf.data.experimental.from_variant(
        tf.raw_ops.TFRecordDataset(
            filenames=[name], compression_type=_TENSORFLOW_NAMES[compression], buffer_size=_BUFFER
        ),
        tf.TensorSpec([], tf.string),
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.batch(size).with_options(options)


def _check_sizes(path: Path) -> None:
    """Checks that each record lies within its file; TensorFlow takes memory for as much as it is told, or aborts."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _, at = frames(content, 0, size)  # more than there can be
    if at < size:
        raise UserError(f"{path}: damaged (its record at byte {at} is cut short); prepare the data again")


def _check_compressed_sizes(path: Path) -> None:
    """The same of a gzip file; what it says of its records is read as far as it goes, and nothing kept."""
    cut = f"{path}: damaged (a record is cut short); prepare the data again"
    try:
        with gzip.open(path) as file:
            while frame := file.read(_SIZE.size):
                left = _SIZE.unpack(frame)[0] + _AROUND - _SIZE.size if len(frame) == _SIZE.size else 1
                while left:
                    block = file.read(min(left, _BUFFER))
                    if not block:
                        raise UserError(cut)
                    left -= len(block)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); prepare the data again") from None


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def _parse(serialised: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The ids of some records, one after another, and how many each has; a record without the feature has none."""
    ragged = tf.io.parse_example(serialised, {FEATURE: tf.io.RaggedFeature(tf.int64)})[FEATURE]
    return ragged.values, ragged.row_lengths()
