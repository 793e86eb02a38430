"""Any records of a split, read from the middle of its files: for data that is larger than memory."""

from __future__ import annotations

import array
import bisect
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfcharrnn.data import tfrecord_reader, tfrecord_writer
from tfcharrnn.data.examples import Examples
from tfcharrnn.errors import UserError, first_line

# ids that are read together
_CHUNK = 2**20
# bytes in which a file is looked through
_BLOCK = 2**22
# bytes between two places in a file that are remembered, about
_MARKED = 2**14
# bytes of a compressed file that are taken at once; what is left of them is kept with every mark
_ZIPPED_BLOCK = 2**14
_AGAIN = "prepare the data again"


class Shards:
    """The files of a split, as one list of records of which any stretch can be read.

    Nothing is read before it is asked for, and of what was read only where some of the records begin is kept.

    Attributes:
        counts: how many records each file has, int64 `[files]`.
        starts: which record is the first of each file, and behind the last, int64 `[files + 1]`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        vocabulary_size: int,
        count: int,
        num_symbols: int,
        lengths: tuple[int, int],
        compression: str = "none",
        translation: npt.NDArray[np.int32] | None = None,
    ):
        """Takes the files, over which the records are spread evenly.

        Args:
            paths: the files.
            vocabulary_size: ids in them must be below this.
            count: how many records there must be.
            num_symbols: how many ids they must have together.
            lengths: how many ids a record must have at least and at most.
            compression: of the files: `none` or `gzip`.
            translation: for each id in the files what stands for it; None: itself.

        Raises:
            UserError: a file is missing, or all are too short.
        """
        self.counts = np.array([count // len(paths) + (i < count % len(paths)) for i in range(len(paths))], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._vocabulary_size, self._lengths, self._translation = vocabulary_size, lengths, translation
        self._mean_length = max(1, num_symbols // max(1, count))
        sizes = tfrecord_reader.checked_sizes(paths, max(num_symbols, count), compression)
        # records of one length and one byte an id; of a text in pieces the last one is shorter
        alike, last = vocabulary_size <= 128 and lengths[0] in (1, lengths[1]), num_symbols - (count - 1) * lengths[1]
        self._files: list[_File] = []
        for path, size, number, end in zip(paths, sizes, self.counts.tolist(), self.starts[1:].tolist(), strict=True):
            content = _Plain(path, size) if compression == "none" else _Zipped(path)
            file = _File(content, number, self._mean_length, lengths[1])
            if alike and number and 0 < last <= lengths[1]:
                file.suppose(
                    tfrecord_writer.frame_size(lengths[1]),
                    tfrecord_writer.frame_size(last if end == count else lengths[1]),
                )
            self._files.append(file)

    def chunks(self, first: int, last: int) -> Iterator[Examples]:
        """The records from `first` to before `last`, in order, about a million ids at a time.

        Raises:
            UserError: a damaged file, a record of a wrong length or with a wrong id, or a wrong number of records.
        """
        size = max(1, _CHUNK // self._mean_length)
        while first < last:
            index = int(np.searchsorted(self.starts, first, side="right")) - 1
            end = min(last, first + size, int(self.starts[index + 1]))
            file, before = self._files[index], int(self.starts[index])
            content = file.frames(first - before, end - before)
            chunk = tfrecord_reader.of_frames(file.path, content, end - first, self._vocabulary_size, self._lengths)
            ids = chunk.ids if self._translation is None else self._translation[chunk.ids]
            yield Examples(ids, chunk.starts, chunk.lengths)
            first = end

    def read(self, first: int, last: int) -> Examples:
        """The same all at once."""
        return joined(list(self.chunks(first, last)))

    def text(self, first: int, last: int) -> Iterator[npt.NDArray[np.int32]]:
        """The symbols from `first` to before `last` of a text that was cut into pieces, some at a time."""
        piece = self._lengths[1]
        at = first // piece * piece
        for chunk in self.chunks(first // piece, -(-last // piece)):
            yield chunk.ids[max(0, first - at) : last - at]
            at += len(chunk.ids)


def joined(parts: Sequence[Examples]) -> Examples:
    """Examples that stand one after another, from several arrays in one."""
    if not parts:
        return Examples.side_by_side(np.empty(0, np.int32), np.empty(0, np.int64))
    lengths = np.concatenate([part.lengths for part in parts])
    return Examples.side_by_side(np.concatenate([part.ids for part in parts]), lengths)


class _File:
    """A file of records, and where some of them begin."""

    def __init__(self, content: _Plain | _Zipped, count: int, mean_length: int, max_length: int):
        """Takes the file's bytes and how many records they must be."""
        self.path = content.path
        self._content, self._count = content, count
        self._frame = 0
        # the places of every so many records, and of the end behind the last one
        self._spacing = max(1, _MARKED // mean_length)
        self._marks = array.array("q", [0])
        # a tag and ten bytes are the most that an id can take; a record that claims to be larger is damaged
        self._most = 11 * max_length + 1024

    def suppose(self, frame: int, last: int) -> None:
        """Tells how large the frames of the records are if this project wrote them; the file's size must agree."""
        if self._content.size == (self._count - 1) * frame + last:
            self._frame = frame

    def frames(self, first: int, last: int) -> bytes:
        """The records from `first` to before `last` in their frames.

        Raises:
            UserError: they are damaged, or not so many.
        """
        if self._frame:
            before, begin, end = 0, first * self._frame, min(last * self._frame, self._content.size)
        else:
            mark, end_mark = first // self._spacing, -(-last // self._spacing)
            self._look_through(end_mark)
            before, begin, end = first - mark * self._spacing, self._marks[mark], self._marks[end_mark]
        content = self._content.read(begin, end)
        skipped, start = tfrecord_reader.frames(content, 0, before)
        found, stop = tfrecord_reader.frames(content, start, last - first)
        if (skipped, found) != (before, last - first) or (self._frame and stop != len(content)):
            raise UserError(f"{self.path}: damaged (a record from byte {begin} on is cut short); {_AGAIN}")
        return content[start:stop]

    def _look_through(self, mark: int) -> None:
        """Finds the places up to a mark; each record says how long it is, so there is no other way to the next."""
        size = _BLOCK
        while len(self._marks) <= mark:
            before, begin = (len(self._marks) - 1) * self._spacing, self._marks[-1]
            content = self._content.read(begin, begin + size)
            at = 0
            while before < self._count:
                wanted = min(self._spacing, self._count - before)
                found, end = tfrecord_reader.frames(content, at, wanted)
                if found < wanted:
                    break
                at, before = end, before + wanted
                self._marks.append(begin + at)
            if before == self._count:
                if at < len(content) or self._content.read(begin + at, begin + at + 1):
                    raise UserError(f"{self.path}: more records than dataset.json counts; {_AGAIN}")
                return
            if len(content) < size or (not at and size > self._spacing * self._most):
                what = "fewer records than dataset.json counts, or " if end == len(content) else ""
                raise UserError(f"{self.path}: damaged ({what}its record at byte {begin + end} is cut short); {_AGAIN}")
            if not at:
                size *= 2


class _Plain:
    """The bytes of a file."""

    def __init__(self, path: Path, size: int):
        """Takes the file and how many bytes it has."""
        self.path, self.size = path, size

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to before `stop`; fewer at the end of the file.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:
                return b"".join(_pieces(file.fileno(), start, min(stop, self.size)))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); {_AGAIN}") from None


def _pieces(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    while start < stop and (piece := os.pread(descriptor, stop - start, start)):
        yield piece
        start += len(piece)


class _Zipped:
    """What a gzip file holds, from any place on: the state of the decompression is remembered at intervals."""

    size = -1  # not known before it is read

    def __init__(self, path: Path):
        """Takes the file."""
        self.path = path
        # for some places in what it holds: how much of the file was read up to there, and the state
        self._marks = [(0, 0, zlib.decompressobj(wbits=31))]
        self._last = self._marks[0]

    def read(self, start: int, stop: int) -> bytes:
        """See `_Plain.read`.

        Raises:
            UserError: the file cannot be read, is damaged or cut short.
        """
        mark = self._last if self._last[0] == start else self._marks[bisect.bisect(self._marks, start, key=_place) - 1]
        (at, consumed, state), pieces = mark, []
        state = state.copy()
        try:
            with open(self.path, "rb", buffering=0) as file:
                while at < stop and not state.eof:
                    block = state.unconsumed_tail or os.pread(file.fileno(), _ZIPPED_BLOCK, consumed)
                    if not block:
                        raise UserError(f"{self.path}: damaged (it is cut short); {_AGAIN}")
                    consumed += 0 if state.unconsumed_tail else len(block)
                    # up to `start`, then up to `stop`, so that what is kept begins and ends exactly there
                    piece = state.decompress(block, min(_BLOCK, (start if at < start else stop) - at))
                    if at >= start:
                        pieces.append(piece)
                    at += len(piece)
                    if at - self._marks[-1][0] >= _BLOCK:
                        self._marks.append((at, consumed, state.copy()))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); {_AGAIN}") from None
        except zlib.error as error:
            raise UserError(f"{self.path}: damaged ({first_line(error)}); {_AGAIN}") from None
        self._last = (at, consumed, state)
        return b"".join(pieces)


def _place(mark: tuple[int, int, object]) -> int:
    return mark[0]
