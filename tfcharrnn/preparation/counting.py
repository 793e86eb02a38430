"""The first pass over a text that may be larger than memory: what it holds, in all and in each of its blocks."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data.vocabulary import Present
from tfcharrnn.preparation import input_files, line_blocks
from tfcharrnn.preparation.corpora import Input, Source
from tfcharrnn.preparation.line_blocks import LineFinder, WrittenLines
from tfcharrnn.preparation.process_pool import Call, Pool
from tfcharrnn.preparation.text_blocks import BLOCK, Block

ItemT = TypeVar("ItemT")

# blocks that are counted by one call, and bytes of files that are summed by one
_BLOCKS = 4
_SUMMED = 2**26


@dataclasses.dataclass
class Counted:
    """What some blocks hold.

    Attributes:
        characters: how many, of the whole text.
        counts: for each block how many lines it has, or, of a text that has none, characters.
        line_characters: how many characters all lines have.
        dropped: how many lines were left out, by the reason.
        code_points: of the characters that records will have.
        places: where lines that had to be searched for were written; see `lines.FoundLines`.
    """

    characters: int = 0
    counts: list[int] = dataclasses.field(default_factory=list)
    line_characters: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    code_points: list[int] = dataclasses.field(default_factory=list)
    places: list[tuple[int, int, int, int]] = dataclasses.field(default_factory=list)


def count(blocks: Sequence[Block], config: DataConfig, pool: Pool, lines_file: Path) -> Counted:
    """Counts a text.

    Args:
        blocks: all of it.
        config: how it is normalised and cut.
        pool: who read it.
        lines_file: where to write the lines that a regular expression divides, for they are found only in order.

    Raises:
        UserError: a file cannot be read or is not in its encoding, or the disk refuses.
    """
    sizes = [block.end - block.start for block in blocks]
    groups: list[Sequence[int]]
    if config.layout == "lines" and not line_blocks.stand_in_blocks(blocks, config):
        calls: list[Call[Counted]] = [functools.partial(_find_lines, blocks, config, lines_file)]
        groups = [sizes]
    elif config.layout == "lines":
        parts = [WrittenLines(block, block is blocks[-1], config) for block in blocks]
        calls = [functools.partial(_count_lines, group) for group in _in_groups(parts)]
        groups = _in_groups(sizes)
    else:
        calls = [functools.partial(_count_characters, group, config) for group in _in_groups(blocks)]
        groups = _in_groups(sizes)
    total, code_points = Counted(), set[int]()
    dropped: collections.Counter[str] = collections.Counter()
    for counted in pool.run(calls, "counting", list(map(sum, groups))):
        total.characters += counted.characters
        total.counts += counted.counts
        total.line_characters += counted.line_characters
        total.places += counted.places
        code_points.update(counted.code_points)
        dropped.update(counted.dropped)  # zeros stay, too
    return dataclasses.replace(total, code_points=sorted(code_points), dropped=dict(dropped))


def sources(found: Sequence[Input], pool: Pool) -> list[Source]:
    """The sizes and sums of plain files.

    Raises:
        UserError: a file cannot be read.
    """
    groups: list[list[Input]] = []
    weights: list[int] = []
    for file in found:
        size = Path(file.path).stat().st_size
        if groups and weights[-1] + size <= _SUMMED:
            groups[-1].append(file)
            weights[-1] += size
        else:
            groups.append([file])
            weights.append(size)
    calls = [functools.partial(_sum, group) for group in groups]
    return [source for group in pool.run(calls, "summing", weights) for source in group]


def _in_groups(items: Sequence[ItemT]) -> list[Sequence[ItemT]]:
    return [items[start : start + _BLOCKS] for start in range(0, len(items), _BLOCKS)]


def _sum(found: Sequence[Input]) -> list[Source]:
    made = []
    for file in found:
        with input_files.reading(file.label), open(file.path, "rb") as opened:
            hashing = input_files.Hashing(opened)
            while hashing.read(BLOCK):
                pass
        made.append(Source(file.name, hashing.size, hashing.sha256))
    return made


def _count_characters(blocks: Sequence[Block], config: DataConfig) -> Counted:
    present, counts = Present(), []
    for block in blocks:
        text = block.read(config)
        present.add(text)
        counts.append(len(text))
    return Counted(sum(counts), counts, code_points=present.code_points())


def _count_lines(parts: Sequence[WrittenLines]) -> Counted:
    return _gathered(part.split() for part in parts)


def _find_lines(blocks: Sequence[Block], config: DataConfig, path: Path) -> Counted:
    """Counts the lines that a regular expression divides, and writes them."""
    places = []
    with files.new_file(path) as write, files.new_file(line_blocks.lengths_of(path)) as write_lengths:

        def found() -> Iterator[tuple[int, list[str], dict[str, int]]]:
            end = first = 0
            for characters, kept, dropped in _lines_of(blocks, config):
                data = "".join(kept).encode()
                write(data)
                write_lengths(np.array(list(map(len, kept)), line_blocks.LENGTH).tobytes())
                places.append((end, end + len(data), first, len(kept)))
                end, first = end + len(data), first + len(kept)
                yield characters, kept, dropped

        counted = _gathered(found())
    return dataclasses.replace(counted, places=places)


def _lines_of(blocks: Sequence[Block], config: DataConfig) -> Iterator[tuple[int, list[str], dict[str, int]]]:
    finder = LineFinder(config)
    for block in blocks:
        text = block.read(config)
        yield len(text), *finder.add(text, last=block is blocks[-1])


def _gathered(split: Iterator[tuple[int, list[str], dict[str, int]]]) -> Counted:
    """The sum of what blocks hold: characters, lines, and how many of those were dropped."""
    present, counted = Present(), Counted()
    dropped: collections.Counter[str] = collections.Counter()
    for characters, kept, left_out in split:
        text = "".join(kept)
        present.add(text)
        counted.characters += characters
        counted.counts.append(len(kept))
        counted.line_characters += len(text)
        dropped.update(left_out)
    return dataclasses.replace(counted, dropped=dict(dropped), code_points=present.code_points())
