"""Reads the lines of a text that may exceed memory, a block of lines at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking
from tfcharrnn.preparation import input_files
from tfcharrnn.preparation.text_blocks import TextBlock

# a match of a delimiter depends on at most this many characters before and after it
MARGIN = 2**16
# type of the line lengths in a file
_LENGTH = np.dtype("<u4")


class LineBlock(Protocol):
    """Consecutive lines of a text, without the dropped ones."""

    def read(self) -> Sequence[str]:
        """Reads the lines."""


class ParsedLines(NamedTuple):
    """The lines of a block of text.

    Attributes:
        characters: number of characters of the block.
        lines: the lines to keep.
        dropped: number of dropped lines by reason, `empty` or `too_long`.
    """

    characters: int
    lines: list[str]
    dropped: dict[str, int]


@dataclasses.dataclass(frozen=True)
class InMemoryLines:
    """Lines in memory."""

    lines: list[str]

    def read(self) -> Sequence[str]:
        """Returns the lines."""
        return self.lines


@dataclasses.dataclass(frozen=True)
class WholeLines:
    """The lines of a block of text that ends with a newline, or is the last one."""

    block: TextBlock
    is_last: bool
    config: DataConfig

    def parse(self) -> ParsedLines:
        """Reads the block and splits it into lines.

        Raises:
            UserError: the file cannot be read, or is not in its encoding.
        """
        text = self.block.read(self.config)
        lines = text.split("\n")
        if not self.is_last:
            lines.pop()  # what follows the last newline is in the next block
        return ParsedLines(len(text), *chunking.filter_lines(lines, self.config))

    def read(self) -> Sequence[str]:
        """Reads the lines."""
        return self.parse().lines


def has_whole_lines(blocks: Sequence[TextBlock], config: DataConfig) -> bool:
    """Whether no line extends over two blocks, so that each block can be read as `WholeLines`.

    Raises:
        UserError: a file cannot be read.
    """
    if not chunking.is_newline(config.delimiter) or "\n" in config.drop_chars:
        return False
    return all(block.newline or _ends_with_newline(block) for block in blocks[:-1])


def _ends_with_newline(block: TextBlock) -> bool:
    with input_files.report_input_errors(block.label), open(block.path, "rb") as file:
        file.seek(block.end - 1)
        return file.read(1) == b"\n"


class LineSpan(NamedTuple):
    """Consecutive lines in the files of `write_lines`.

    Attributes:
        start: offset of their first byte.
        end: offset after their last byte.
        first: index of the first line.
        num_lines: number of lines.
    """

    start: int
    end: int
    first: int
    num_lines: int


@dataclasses.dataclass(frozen=True)
class StoredLines:
    """Lines in the files of `write_lines`."""

    path: Path
    span: LineSpan

    def read(self) -> Sequence[str]:
        """Reads the lines."""
        span = self.span
        with open(self.path, "rb") as file:
            file.seek(span.start)
            text = file.read(span.end - span.start).decode()
        lengths = np.fromfile(_lengths_path(self.path), _LENGTH, span.num_lines, offset=_LENGTH.itemsize * span.first)
        bounds = [0, *np.cumsum(lengths, dtype=np.int64).tolist()]
        return [text[start:end] for start, end in itertools.pairwise(bounds)]


@contextlib.contextmanager
def write_lines(path: Path) -> Iterator[Callable[[list[str]], LineSpan]]:
    """Gives a function that appends lines to a new file, with a second file for their lengths.

    Raises:
        UserError: the write fails.
    """
    with files.create_file(path) as write_text, files.create_file(_lengths_path(path)) as write_lengths:
        end = first = 0

        def append(lines: list[str]) -> LineSpan:
            nonlocal end, first
            data = "".join(lines).encode()
            write_text(data)
            write_lengths(np.array(list(map(len, lines)), _LENGTH).tobytes())
            span = LineSpan(end, end + len(data), first, len(lines))
            end, first = span.end, first + len(lines)
            return span

        yield append


def line_paths(path: Path) -> tuple[Path, Path]:
    """The files of `write_lines`."""
    return path, _lengths_path(path)


def _lengths_path(path: Path) -> Path:
    """The file with the lengths of the lines in `path`."""
    return path.with_name(f"{path.name}.lengths")


class LineFinder:
    """Finds the lines between matches of a regular expression, in a text that is given piece by piece.

    A match is accepted once `MARGIN` characters after it are known, since these may change it.
    """

    def __init__(self, config: DataConfig):
        self._pattern = config.compile_delimiter()
        self._config = config
        # the text in memory, and the positions in it where the search resumes and where the current line starts
        self._text, self._search, self._line = "", 0, 0
        # the start of the current line, if it is no longer in memory
        self._head = ""
        # the last match was empty, so a search from the same position finds it again
        self._repeats = False

    def add(self, text: str, *, is_last: bool) -> ParsedLines:
        """Adds a piece of the text; returns the lines that are complete since."""
        self._text += text
        with chunking.limit_search_time(self._config, len(self._text)):
            lines = self._find_lines(is_last)
        self._forget(self._search - MARGIN)
        return ParsedLines(len(text), *chunking.filter_lines(lines, self._config))

    def _find_lines(self, is_last: bool) -> list[str]:
        """Returns the lines that are complete in the text in memory."""
        known, lines = self._text, []
        limit = len(known) if is_last else len(known) - MARGIN
        unsure = limit - MARGIN
        repeats = self._repeats
        for match in self._pattern.finditer(known, self._search):
            if repeats:
                repeats = False
                continue
            if match.end() > limit:
                unsure = min(unsure, match.start())
                break
            lines.append(self._take_line(match.start()))
            self._line = self._search = match.end()
            self._repeats = match.start() == match.end()
        if is_last:
            lines.append(self._take_line(len(known)))
        elif unsure > self._search:  # no match starts before
            self._search, self._repeats = unsure, False
        return lines

    def _take_line(self, end: int) -> str:
        line = self._head + self._text[self._line : end]
        self._head = ""
        return line

    def _forget(self, end: int) -> None:
        if end <= 0:
            return
        if self._line < end:  # `max_length` characters suffice to tell that a line is too long
            self._head = (self._head + self._text[self._line : end])[: self._config.max_length]
            self._line = end
        self._text = self._text[end:]
        self._search, self._line = self._search - end, self._line - end


@dataclasses.dataclass(frozen=True)
class LinesOfSplit:
    """Consecutive lines of one split, read from the blocks that contain them.

    Attributes:
        blocks: the blocks.
        counts: number of lines of each block, of all splits.
        splits: the split of each line from the first block on; or a file with the split of every line of the text.
        first: index in that file of the first block's first line.
        split: the split.
        skip: number of its lines to skip in the first block.
        count: number of its lines to read.
    """

    blocks: Sequence[LineBlock]
    counts: Sequence[int]
    splits: npt.NDArray[np.uint8] | str
    first: int
    split: int
    skip: int
    count: int

    def __iter__(self) -> Iterator[list[str]]:
        """Reads the lines block by block."""
        first, skip, left = self.first, self.skip, self.count
        for block, count in zip(self.blocks, self.counts, strict=True):
            if isinstance(self.splits, str):
                splits = np.fromfile(self.splits, np.uint8, count, offset=first)
            else:
                splits = self.splits[first - self.first : first - self.first + count]
            first += count
            chosen = list(itertools.compress(block.read(), (splits == self.split).tolist()))
            lines = chosen[skip : skip + left]
            skip, left = 0, left - len(lines)
            yield lines
