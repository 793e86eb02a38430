"""Random access to the records of a split, for data larger than memory."""

from __future__ import annotations

import array
import bisect
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tfcharrnn.data import tfrecord_reader, tfrecord_writer
from tfcharrnn.data.examples import Examples
from tfcharrnn.data.tfrecord_writer import PREPARE_AGAIN
from tfcharrnn.errors import UserError, first_line

# ids read at a time
_PART_SIZE = 2**20
# bytes scanned or decompressed at a time, and the distance between the saved states of a decompression
_BLOCK_SIZE = 2**22
# approximate distance in bytes between indexed records
_INDEX_SPACING = 2**14
# bytes of a gzip file read at a time; each saved state keeps what is left of them
_GZIP_BLOCK_SIZE = 2**14


class Shards:
    """The records of a split, numbered across its files.

    Nothing is read until it is needed. What stays in memory is an index of the positions of some records.

    Attributes:
        counts: number of records in each file, int64 `[files]`.
        starts: number of the first record of each file, then the number of records, int64 `[files + 1]`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        vocabulary_size: int,
        num_records: int,
        num_symbols: int,
        lengths: tuple[int, int],
        compression: str = "none",
        translation: npt.NDArray[np.int32] | None = None,
    ):
        """Opens files over which records are spread evenly.

        Args:
            paths: the files.
            vocabulary_size: every id in them must be less than this.
            num_records: expected number of records.
            num_symbols: expected number of ids.
            lengths: least and greatest number of ids in a record.
            compression: `none` or `gzip`.
            translation: the id to return for each id in the files; None: the same.

        Raises:
            UserError: a file is missing, or all together are too short.
        """
        num_files = len(paths)
        counts = [num_records // num_files + (index < num_records % num_files) for index in range(num_files)]
        self.counts = np.array(counts, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._vocabulary_size, self._lengths, self._translation = vocabulary_size, lengths, translation
        self._mean_length = max(1, num_symbols // max(1, num_records))
        sizes = tfrecord_reader.get_file_sizes(paths, max(num_symbols, num_records), compression)
        # Records of equal length, with one byte an id, have frames of equal size; the last chunk of a text is shorter.
        is_equal = vocabulary_size <= 128 and lengths[0] in (1, lengths[1])
        last_length = num_symbols - (num_records - 1) * lengths[1]
        self._files: list[_ShardFile] = []
        for path, size, count, end in zip(paths, sizes, self.counts.tolist(), self.starts[1:].tolist(), strict=True):
            content = _PlainFile(path, size) if compression == "none" else _GzipFile(path)
            file = _ShardFile(content, count, self._mean_length, lengths[1])
            if is_equal and count and 0 < last_length <= lengths[1]:
                file.try_equal_frames(
                    tfrecord_writer.frame_size(lengths[1]),
                    tfrecord_writer.frame_size(last_length if end == num_records else lengths[1]),
                )
            self._files.append(file)

    def read_parts(self, first: int, last: int) -> Iterator[Examples]:
        """Reads the records from `first` to before `last`, in order, about a million ids at a time.

        Raises:
            UserError: a damaged file, a record with a wrong length or id, or a wrong number of records.
        """
        size = max(1, _PART_SIZE // self._mean_length)
        while first < last:
            index = int(np.searchsorted(self.starts, first, side="right")) - 1
            end = min(last, first + size, int(self.starts[index + 1]))
            file, offset = self._files[index], int(self.starts[index])
            content = file.read_frames(first - offset, end - offset)
            part = tfrecord_reader.parse_frames(file.path, content, self._vocabulary_size, self._lengths)
            ids = part.ids if self._translation is None else self._translation[part.ids]
            yield Examples(ids, part.starts, part.lengths)
            first = end

    def read(self, first: int, last: int) -> Examples:
        """Reads the records from `first` to before `last` at once, with the errors of `read_parts`."""
        return concatenate(list(self.read_parts(first, last)))

    def read_text(self, first: int, last: int) -> Iterator[npt.NDArray[np.int32]]:
        """Reads the symbols from `first` to before `last` of a text whose records are chunks, a part at a time."""
        chunk_length = self._lengths[1]
        at = first // chunk_length * chunk_length
        for part in self.read_parts(first // chunk_length, -(-last // chunk_length)):
            yield part.ids[max(0, first - at) : last - at]
            at += len(part.ids)


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Concatenates parts whose examples fill their arrays."""
    if not parts:
        return Examples.from_lengths(np.empty(0, np.int32), np.empty(0, np.int64))
    lengths = np.concatenate([part.lengths for part in parts])
    return Examples.from_lengths(np.concatenate([part.ids for part in parts]), lengths)


class _ShardFile:
    """A file of records with an index of where they start."""

    def __init__(self, content: _PlainFile | _GzipFile, num_records: int, mean_length: int, max_length: int):
        self.path = content.path
        self._content, self._num_records = content, num_records
        self._frame_size = 0  # that of every record but the last, if they are equal
        # positions of every `_spacing`-th record, and at last the end of the records; extended as needed
        self._spacing = max(1, _INDEX_SPACING // mean_length)
        self._index = array.array("q", [0])
        # an id takes at most a tag and ten bytes, so a record that claims to be larger is damaged
        self._max_frame_size = 11 * max_length + 1024

    def try_equal_frames(self, frame_size: int, last_frame_size: int) -> None:
        """Assumes these frame sizes, which files of this project have, if the size of the file agrees."""
        if self._content.size == (self._num_records - 1) * frame_size + last_frame_size:
            self._frame_size = frame_size

    def read_frames(self, first: int, last: int) -> bytes:
        """Reads the frames of the records from `first` to before `last`.

        Raises:
            UserError: the file is damaged or has fewer records.
        """
        if self._frame_size:
            num_before, begin = 0, first * self._frame_size
            end = min(last * self._frame_size, self._content.size)
        else:
            entry, end_entry = first // self._spacing, -(-last // self._spacing)
            self._extend_index(end_entry)
            num_before, begin, end = first - entry * self._spacing, self._index[entry], self._index[end_entry]
        content = self._content.read(begin, end)
        before = tfrecord_reader.scan_frames(content, 0, num_before)
        wanted = tfrecord_reader.scan_frames(content, before.end, last - first)
        is_complete = (before.num_frames, wanted.num_frames) == (num_before, last - first)
        if not is_complete or (self._frame_size and wanted.end != len(content)):
            raise UserError(f"{self.path}: damaged (a record after byte {begin} is cut short); {PREPARE_AGAIN}")
        return content[before.end : wanted.end]

    def _extend_index(self, entry: int) -> None:
        """Scans the file until the index has an entry; only the size in a frame tells where the next one starts.

        Raises:
            UserError: the file is damaged or has another number of records.
        """
        size = _BLOCK_SIZE
        while len(self._index) <= entry:
            record, begin = (len(self._index) - 1) * self._spacing, self._index[-1]
            content = self._content.read(begin, begin + size)
            at = 0
            while record < self._num_records:
                wanted = min(self._spacing, self._num_records - record)
                found, end = tfrecord_reader.scan_frames(content, at, wanted)
                if found < wanted:
                    break
                at, record = end, record + wanted
                self._index.append(begin + at)
            if record == self._num_records:
                if at < len(content) or self._content.read(begin + at, begin + at + 1):
                    raise UserError(f"{self.path}: has more records than dataset.json says; {PREPARE_AGAIN}")
                return
            if len(content) < size or (not at and size > self._spacing * self._max_frame_size):
                cause = f"the record at byte {begin + end} is cut short"
                if end == len(content):
                    cause = f"fewer records than dataset.json says, or {cause}"
                raise UserError(f"{self.path}: damaged ({cause}); {PREPARE_AGAIN}")
            if not at:
                size *= 2


class _PlainFile:
    """An uncompressed file of `size` bytes."""

    def __init__(self, path: Path, size: int):
        self.path, self.size = path, size

    def read(self, start: int, stop: int) -> bytes:
        """Reads the bytes from `start` to before `stop`, or fewer at the end of the file.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:
                return b"".join(_read_blocks(file.fileno(), start, min(stop, self.size)))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); {PREPARE_AGAIN}") from None


def _read_blocks(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    while start < stop and (block := os.pread(descriptor, stop - start, start)):
        yield block
        start += len(block)


class _GzipState(NamedTuple):
    """A point in a decompression from which it can continue.

    Attributes:
        position: bytes decompressed so far.
        consumed: bytes read from the file so far.
        decompressor: its state.
    """

    position: int
    consumed: int
    decompressor: zlib._Decompress


class _GzipFile:
    """The content of a gzip file, readable from any position: the state of the decompression is saved at intervals."""

    size = -1  # unknown until all of it is decompressed

    def __init__(self, path: Path):
        self.path = path
        self._saved = [_GzipState(0, 0, zlib.decompressobj(wbits=31))]
        self._last = self._saved[0]

    def read(self, start: int, stop: int) -> bytes:
        """Reads the decompressed bytes from `start` to before `stop`, or fewer at the end of the content.

        Raises:
            UserError: the file cannot be read, is damaged or cut short.
        """
        saved = self._last
        if saved.position != start:
            saved = self._saved[bisect.bisect(self._saved, start, key=lambda state: state.position) - 1]
        position, consumed, decompressor = saved.position, saved.consumed, saved.decompressor.copy()
        parts = []
        try:
            with open(self.path, "rb", buffering=0) as file:
                while position < stop and not decompressor.eof:
                    block = decompressor.unconsumed_tail
                    if not block:
                        block = os.pread(file.fileno(), _GZIP_BLOCK_SIZE, consumed)
                        consumed += len(block)
                    if not block:
                        raise UserError(f"{self.path}: damaged (it is cut short); {PREPARE_AGAIN}")
                    # first up to `start`, then up to `stop`, so that the parts returned begin and end exactly there
                    limit = (start if position < start else stop) - position
                    part = decompressor.decompress(block, min(_BLOCK_SIZE, limit))
                    if position >= start:
                        parts.append(part)
                    position += len(part)
                    if position - self._saved[-1].position >= _BLOCK_SIZE:
                        self._saved.append(_GzipState(position, consumed, decompressor.copy()))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); {PREPARE_AGAIN}") from None
        except zlib.error as error:
            raise UserError(f"{self.path}: damaged ({first_line(error)}); {PREPARE_AGAIN}") from None
        self._last = _GzipState(position, consumed, decompressor)
        return b"".join(parts)
