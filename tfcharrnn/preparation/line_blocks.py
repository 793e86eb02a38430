"""The lines of a text that may be larger than memory, in blocks."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking
from tfcharrnn.preparation.text_blocks import Block

# a delimiter is told by so many characters before and behind it
MARGIN = 2**16
# how the length of a line is written
LENGTH = np.dtype("<u4")


class LineBlock(Protocol):
    """Some lines of a text that follow one another, dropped ones left out."""

    def read(self) -> Sequence[str]:
        """The lines."""


@dataclasses.dataclass(frozen=True)
class ListedLines:
    """Lines in memory."""

    lines: list[str]

    def read(self) -> Sequence[str]:
        """The lines."""
        return self.lines


@dataclasses.dataclass(frozen=True)
class WrittenLines:
    """Lines between two newlines, in a block that ends with one or with the text."""

    block: Block
    last: bool
    config: DataConfig

    def split(self) -> tuple[int, list[str], dict[str, int]]:
        """How many characters the block has, its lines, and how many were dropped: `empty`, and `too_long`.

        Raises:
            UserError: it cannot be read, or is not in its encoding.
        """
        text = self.block.read(self.config)
        lines = text.split("\n")
        if not self.last:
            lines.pop()  # what follows the last newline stands in the next block
        return len(text), *chunking.kept_lines(lines, self.config)

    def read(self) -> Sequence[str]:
        """The lines."""
        return self.split()[1]


def stand_in_blocks(blocks: Sequence[Block], config: DataConfig) -> bool:
    """Whether no line goes from one block into the next, so that `WrittenLines` are all lines."""
    if not chunking.is_newline(config.delimiter) or "\n" in config.drop_chars:
        return False
    return all(block.joint or _ends_a_line(block) for block in blocks[:-1])


def _ends_a_line(block: Block) -> bool:
    with open(block.path, "rb") as file:
        file.seek(block.end - 1)
        return file.read(1) == b"\n"


@dataclasses.dataclass(frozen=True)
class FoundLines:
    """Lines that a `LineFinder` found, written one after another, with a file of their lengths."""

    path: Path
    start: int
    end: int
    first: int
    count: int

    def read(self) -> Sequence[str]:
        """The lines."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            text = file.read(self.end - self.start).decode()
        lengths = np.fromfile(lengths_of(self.path), LENGTH, self.count, offset=LENGTH.itemsize * self.first)
        bounds = [0, *np.cumsum(lengths, dtype=np.int64).tolist()]
        return [text[start:end] for start, end in itertools.pairwise(bounds)]


def lengths_of(path: Path) -> Path:
    """The file of the lengths of written lines."""
    return path.with_name(f"{path.name}.lengths")


class LineFinder:
    """Finds what stands between two matches of a regular expression in a text that is given piece by piece.

    A match counts once so much of the text behind it is known that no more of it can matter: `MARGIN` characters.
    """

    def __init__(self, config: DataConfig):
        self._pattern = re.compile(config.delimiter)
        self._config = config
        # what is known of the text from some place on, where in it the search goes on, and the line begins
        self._known, self._search, self._line = "", 0, 0
        # the beginning of the line, where it is not known any more
        self._head = ""
        # the last match was empty, and is found again by a search that goes on behind it
        self._again = False

    def add(self, text: str, *, last: bool) -> tuple[list[str], dict[str, int]]:
        """More of the text, and whether it is the last of it.

        Returns:
            The lines that are known by now and were not before, and how many were dropped, as `cutting.kept_lines`.
        """
        self._known += text
        known, lines = self._known, []
        limit = len(known) if last else len(known) - MARGIN
        unsure = limit - MARGIN
        again = self._again
        for match in self._pattern.finditer(known, self._search):
            if again:
                again = False
                continue
            if match.end() > limit:
                unsure = min(unsure, match.start())
                break
            lines.append(self._take(match.start()))
            self._line = self._search = match.end()
            self._again = match.start() == match.end()
        if last:
            lines.append(self._take(len(known)))
        elif unsure > self._search:  # nothing begins before
            self._search, self._again = unsure, False
        self._forget(self._search - MARGIN)
        return chunking.kept_lines(lines, self._config)

    def _take(self, end: int) -> str:
        line = self._head + self._known[self._line : end]
        self._head = ""
        return line

    def _forget(self, end: int) -> None:
        if end <= 0:
            return
        if self._line < end:  # the beginning of a line that is too long is too long
            self._head = (self._head + self._known[self._line : end])[: self._config.max_length]
            self._line = end
        self._known = self._known[end:]
        self._search, self._line = self._search - end, self._line - end


@dataclasses.dataclass(frozen=True)
class SplitLines:
    """Lines of one part of the data, picked out of the blocks in which they stand.

    Attributes:
        blocks: those that hold them.
        counts: how many lines each block has, of all parts.
        splits: which part each line goes to, from the first line of the first block on; or a file with that.
        first: where in the file the first line of the first block stands.
        split: the part.
        skip: how many of its lines in the first block to leave out.
        count: how many to give then.
    """

    blocks: Sequence[LineBlock]
    counts: Sequence[int]
    splits: npt.NDArray[np.uint8] | str
    first: int
    split: int
    skip: int
    count: int

    def __iter__(self) -> Iterator[list[str]]:
        """The lines, a block's at a time."""
        at, skip, left = self.first, self.skip, self.count
        for block, count in zip(self.blocks, self.counts, strict=True):
            if isinstance(self.splits, str):
                splits = np.fromfile(self.splits, np.uint8, count, offset=at)
            else:
                splits = self.splits[at - self.first : at - self.first + count]
            at += count
            chosen = list(itertools.compress(block.read(), (splits == self.split).tolist()))
            lines = chosen[skip : skip + left]
            skip, left = 0, left - len(lines)
            yield lines
