"""From a text to the shards of a data folder: a first pass counts what it holds, a second one writes the records.

Both work in pieces that know nothing of one another, so the pieces can be made in any order and by many processes: a
piece of the first pass is some blocks of the text, one of the second is a shard, which reads the blocks that it needs.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking, tfrecord_writer
from tfcharrnn.data.examples import Examples
from tfcharrnn.data.vocabulary import Present, Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.preparation.corpora import Corpus, Source
from tfcharrnn.preparation.line_blocks import LineBlock, ListedLines, SplitLines
from tfcharrnn.preparation.process_pool import Pool
from tfcharrnn.preparation.text_blocks import BlockText, part_of

SPLITS = ("train", "val", "test")
# without --num_shards a shard has about so many bytes before it is compressed
_SHARD_BYTES = 2**27
_MAX_SHARDS = 99_999
# lines in memory that are looked at together
_LINES = 2**14


@dataclasses.dataclass(frozen=True)
class Content:
    """What a text holds.

    Attributes:
        name: of the text.
        sources: where it came from.
        characters: how many it has.
        code_points: of the characters that records will have.
        text: the text itself; None for the layout `lines`.
        lines: its lines, for that layout, in blocks.
        line_counts: how many lines each block has.
        line_characters: how many characters all lines have.
        dropped: how many lines were `empty` or `too_long`.
    """

    name: str
    sources: tuple[Source, ...]
    characters: int
    code_points: list[int]
    text: str | BlockText | None = None
    lines: Sequence[LineBlock] = ()
    line_counts: Sequence[int] = ()
    line_characters: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """What is divided into parts: lines, or characters."""
        return sum(self.line_counts) if self.text is None else len(self.text)


def content_of(corpus: Corpus, config: DataConfig) -> Content:
    """What a text in memory holds."""
    present = Present()
    whole = Content(corpus.name, corpus.sources, len(corpus.text), [])
    if config.layout != "lines":
        present.add(corpus.text)
        return dataclasses.replace(whole, text=corpus.text, code_points=present.code_points())
    lines, dropped = chunking.split_lines(corpus.text, config)
    blocks = [ListedLines(lines[start : start + _LINES]) for start in range(0, len(lines), _LINES)]
    texts = ["".join(block.lines) for block in blocks]
    for text in texts:
        present.add(text)
    counts = [len(block.lines) for block in blocks]
    characters = sum(map(len, texts))
    return dataclasses.replace(
        whole,
        code_points=present.code_points(),
        lines=blocks,
        line_counts=counts,
        line_characters=characters,
        dropped=dropped,
    )


def check_long_enough(content: Content, config: DataConfig) -> None:
    """Checks that there is something to train on.

    Raises:
        UserError: not one example.
    """
    start, end = chunking.bounds(content.size, config)[0]
    size = end - start
    if chunking.num_records(size, config):
        return
    if config.layout == "lines":
        raise UserError(
            f"{content.name}: has no line of 1 to {config.max_length - 2} characters to train on; "
            "give another text, --delimiter or --max_length"
        )
    longest = size + 1 if config.layout == "sequences" else size - 1
    raise UserError(
        f"{content.name}: its training part of {size} characters is shorter than one example; "
        + (f"give more text, or a --seq_length of at most {longest}" if longest >= 2 else "give more text")
    )


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records that is still to be written.

    Attributes:
        name: of the file.
        split: which part of the data it belongs to.
        records: how many it will have.
        part: what they are made of.
    """

    name: str
    split: str
    records: int
    part: str | BlockText | SplitLines

    def write(self, folder: Path, notes: Path | None, vocabulary: Vocabulary, config: DataConfig) -> dict[str, Any]:
        """Writes it.

        Args:
            folder: where.
            notes: where to note what was written, once it is; None: nowhere.
            vocabulary: of the text.
            config: how the text is cut.

        Returns:
            The file's size, `bytes`, and of lines how many have so many symbols, `lengths`.

        Raises:
            UserError: the text cannot be read or has changed, or the disk refuses.
        """
        lengths: collections.Counter[int] = collections.Counter()
        count = 0

        def records() -> Iterator[Examples]:
            nonlocal count
            parts = self.part if isinstance(self.part, SplitLines) else [self.part]
            for part in parts:
                if isinstance(part, list):
                    lengths.update(map(len, part))
                for examples in chunking.cut(part, vocabulary, config):
                    count += len(examples)
                    yield examples

        size = tfrecord_writer.write(folder / self.name, records(), config.compression)
        if count != self.records:
            raise UserError(f"{self.name}: the text changed while it was read; prepare it again once it is complete")
        written = {"bytes": size, "lengths": [[length + 2, times] for length, times in sorted(lengths.items())]}
        if notes:
            files.write_json(notes / f"{self.name}.json", written)
        return written


def write(
    folder: Path,
    content: Content,
    config: DataConfig,
    pool: Pool,
    *,
    notes: Path | None = None,
    splits_file: Path | None = None,
) -> dict[str, Any]:
    """Writes the shards and the vocabulary of a data folder.

    Args:
        folder: where.
        content: what the text holds.
        config: how it is cut.
        pool: who write.
        notes: a folder that says which shards are there already, and is told of new ones.
        splits_file: a file that says which part of the data each line goes to; None: that is in memory.

    Returns:
        What `dataset.json` says of the splits.

    Raises:
        UserError: the text cannot be read, or the disk refuses.
    """
    vocabulary = Vocabulary([*LAYOUTS[config.layout].special, *map(chr, content.code_points)])
    todo = list(_shards(content, config, splits_file))
    written = {shard.name: _noted(folder, notes, shard.name) for shard in todo}
    # the parts that stand in the whole of a text, as a few lines of each block, take longest; so they go first
    left = sorted((shard for shard in todo if not written[shard.name]), key=lambda shard: shard.split == "train")
    calls = [functools.partial(shard.write, folder, notes, vocabulary, config) for shard in left]
    each = [shard.records for shard in left]
    scale = _bytes(content, config) / max(1, sum(shard.records for shard in todo))
    for shard, made in zip(left, pool.run(calls, "writing", [round(n * scale) for n in each]), strict=True):
        written[shard.name] = made
    vocabulary.save(folder / "vocab.json")
    splits: dict[str, Any] = {}
    for split, (start, end) in zip(SPLITS, chunking.bounds(content.size, config), strict=True):
        names = [shard.name for shard in todo if shard.split == split]
        records = chunking.num_records(end - start, config)
        splits[split] = {"characters": end - start, "records": records, "shards": names}
        if config.layout == "lines":
            lengths: collections.Counter[int] = collections.Counter()
            for name in names:
                lengths.update(dict(written[name]["lengths"]))
            splits[split]["characters"] = sum((length - 2) * times for length, times in lengths.items())
            splits[split]["lengths"] = sorted(lengths.items())
    return splits


def shard_names(split: str, num_shards: int) -> list[str]:
    """The file names of a split: `train-00000-of-00002.tfrecord`, ..."""
    return [f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord" for shard in range(num_shards)]


def _noted(folder: Path, notes: Path | None, name: str) -> dict[str, Any]:
    """What was noted of a shard that is whole; nothing, if it is not there."""
    try:
        noted = files.read_json(notes / f"{name}.json") if notes else {}
        return noted if noted and (folder / name).stat().st_size == noted["bytes"] else {}
    except (UserError, OSError):
        return {}


def _bytes(content: Content, config: DataConfig) -> float:
    """About how many bytes the records of a text take before they are compressed."""
    records = max(1, chunking.num_records(content.size, config))
    characters = content.characters if content.text is not None else content.line_characters
    width = 1 if len(content.code_points) < 120 else 2  # most characters of a larger vocabulary
    return records * tfrecord_writer.frame_size(chunking.num_symbols(characters, records, config) * width // records)


def _shards(content: Content, config: DataConfig, splits_file: Path | None) -> Iterator[Shard]:
    """The shards of all splits, which have their records evenly and in order."""
    by_split = _lines_by_split(content, config, splits_file)
    for number, (split, (start, end)) in enumerate(zip(SPLITS, chunking.bounds(content.size, config), strict=True)):
        count = chunking.num_records(end - start, config)
        share = _bytes(content, config) * (end - start) / max(1, content.size)
        num_shards = config.num_shards or min(_MAX_SHARDS, max(1, round(share / _SHARD_BYTES)))
        names = shard_names(split, num_shards) if count else []
        first = 0
        for index, name in enumerate(names):
            records = count // num_shards + (index < count % num_shards)
            if content.text is None:
                part: str | BlockText | SplitLines = by_split.part(number, first, records)
            else:
                low, high = chunking.characters_of_records(first, first + records, end - start, config)
                part = part_of(content.text, start + low, start + high)
            first += records
            yield Shard(name, split, records, part)


@dataclasses.dataclass(frozen=True)
class _LinesBySplit:
    """Where the lines of each part of the data stand.

    Attributes:
        content: the text.
        splits: which part each line goes to, or the file with that.
        before: how many lines of each part stand before each block and after the last, `[blocks + 1, 3]`.
    """

    content: Content
    splits: npt.NDArray[np.uint8] | Path
    before: npt.NDArray[np.int64]

    def part(self, split: int, first: int, count: int) -> SplitLines:
        """Some lines of a part, with no more blocks than they need."""
        before = self.before[:, split]
        start = int(np.searchsorted(before, first, side="right")) - 1
        stop = max(start, int(np.searchsorted(before, first + count, side="left")))
        lines = slice(*self.before[[start, stop]].sum(axis=1).tolist())
        return SplitLines(
            self.content.lines[start:stop],
            self.content.line_counts[start:stop],
            str(self.splits) if isinstance(self.splits, Path) else self.splits[lines],
            lines.start,
            split,
            first - int(before[start]),
            count,
        )


def _lines_by_split(content: Content, config: DataConfig, splits_file: Path | None) -> _LinesBySplit:
    spans = list(itertools.pairwise(itertools.accumulate(content.line_counts, initial=0)))
    if splits_file is None or content.size <= chunking.SORTED_LINES:
        splits = chunking.splits_of_lines(0, content.size, content.size, config)
        blocks: Iterator[npt.NDArray[np.uint8]] = (splits[start:end] for start, end in spans)
        return _LinesBySplit(content, splits, _before(blocks))
    with files.new_file(splits_file) as write:

        def drawn() -> Iterator[npt.NDArray[np.uint8]]:
            for start, end in spans:
                block = chunking.splits_of_lines(start, end, content.size, config)
                write(block.tobytes())
                yield block

        return _LinesBySplit(content, splits_file, _before(drawn()))


def _before(blocks: Iterator[npt.NDArray[np.uint8]]) -> npt.NDArray[np.int64]:
    """How many of each part there are before each block and after the last."""
    counts = [np.bincount(block, minlength=len(SPLITS)) for block in blocks]
    return np.cumsum([[0] * len(SPLITS), *counts], axis=0)
