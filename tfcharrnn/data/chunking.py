"""Divides a text into splits, and cuts a split into records."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tfcharrnn import portability, rng
from tfcharrnn.config import DataConfig
from tfcharrnn.data.examples import STREAM_CHUNK, Examples, cut_stream, make_evaluation_examples
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import ConfigError, UserError, shorten
from tfcharrnn.layouts import PAD, START

# characters in a record of the layouts `stream` and `windows`, which are cut into examples when they are read
CHUNK_LENGTH = 4096
# characters that are encoded and cut at a time
_BATCH = 2**18
# up to this many lines, their random order is a permutation held in memory
SORTED_LINES = 2**22
# seconds of CPU time that searching for a delimiter may take, and more for each character
_SEARCH_SECONDS = 10.0
_SEARCH_SECONDS_PER_CHARACTER = 1e-6


class SliceableText(Protocol):
    """A text, in memory or on disk, of which parts can be read."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> str: ...


# part of a text: a stretch of it, or for the layout `lines` its lines
Part = str | list[str]


def split_bounds(size: int, config: DataConfig) -> list[tuple[int, int]]:
    """Returns where the training, validation and test split of `size` items begin and end, in this order."""
    val = math.floor(size * config.val_fraction)
    test = math.floor(size * config.test_fraction)
    return [(0, size - val - test), (size - val - test, size - test), (size - test, size)]


def assign_lines_to_splits(first: int, last: int, count: int, config: DataConfig) -> npt.NDArray[np.uint8]:
    """Assigns lines to splits at random, since they may be sorted; the assignment is the same every time.

    Args:
        first: first line to assign.
        last: line after the last one to assign.
        count: lines in all.
        config: fractions of the splits.

    Returns:
        0 (training), 1 (validation) or 2 (test) for each line, `[last - first]`.
    """
    ends = [end for _, end in split_bounds(count, config)]
    if ends[0] == count:
        return np.zeros(last - first, np.uint8)
    if count <= SORTED_LINES:
        ranks = np.empty(count, np.int64)
        ranks[rng.permutation(count, 0, rng.Purpose.SPLIT, 0)] = np.arange(count)
        ranks = ranks[first:last]
    else:
        ranks = rng.permute_range(first, last, count, 0, rng.Purpose.SPLIT, 0)
    return np.searchsorted(ends[:2], ranks, side="right").astype(np.uint8)


def is_newline(delimiter: str) -> bool:
    """Returns whether lines are separated by newlines."""
    return delimiter in (r"\n", "\n")


def split_lines(text: str, config: DataConfig) -> tuple[list[str], dict[str, int]]:
    """Splits a text at `--delimiter`.

    Returns:
        The lines to keep, and how many were dropped because they were `empty` or `too_long`.
    """
    if is_newline(config.delimiter):
        return filter_lines(text.split("\n"), config)
    ends, starts = [], [0]
    with limit_search_time(config, len(text)):
        for match in config.compile_delimiter().finditer(text):
            ends.append(match.start())
            starts.append(match.end())
    ends.append(len(text))
    return filter_lines([text[start:end] for start, end in zip(starts, ends, strict=True)], config)


@contextlib.contextmanager
def limit_search_time(config: DataConfig, size: int) -> Iterator[None]:
    """Limits the time to search a text for matches of `--delimiter`, since some patterns would take centuries.

    Outside the main thread, where Python allows no signal handlers, and on systems without timers there is no limit.

    Args:
        config: names the delimiter.
        size: number of characters of the text.

    Raises:
        UserError: the search took too long; raised within the body.
    """
    if threading.current_thread() is not threading.main_thread() or not portability.has_timers():
        yield
        return

    def stop(*_: object) -> None:
        raise UserError(
            f"--delimiter={shorten(config.delimiter)}: searching {size:,} characters for it took too long; simplify "
            "it: a repeat within a repeat, as in (a+)+, can take exponential time"
        )

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, _SEARCH_SECONDS + size * _SEARCH_SECONDS_PER_CHARACTER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def filter_lines(lines: list[str], config: DataConfig) -> tuple[list[str], dict[str, int]]:
    """Drops empty lines and lines longer than `--max_length`.

    Returns:
        The other lines, and how many were `empty` or `too_long`.
    """
    longest = config.max_length - 2
    nonempty = list(filter(None, lines))
    kept = nonempty
    if max(map(len, nonempty), default=0) > longest:
        kept = [line for line in nonempty if len(line) <= longest]
    return kept, {"empty": len(lines) - len(nonempty), "too_long": len(nonempty) - len(kept)}


def count_records(size: int, config: DataConfig) -> int:
    """Returns how many records are cut from `size` characters or lines; 0 if they do not make one example."""
    if config.layout == "sequences":
        return count_sequences(size, config.seq_length, config.overlap)
    if config.layout == "lines":
        return size
    return -(-size // CHUNK_LENGTH) if size > config.seq_length else 0


def locate_records(first: int, last: int, size: int, config: DataConfig) -> tuple[int, int]:
    """Returns where the characters of the records from `first` to before `last` begin and end.

    Args:
        first: first record.
        last: record after the last one.
        size: characters in the split.
        config: how the split is cut.
    """
    if first == last:
        return 0, 0
    if config.layout == "sequences":
        step = sequence_stride(config.seq_length, config.overlap)
        return first * step, (last - 1) * step + config.seq_length - 1
    return first * CHUNK_LENGTH, min(last * CHUNK_LENGTH, size)


def cut_records(part: Part | SliceableText, vocabulary: Vocabulary, config: DataConfig) -> Iterator[Examples]:
    """Cuts a split into records, a batch at a time, so that its ids are never in memory all together."""
    if isinstance(part, list):
        return _cut_lines(part, vocabulary)
    return _cut_sequences(part, vocabulary, config) if config.layout == "sequences" else _cut_chunks(part, vocabulary)


def record_length_bounds(config: DataConfig) -> tuple[int, int]:
    """Returns the least and the greatest number of symbols in a record."""
    if config.layout == "sequences":
        return config.seq_length, config.seq_length
    return (3, config.max_length) if config.layout == "lines" else (1, CHUNK_LENGTH)


def count_symbols(characters: int, records: int, config: DataConfig) -> int:
    """Returns the number of symbols in all records of a split."""
    if config.layout == "sequences":
        return records * config.seq_length
    return characters + 2 * records if config.layout == "lines" else characters * (records > 0)


def join_characters(records: Examples, vocabulary: Vocabulary, config: DataConfig) -> npt.NDArray[np.int32]:
    """Returns the characters of a split in order, each once, although sequences overlap; of lines also their ends."""
    if config.layout == "lines":
        kept = [i for i, symbol in enumerate(vocabulary.symbols) if symbol not in (PAD, START)]
        return records.ids[np.isin(records.ids, kept)]
    if config.layout != "sequences" or not len(records):
        return records.ids
    step = sequence_stride(config.seq_length, config.overlap)
    rows = records.pad()
    return np.concatenate([rows[0, 1:-step], rows[:, -step:].ravel()])


def make_stream_examples(ids: npt.NDArray[np.int32], start_id: int | None, size: int = STREAM_CHUNK) -> Examples:
    """Cuts a text, with one `<S>` before it unless `start_id` is None, into examples to be read as one stream.

    Args:
        ids: the text, `[characters]`.
        start_id: the id of `<S>`.
        size: predictions in an example.
    """
    return cut_stream(ids if start_id is None else np.concatenate([np.array([start_id], np.int32), ids]), size)


def make_window_examples(ids: npt.NDArray[np.int32], size: int, start_id: int | None) -> Examples:
    """Cuts a text into windows of `size` predictions, to be read each on its own; see `make_stream_examples`."""
    return cut_stream(ids, size) if start_id is None else _cut_all_sequences(ids, size + 1, start_id)


def encode_text(text: str, vocabulary: Vocabulary, config: DataConfig, name: str) -> Examples:
    """Cuts a text into examples that predict each of its characters once.

    In the layouts without `<S>` the first character, or the first window, is not predicted.

    Raises:
        UserError: characters outside the vocabulary.
    """
    if config.layout == "lines":
        lines, _ = split_lines(text, config)
        return encode_lines(lines, vocabulary, name)
    ids = vocabulary.encode(text, name)
    if config.layout == "sequences":
        return _cut_all_sequences(ids, config.seq_length, vocabulary.start_id)
    return make_evaluation_examples(Examples.from_lengths(ids, np.array([len(ids)])), config)


def encode_lines(lines: list[str], vocabulary: Vocabulary, name: str = "text") -> Examples:
    """Encodes each line as `<S>`, its characters, and `</S>` if the vocabulary has it.

    Raises:
        UserError: characters outside the vocabulary.
    """
    num_special = 1 + (vocabulary.end_id is not None)
    lengths = np.fromiter(map(len, lines), np.int64, len(lines)) + num_special
    ids = np.full(lengths.sum(), vocabulary.start_id, np.int32)
    result = Examples.from_lengths(ids, lengths)
    is_character = np.ones(len(ids), bool)
    is_character[result.starts] = False
    if vocabulary.end_id is not None:
        ends = result.starts + lengths - 1
        ids[ends] = vocabulary.end_id
        is_character[ends] = False
    ids[is_character] = vocabulary.encode("".join(lines), name)
    return result


def check_overlap(config: DataConfig) -> None:
    """Checks that consecutive sequences start at different characters.

    Raises:
        ConfigError: they do not.
    """
    if config.layout == "sequences":
        sequence_stride(config.seq_length, config.overlap)


def sequence_stride(seq_length: int, overlap: float) -> int:
    """Returns the distance between sequences in characters: seq_length - 1 - ceil(overlap * (seq_length - 1)).

    The product is exact for the decimal number that the user wrote, so that 0.07 of 100 is 7 and not a little more.

    Raises:
        ConfigError: the distance is less than one character.
    """
    characters = seq_length - 1
    step = characters - math.ceil(Fraction(repr(float(overlap))) * characters)
    if step < 1:
        raise ConfigError(
            f"--overlap={overlap}: the next sequence would repeat all {characters} characters of a sequence; "
            "use a smaller overlap or a larger --seq_length"
        )
    return step


def count_sequences(num_characters: int, seq_length: int, overlap: float) -> int:
    """Returns the number of sequences that `cut_sequences` cuts."""
    rest = num_characters - (seq_length - 1)
    return rest // sequence_stride(seq_length, overlap) + 1 if rest >= 0 else 0


def cut_sequences(ids: npt.NDArray[np.int32], seq_length: int, overlap: float, start_id: int) -> npt.NDArray[np.int32]:
    """Cuts a text into overlapping sequences, each with `<S>` before its characters.

    Args:
        ids: the text, `[characters]`.
        seq_length: symbols in a sequence, including `<S>`.
        overlap: share of the characters that the next sequence repeats.
        start_id: the id of `<S>`.

    Returns:
        `[sequences, seq_length]`; an incomplete last sequence is dropped.
    """
    characters, step = seq_length - 1, sequence_stride(seq_length, overlap)
    if len(ids) < characters:
        return np.zeros((0, seq_length), np.int32)
    spans = np.lib.stride_tricks.sliding_window_view(ids, characters)[::step]
    return np.concatenate([np.full((len(spans), 1), start_id, np.int32), spans], axis=1)


def _cut_all_sequences(ids: npt.NDArray[np.int32], seq_length: int, start_id: int) -> Examples:
    """Cuts a text into sequences without overlap, and keeps an incomplete last one."""
    characters = seq_length - 1
    count = -(-len(ids) // characters)
    padded = np.full(count * characters, start_id, np.int32)
    padded[: len(ids)] = ids
    examples = Examples.from_rows(cut_sequences(padded, seq_length, 0.0, start_id))
    if count:
        examples.lengths[-1] -= count * characters - len(ids)
    return examples


def _cut_sequences(text: SliceableText, vocabulary: Vocabulary, config: DataConfig) -> Iterator[Examples]:
    step = sequence_stride(config.seq_length, config.overlap)
    count = count_sequences(len(text), config.seq_length, config.overlap)
    size = max(1, _BATCH // config.seq_length)
    for first in range(0, count, size):
        last = min(first + size, count) - 1
        ids = vocabulary.encode(text[first * step : last * step + config.seq_length - 1])
        yield Examples.from_rows(cut_sequences(ids, config.seq_length, config.overlap, vocabulary.start_id))


def _cut_chunks(text: SliceableText, vocabulary: Vocabulary) -> Iterator[Examples]:
    for start in range(0, len(text), _BATCH):
        ids = vocabulary.encode(text[start : start + _BATCH])
        starts = np.arange(0, len(ids), CHUNK_LENGTH, dtype=np.int64)
        yield Examples(ids, starts, np.minimum(CHUNK_LENGTH, len(ids) - starts))


def _cut_lines(lines: list[str], vocabulary: Vocabulary) -> Iterator[Examples]:
    ends = np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines)))
    first = size = 0
    while first < len(lines):
        last = max(first + 1, int(np.searchsorted(ends, size + _BATCH, side="right")))
        yield encode_lines(lines[first:last], vocabulary)
        first, size = last, int(ends[last - 1])
