"""The second pass over a text: cuts it into records and writes them as the shards of a data folder.

Every shard is written by a call of its own, which reads only the blocks of text that it needs, so that
shards can be written in any order and by many processes.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfcharrnn import files
from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking, tfrecord_writer
from tfcharrnn.data.dataset import SPLITS, shard_names
from tfcharrnn.data.examples import Examples
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.preparation.counting import CountedText
from tfcharrnn.preparation.line_blocks import LinesOfSplit
from tfcharrnn.preparation.notes import FileContent, describe_file, read_note, write_note
from tfcharrnn.preparation.process_pool import Pool
from tfcharrnn.preparation.staging import StagingFolder
from tfcharrnn.preparation.text_blocks import LazyText

# approximate size of an uncompressed shard without --num_shards
_SHARD_BYTES = 2**27
_MAX_SHARDS = 99_999


def check_long_enough(text: CountedText, config: DataConfig) -> None:
    """Checks that the training split has at least one example.

    Raises:
        UserError: it has none.
    """
    start, end = chunking.split_bounds(text.size, config)[0]
    size = end - start
    if chunking.count_records(size, config):
        return
    if config.layout == "lines":
        raise UserError(
            f"{text.name}: has no line of 1 to {config.max_length - 2} characters to train on; "
            "pass another text, --delimiter or --max_length"
        )
    longest = size + 1 if config.layout == "sequences" else size - 1
    raise UserError(
        f"{text.name}: its training split of {size} characters is shorter than one example; "
        + (f"pass more text, or a --seq_length of at most {longest}" if longest >= 2 else "pass more text")
    )


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """A shard to be written.

    Attributes:
        name: its file name.
        split: its split.
        records: number of records.
        part: the text or lines that they are cut from.
    """

    name: str
    split: str
    records: int
    part: str | LazyText | LinesOfSplit

    def write(self, folder: Path, notes: Path | None, vocabulary: Vocabulary, config: DataConfig) -> dict[str, Any]:
        """Writes the shard.

        Args:
            folder: the data folder.
            notes: the folder for a note on the complete shard; None: no note.
            vocabulary: the vocabulary of the text.
            config: how the text is cut.

        Returns:
            `lengths`, pairs of a length in symbols and the number of lines of it, and `content` of the file, if noted.

        Raises:
            UserError: the text cannot be read or has changed, or the write fails.
        """
        lengths: collections.Counter[int] = collections.Counter()
        count = 0

        def cut() -> Iterator[Examples]:
            nonlocal count
            parts = self.part if isinstance(self.part, LinesOfSplit) else [self.part]
            for part in parts:
                if isinstance(part, list):
                    lengths.update(map(len, part))
                for records in chunking.cut_records(part, vocabulary, config):
                    count += len(records)
                    yield records

        tfrecord_writer.write_records(folder / self.name, cut(), config.compression)
        if count != self.records:
            raise UserError(f"{self.name}: the text changed while it was read; prepare it again once it is complete")
        written: dict[str, Any] = {"lengths": [[length + 2, times] for length, times in sorted(lengths.items())]}
        if notes:
            written["content"] = describe_file(folder / self.name)
            write_note(_note_path(notes, self.name), written)
        return written


def write_shards(
    folder: Path, text: CountedText, config: DataConfig, pool: Pool, staging: StagingFolder | None = None
) -> dict[str, Any]:
    """Writes the shards and the vocabulary of a data folder.

    Args:
        folder: the data folder.
        text: the text.
        config: how it is cut.
        pool: the workers.
        staging: notes which shards are complete; None: all of them are written.

    Returns:
        The description of the splits in `dataset.json`.

    Raises:
        UserError: the text cannot be read, or the write fails.
    """
    vocabulary = Vocabulary([*LAYOUTS[config.layout].special, *map(chr, text.code_points)], of_bytes=config.of_bytes)
    shards = list(_plan_shards(text, config, staging.splits_file if staging else None))
    notes = staging.path if staging else None
    written = _read_complete(folder, [shard.name for shard in shards], staging) if staging else {}
    # `val` and `test` first: where they have a few lines of every block, a shard of theirs takes longest
    missing = sorted((shard for shard in shards if shard.name not in written), key=lambda shard: shard.split == "train")
    calls = [functools.partial(shard.write, folder, notes, vocabulary, config) for shard in missing]
    scale = _estimate_bytes(text, config) / max(1, sum(shard.records for shard in shards))
    sizes = [round(shard.records * scale) for shard in missing]
    for shard, result in zip(missing, pool.run(calls, "writing", sizes), strict=True):
        written[shard.name] = result
    vocabulary.save(folder / "vocab.json")
    splits: dict[str, Any] = {}
    for split, (start, end) in zip(SPLITS, chunking.split_bounds(text.size, config), strict=True):
        names = [shard.name for shard in shards if shard.split == split]
        records = chunking.count_records(end - start, config)
        splits[split] = {"characters": end - start, "records": records, "shards": names}
        if config.layout == "lines":
            lengths: collections.Counter[int] = collections.Counter()
            for name in names:
                lengths.update(dict(written[name]["lengths"]))
            splits[split]["characters"] = sum((length - 2) * times for length, times in lengths.items())
            splits[split]["lengths"] = sorted(lengths.items())
    return splits


def _note_path(notes: Path, name: str) -> Path:
    return notes / f"{name}.json"


def _read_complete(folder: Path, names: list[str], staging: StagingFolder) -> dict[str, dict[str, Any]]:
    """Reads the notes on the shards that are complete and intact."""

    def parse(value: dict[str, Any]) -> dict[str, Any]:
        lengths = [[int(length), int(times)] for length, times in value["lengths"]]
        return {"lengths": lengths, "content": FileContent(*value["content"])}

    read = {name: read_note(_note_path(staging.path, name), parse) for name in names}
    noted = {name: note for name, note in read.items() if note}
    intact = staging.are_intact({folder / name: note["content"] for name, note in noted.items()})
    return dict(itertools.compress(noted.items(), intact))


def _estimate_bytes(text: CountedText, config: DataConfig) -> float:
    """Estimates the uncompressed size of all records in bytes."""
    records = max(1, chunking.count_records(text.size, config))
    characters = text.characters if text.text is not None else text.line_characters
    width = 1 if len(text.code_points) < 120 else 2  # of most ids, in bytes
    return records * tfrecord_writer.frame_size(chunking.count_symbols(characters, records, config) * width // records)


def _plan_shards(text: CountedText, config: DataConfig, splits_file: Path | None) -> Iterator[PlannedShard]:
    """Divides the records of each split evenly among its shards, in order."""
    lines = _locate_lines(text, config, splits_file)
    for index, (split, (start, end)) in enumerate(zip(SPLITS, chunking.split_bounds(text.size, config), strict=True)):
        count = chunking.count_records(end - start, config)
        share = _estimate_bytes(text, config) * (end - start) / max(1, text.size)
        num_shards = config.num_shards or min(_MAX_SHARDS, max(1, round(share / _SHARD_BYTES)))
        first = 0
        for shard, name in enumerate(shard_names(split, num_shards) if count else []):
            records = count // num_shards + (shard < count % num_shards)
            if text.text is None:
                part: str | LazyText | LinesOfSplit = lines.select(index, first, records)
            else:
                low, high = chunking.locate_records(first, first + records, end - start, config)
                part = _slice_text(text.text, start + low, start + high)
            first += records
            yield PlannedShard(name, split, records, part)


def _slice_text(text: str | LazyText, start: int, stop: int) -> str | LazyText:
    return text[start:stop] if isinstance(text, str) else text.part(start, stop)


@dataclasses.dataclass(frozen=True)
class _LineSplits:
    """The split of every line of a text.

    Attributes:
        text: the text.
        splits: the split of each line, `[lines]`; or a file with them.
        before: number of lines of each split before each block and after the last, `[blocks + 1, splits]`.
    """

    text: CountedText
    splits: npt.NDArray[np.uint8] | Path
    before: npt.NDArray[np.int64]

    def select(self, split: int, first: int, count: int) -> LinesOfSplit:
        """Returns `count` lines of a split from `first` on, with only the blocks that contain them."""
        before = self.before[:, split]
        start = int(np.searchsorted(before, first, side="right")) - 1
        stop = max(start, int(np.searchsorted(before, first + count, side="left")))
        lines = slice(*self.before[[start, stop]].sum(axis=1).tolist())
        return LinesOfSplit(
            self.text.lines[start:stop],
            self.text.line_counts[start:stop],
            str(self.splits) if isinstance(self.splits, Path) else self.splits[lines],
            lines.start,
            split,
            first - int(before[start]),
            count,
        )


def _locate_lines(text: CountedText, config: DataConfig, splits_file: Path | None) -> _LineSplits:
    """Assigns the lines of a text to splits; with very many lines, writes the assignment to a file."""
    bounds = list(itertools.pairwise(itertools.accumulate(text.line_counts, initial=0)))
    if splits_file is None or text.size <= chunking.SORTED_LINES:
        splits = chunking.assign_lines_to_splits(0, text.size, text.size, config)
        return _LineSplits(text, splits, _accumulate_splits(splits[start:end] for start, end in bounds))
    with files.create_file(splits_file) as write:

        def assign() -> Iterator[npt.NDArray[np.uint8]]:
            for start, end in bounds:
                block = chunking.assign_lines_to_splits(start, end, text.size, config)
                write(block.tobytes())
                yield block

        return _LineSplits(text, splits_file, _accumulate_splits(assign()))


def _accumulate_splits(blocks: Iterator[npt.NDArray[np.uint8]]) -> npt.NDArray[np.int64]:
    """Returns the number of lines of each split before each block and after the last, `[blocks + 1, splits]`."""
    counts = [np.bincount(block, minlength=len(SPLITS)) for block in blocks]
    return np.cumsum([[0] * len(SPLITS), *counts], axis=0)
