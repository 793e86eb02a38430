"""TFRecord files, written and checked without TensorFlow, whose import takes more memory than the work.

A record is a `tf.train.Example` with one int64 feature, `seq`: the ids of one sequence. Around each stand its size in
eight bytes, a checksum of those, and behind it a checksum of its own: CRC-32C, rotated by 15 bits and moved on by a
constant (https://www.tensorflow.org/tutorials/load_data/tfrecord).
"""

from __future__ import annotations

import functools
import gzip
import itertools
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import google_crc32c
import numpy as np
import numpy.typing as npt

from tfcharrnn.data.examples import Examples
from tfcharrnn.errors import UserError, first_line
from tfcharrnn.files import new_file

FEATURE = "seq"
# bytes of a record's frame: its size, that one's checksum, and the content's
_SIZE, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_HEAD, _TAIL = _SIZE.size + _CHECKSUM.size, _CHECKSUM.size
# no record is larger: a million ids of three bytes
_LARGEST = 2**23
# bytes that are read together
_BUFFER = 2**20
# sizes of records whose first bytes are kept at hand
_KEPT_SIZES = 2**16


def write(path: Path, records: Iterable[Examples], compression: str = "none") -> int:
    """Writes records into a TFRecord file, which appears whole and on disk, or not at all.

    Args:
        path: the file to make.
        records: in blocks; ids from 0 to 2^21 - 1.
        compression: of the file: `none` or `gzip`.

    Returns:
        The file's size in bytes.

    Raises:
        UserError: the disk refuses.
    """
    # a gzip file, of TensorFlow's level; without a time, so that equal records make equal files
    packer = zlib.compressobj(6, wbits=31) if compression == "gzip" else None
    with new_file(path) as write:
        for block in records:
            data = serialise(block)
            write(packer.compress(data) if packer else data)
        if packer:
            write(packer.flush())
    return path.stat().st_size


def serialise(records: Examples) -> bytes:
    """Records as they stand in a file, made all at once, which is far quicker.

    An id is a varint: its bits in groups of seven, the lowest first, with 128 added to every byte but the last
    (https://protobuf.dev/programming-guides/encoding). Ids are the end of the record; what comes before them depends
    on their size in bytes alone.

    Args:
        records: side by side; ids from 0 to 2^21 - 1.
    """
    ids, lengths = records.ids, records.lengths
    if not len(lengths):
        return b""
    if ids.max(initial=0) < 128:  # one byte each
        if np.all(lengths == lengths[0]):  # so all records are alike
            return _alike(ids.astype(np.uint8).reshape(len(lengths), -1))
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
        heads[size], crcs[size] = _before(size)
    contents = [content[start:end] for start, end in itertools.pairwise([0, *np.cumsum(sizes).tolist()])]
    whole = np.fromiter(map(google_crc32c.extend, crcs[sizes].tolist(), contents), np.uint32, len(sizes))
    parts: list[bytes] = [b""] * (3 * len(sizes))
    parts[::3], parts[1::3], parts[2::3] = heads[sizes].tolist(), contents, _masked(whole).view("V4").tolist()
    return b"".join(parts)


def frame_size(length: int) -> int:
    """The bytes in a file of a record of so many ids, each below 128."""
    return len(_before(length)[0]) + length + _TAIL


def _alike(rows: npt.NDArray[np.uint8]) -> bytes:
    """The same for records of one length, whose ids take a byte each: `[records, length]`."""
    before, _ = _before(rows.shape[1])
    start, end = len(before), len(before) + rows.shape[1]
    framed = np.empty((len(rows), end + _TAIL), np.uint8)
    framed[:, :start] = np.frombuffer(before, np.uint8)
    framed[:, start:end] = rows
    contents = np.ascontiguousarray(framed[:, _HEAD:end]).view(f"V{end - _HEAD}").ravel().tolist()
    crcs = np.fromiter(map(google_crc32c.value, contents), np.uint32, len(rows))
    framed[:, end:] = _masked(crcs).view(np.uint8).reshape(-1, _TAIL)
    return framed.tobytes()


@functools.lru_cache(_KEPT_SIZES)
def _before(size: int) -> tuple[bytes, int]:
    """What stands before a record's ids where they take `size` bytes, and the CRC-32C of its part in the record."""

    def field(number: int, content: int) -> bytes:  # the tag of a field that holds so many bytes
        return bytes([number << 3 | 2]) + _varint(content)

    header = field(1, size)  # Int64List.value
    for number in (3, 2):  # Feature.int64_list; and that as the value in an entry of the map
        header = field(number, len(header) + size) + header
    header = field(1, len(FEATURE)) + FEATURE.encode() + header  # the entry's key
    for _ in range(2):  # Features.feature, Example.features
        header = field(1, len(header) + size) + header
    length = _SIZE.pack(len(header) + size)
    crc = np.array([google_crc32c.value(length)], np.uint32)
    return length + _masked(crc).tobytes() + header, google_crc32c.value(header)


def _varint(number: int) -> bytes:
    digits = []
    while number >= 128:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def _masked(crcs: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return ((crcs >> 15 | crcs << 17) + np.uint32(0xA282EAD8)).astype("<u4")


def check(path: Path, compression: str = "none") -> int:
    """Reads a TFRecord file through, and keeps nothing of it.

    Returns:
        How many records it has.

    Raises:
        UserError: it is missing or damaged.
    """
    again = "prepare the data again"
    count = 0
    try:
        with gzip.open(path) if compression == "gzip" else open(path, "rb", buffering=_BUFFER) as file:
            while head := file.read(_HEAD):
                if not _is_whole(file, head):
                    raise UserError(f"{path}: damaged (record {count} of it); {again}")
                count += 1
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)}); {again}") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); {again}") from None
    return count


def _is_whole(file: IO[bytes] | gzip.GzipFile, head: bytes) -> bool:
    size = _SIZE.unpack_from(head)[0] if len(head) == _HEAD else _LARGEST + 1
    if size > _LARGEST or _unmasked(head[_SIZE.size :]) != google_crc32c.value(head[: _SIZE.size]):
        return False
    content = file.read(size + _TAIL)
    return len(content) == size + _TAIL and _unmasked(content[size:]) == google_crc32c.value(content[:size])


def _unmasked(checksum: bytes) -> int:
    rotated = (_CHECKSUM.unpack(checksum)[0] - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
