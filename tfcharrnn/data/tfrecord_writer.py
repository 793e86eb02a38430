"""Writes and checks TFRecord files without TensorFlow, whose import takes more memory than the work.

A record is a `tf.train.Example` with one int64 feature, `seq`: the ids of one sequence. Its frame in the file is its
size in eight bytes, the checksum of those, the record, and the checksum of the record. A checksum is a CRC-32C, rotated
by 15 bits and increased by a constant (https://www.tensorflow.org/tutorials/load_data/tfrecord).
"""

from __future__ import annotations

import functools
import gzip
import io
import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from tfcharrnn.data.examples import Examples
from tfcharrnn.errors import UserError, first_line
from tfcharrnn.files import create_file

FEATURE = "seq"
# what to do about a damaged file, for error messages
PREPARE_AGAIN = "prepare the data again"
# the parts of a frame before and after the record
_SIZE, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_HEAD_SIZE, _TAIL_SIZE = _SIZE.size + _CHECKSUM.size, _CHECKSUM.size
_CHECKSUM_OFFSET = 0xA282EAD8
# no record is larger: a million ids of three bytes
_MAX_RECORD_SIZE = 2**23
# bytes read at a time
_BUFFER_SIZE = 2**20
# record sizes for which the first bytes are cached
_CACHED_SIZES = 2**16


def write_records(path: Path, records: Iterable[Examples], compression: str = "none") -> None:
    """Writes a TFRecord file, which appears complete and on disk, or not at all.

    Args:
        path: the new file.
        records: the records, a batch at a time; ids from 0 to 2^21 - 1.
        compression: `none` or `gzip`.

    Raises:
        UserError: the write fails.
    """
    # TensorFlow's compression level, and no timestamp, so that equal records make equal files
    compressor = zlib.compressobj(6, wbits=31) if compression == "gzip" else None
    with create_file(path) as write:
        for batch in records:
            data = serialise(batch)
            write(compressor.compress(data) if compressor else data)
        if compressor:
            write(compressor.flush())


def serialise(records: Examples) -> bytes:
    """Serialises records into frames, many at a time for speed.

    An id is a varint: its bits in groups of seven, the lowest first, with 128 added to every byte but the last
    (https://protobuf.dev/programming-guides/encoding). The ids are the end of the record; what comes before them
    depends only on their size in bytes.

    Args:
        records: examples that fill their array; ids from 0 to 2^21 - 1.
    """
    ids, lengths = records.ids, records.lengths
    if not len(lengths):
        return b""
    if ids.max(initial=0) < 128:  # one byte each
        if np.all(lengths == lengths[0]):
            return _serialise_rows(ids.astype(np.uint8).reshape(len(lengths), -1))
        sizes, content = lengths, ids.astype(np.uint8).tobytes()
    else:
        groups = 2 if ids.max() < 2**14 else 3
        digits, used = np.empty((len(ids), groups), np.uint8), np.empty((len(ids), groups), bool)
        used[:, 0] = True
        for group in range(groups):
            digits[:, group] = ids >> 7 * group & 127
            if group + 1 < groups:
                used[:, group + 1] = more = ids >= 2 ** (7 * (group + 1))
                digits[:, group] |= more.view(np.uint8) << 7
        content = digits[used].tobytes()
        sizes = np.add.reduceat(np.count_nonzero(used, axis=1), records.starts)
    present = np.flatnonzero(np.bincount(sizes))
    heads, crcs = np.empty(present[-1] + 1, object), np.empty(present[-1] + 1, np.uint32)
    for size in present.tolist():
        heads[size], crcs[size] = _make_header(size)
    contents = [content[start:end] for start, end in itertools.pairwise([0, *np.cumsum(sizes).tolist()])]
    crcs = np.fromiter(map(google_crc32c.extend, crcs[sizes].tolist(), contents), np.uint32, len(sizes))
    parts: list[bytes] = [b""] * (3 * len(sizes))
    parts[::3], parts[1::3], parts[2::3] = heads[sizes].tolist(), contents, _mask(crcs).view("V4").tolist()
    return b"".join(parts)


def frame_size(length: int) -> int:
    """Returns the size in bytes of the frame of a record with `length` ids, each below 128."""
    return len(_make_header(length).data) + length + _TAIL_SIZE


def _serialise_rows(rows: npt.NDArray[np.uint8]) -> bytes:
    """Serialises records of equal length whose ids take one byte each, `[records, length]`."""
    header = _make_header(rows.shape[1]).data
    start, end = len(header), len(header) + rows.shape[1]
    frames = np.empty((len(rows), end + _TAIL_SIZE), np.uint8)
    frames[:, :start] = np.frombuffer(header, np.uint8)
    frames[:, start:end] = rows
    contents = np.ascontiguousarray(frames[:, _HEAD_SIZE:end]).view(f"V{end - _HEAD_SIZE}").ravel().tolist()
    crcs = np.fromiter(map(google_crc32c.value, contents), np.uint32, len(rows))
    frames[:, end:] = _mask(crcs).view(np.uint8).reshape(-1, _TAIL_SIZE)
    return frames.tobytes()


class _Header(NamedTuple):
    """The part of a frame before the ids.

    Attributes:
        data: its bytes.
        crc: CRC-32C of those that belong to the record.
    """

    data: bytes
    crc: int


@functools.lru_cache(_CACHED_SIZES)
def _make_header(size: int) -> _Header:
    """Makes the part of a frame before the ids, which take `size` bytes."""

    def make_tag(field: int, content_size: int) -> bytes:
        return bytes([field << 3 | 2]) + _encode_varint(content_size)

    header = make_tag(1, size)  # Int64List.value
    for field in (3, 2):  # Feature.int64_list; and that as the value in an entry of the map
        header = make_tag(field, len(header) + size) + header
    header = make_tag(1, len(FEATURE)) + FEATURE.encode() + header  # the key of the entry
    for _ in range(2):  # Features.feature, Example.features
        header = make_tag(1, len(header) + size) + header
    record_size = _SIZE.pack(len(header) + size)
    crc = np.array([google_crc32c.value(record_size)], np.uint32)
    return _Header(record_size + _mask(crc).tobytes() + header, google_crc32c.value(header))


def _encode_varint(number: int) -> bytes:
    digits = []
    while number >= 128:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def _mask(crcs: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Makes the checksums of a file from CRC-32Cs."""
    return ((crcs >> 15 | crcs << 17) + np.uint32(_CHECKSUM_OFFSET)).astype("<u4")


def check_file(path: Path, compression: str = "none") -> int:
    """Checks the frames and checksums of a TFRecord file.

    Returns:
        The number of records in it.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with gzip.open(path) if compression == "gzip" else open(path, "rb", buffering=_BUFFER_SIZE) as file:
            return sum(1 for _ in _iterate_records(path, file))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)}); {PREPARE_AGAIN}") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); {PREPARE_AGAIN}") from None


def split_frames(path: Path, content: bytes) -> list[bytes]:
    """Returns the records in some whole frames of the file `path`.

    Raises:
        UserError: a frame is damaged.
    """
    return list(_iterate_records(path, io.BytesIO(content)))


def _iterate_records(path: Path, file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    """Yields the records of frames, each once its checksums are found right."""
    for index in itertools.count():
        head = file.read(_HEAD_SIZE)
        if not head:
            return
        size = _SIZE.unpack_from(head)[0] if len(head) == _HEAD_SIZE else _MAX_RECORD_SIZE + 1
        is_intact = size <= _MAX_RECORD_SIZE and _unmask(head[_SIZE.size :]) == google_crc32c.value(head[: _SIZE.size])
        content = file.read(size + _TAIL_SIZE) if is_intact else b""
        record = content[:-_TAIL_SIZE]
        if len(content) != size + _TAIL_SIZE or _unmask(content[size:]) != google_crc32c.value(record):
            raise UserError(f"{path}: damaged (record {index}); {PREPARE_AGAIN}")
        yield record


def _unmask(checksum: bytes) -> int:
    """Returns the CRC-32C that `_mask` made a checksum from."""
    rotated = (_CHECKSUM.unpack(checksum)[0] - _CHECKSUM_OFFSET) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
