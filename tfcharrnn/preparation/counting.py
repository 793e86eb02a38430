"""The first pass over a text: counts its characters and lines, and collects the characters of its vocabulary."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.vocabulary import CharacterSet
from tfcharrnn.preparation import input_files, line_blocks
from tfcharrnn.preparation.corpora import Corpus, InputFile, Source
from tfcharrnn.preparation.line_blocks import InMemoryLines, LineBlock, LineFinder, LineSpan, ParsedLines, WholeLines
from tfcharrnn.preparation.process_pool import Call, Pool
from tfcharrnn.preparation.text_blocks import BLOCK_BYTES, LazyText, TextBlock

ItemT = TypeVar("ItemT")

# work of one call: blocks to count, bytes to hash
_BLOCKS_PER_CALL = 4
_HASHED_PER_CALL = 2**26
# lines of a text in memory that make a block
_LINES_PER_BLOCK = 2**14


@dataclasses.dataclass(frozen=True)
class CountedText:
    """A text after the first pass.

    Attributes:
        name: its name.
        sources: its inputs.
        characters: number of characters.
        code_points: code points of the characters in the records.
        text: the text; None for the layout `lines`.
        lines: for the layout `lines`, its lines in blocks.
        line_counts: number of lines of each block.
        line_characters: number of characters of all lines.
        dropped: number of dropped lines by reason, `empty` or `too_long`.
    """

    name: str
    sources: tuple[Source, ...]
    characters: int
    code_points: list[int]
    text: str | LazyText | None = None
    lines: Sequence[LineBlock] = ()
    line_counts: Sequence[int] = ()
    line_characters: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of lines or characters to divide into splits."""
        return sum(self.line_counts) if self.text is None else len(self.text)


@dataclasses.dataclass
class TextCounts:
    """Counts of some blocks of a text.

    Attributes:
        characters: number of characters.
        block_sizes: number of lines of each block or, unless the layout is `lines`, of characters.
        line_characters: number of characters of all lines.
        dropped: number of dropped lines by reason.
        code_points: code points of the characters in the records.
        line_spans: where the lines of each block were written, if a delimiter had to be searched for.
    """

    characters: int = 0
    block_sizes: list[int] = dataclasses.field(default_factory=list)
    line_characters: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    code_points: list[int] = dataclasses.field(default_factory=list)
    line_spans: list[LineSpan] = dataclasses.field(default_factory=list)


def count_corpus(corpus: Corpus, config: DataConfig) -> CountedText:
    """Counts a text in memory."""
    present = CharacterSet()
    if config.layout != "lines":
        present.add(corpus.text)
        points = present.code_points()
        return CountedText(corpus.name, corpus.sources, len(corpus.text), points, text=corpus.text)
    lines, dropped = chunking.split_lines(corpus.text, config)
    blocks = [lines[start : start + _LINES_PER_BLOCK] for start in range(0, len(lines), _LINES_PER_BLOCK)]
    characters = 0
    for block in blocks:
        text = "".join(block)
        present.add(text)
        characters += len(text)
    return CountedText(
        corpus.name,
        corpus.sources,
        len(corpus.text),
        present.code_points(),
        lines=list(map(InMemoryLines, blocks)),
        line_counts=list(map(len, blocks)),
        line_characters=characters,
        dropped=dropped,
    )


def count_blocks(blocks: Sequence[TextBlock], config: DataConfig, pool: Pool, lines_file: Path) -> TextCounts:
    """Counts a text in blocks.

    Args:
        blocks: the whole text.
        config: how it is normalised and cut.
        pool: the workers.
        lines_file: the file to write lines to if a regular expression divides them, since they must be searched for
            from the start of the text.

    Raises:
        UserError: a file cannot be read or is not in its encoding, or the write fails.
    """
    sizes = [block.end - block.start for block in blocks]
    groups: list[Sequence[int]]
    if config.layout == "lines" and not line_blocks.has_whole_lines(blocks, config):
        calls: list[Call[TextCounts]] = [functools.partial(_find_lines, blocks, config, lines_file)]
        groups = [sizes]
    elif config.layout == "lines":
        parts = [WholeLines(block, block is blocks[-1], config) for block in blocks]
        calls = [functools.partial(_count_lines, group) for group in _group(parts)]
        groups = _group(sizes)
    else:
        calls = [functools.partial(_count_characters, group, config) for group in _group(blocks)]
        groups = _group(sizes)
    total, code_points = TextCounts(), set[int]()
    dropped: collections.Counter[str] = collections.Counter()
    for counts in pool.run(calls, "counting", list(map(sum, groups))):
        total.characters += counts.characters
        total.block_sizes += counts.block_sizes
        total.line_characters += counts.line_characters
        total.line_spans += counts.line_spans
        code_points.update(counts.code_points)
        dropped.update(counts.dropped)  # keeps zeros
    return dataclasses.replace(total, code_points=sorted(code_points), dropped=dict(dropped))


def hash_files(inputs: Sequence[InputFile], pool: Pool) -> list[Source]:
    """Measures and hashes plain files.

    Raises:
        UserError: a file cannot be read.
    """
    groups: list[list[InputFile]] = []
    sizes: list[int] = []
    for file in inputs:
        size = Path(file.path).stat().st_size
        if groups and sizes[-1] + size <= _HASHED_PER_CALL:
            groups[-1].append(file)
            sizes[-1] += size
        else:
            groups.append([file])
            sizes.append(size)
    calls = [functools.partial(_hash_group, group) for group in groups]
    return [source for group in pool.run(calls, "hashing", sizes) for source in group]


def _group(items: Sequence[ItemT]) -> list[Sequence[ItemT]]:
    return [items[start : start + _BLOCKS_PER_CALL] for start in range(0, len(items), _BLOCKS_PER_CALL)]


def _hash_group(inputs: Sequence[InputFile]) -> list[Source]:
    sources = []
    for file in inputs:
        with input_files.report_input_errors(file.label), open(file.path, "rb") as opened:
            hashing = input_files.HashingReader(opened)
            while hashing.read(BLOCK_BYTES):
                pass
        sources.append(Source(file.name, hashing.size, hashing.sha256))
    return sources


def _count_characters(blocks: Sequence[TextBlock], config: DataConfig) -> TextCounts:
    present, sizes = CharacterSet(), []
    for block in blocks:
        text = block.read(config)
        present.add(text)
        sizes.append(len(text))
    return TextCounts(sum(sizes), sizes, code_points=present.code_points())


def _count_lines(parts: Sequence[WholeLines]) -> TextCounts:
    return _sum_lines(part.parse() for part in parts)


def _find_lines(blocks: Sequence[TextBlock], config: DataConfig, path: Path) -> TextCounts:
    """Counts and writes the lines that a regular expression divides."""
    spans = []
    with line_blocks.write_lines(path) as append:

        def find() -> Iterator[ParsedLines]:
            finder = LineFinder(config)
            for block in blocks:
                parsed = finder.add(block.read(config), is_last=block is blocks[-1])
                spans.append(append(parsed.lines))
                yield parsed

        counts = _sum_lines(find())
    return dataclasses.replace(counts, line_spans=spans)


def _sum_lines(blocks: Iterator[ParsedLines]) -> TextCounts:
    present, counts = CharacterSet(), TextCounts()
    dropped: collections.Counter[str] = collections.Counter()
    for block in blocks:
        text = "".join(block.lines)
        present.add(text)
        counts.characters += block.characters
        counts.block_sizes.append(len(block.lines))
        counts.line_characters += len(text)
        dropped.update(block.dropped)
    return dataclasses.replace(counts, dropped=dict(dropped), code_points=present.code_points())
