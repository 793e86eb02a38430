"""How a text is divided into splits and cut into records, and records into examples, for each layout."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from tfcharrnn import rng
from tfcharrnn.config import DataConfig
from tfcharrnn.data.examples import Examples
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import ConfigError
from tfcharrnn.layouts import LAYOUTS, PAD, START
from tfcharrnn.preparation.text_blocks import BlockText

# one part of a text: a piece of it, or for the layout `lines` its lines
Part = str | list[str]

# a record of the layouts that are cut only when they are read
PIECE = 4096
# ids that are encoded and cut together
_BLOCK = 2**18
# up to so many lines, their order is drawn by sorting random numbers, which are in memory
SORTED_LINES = 2**22


def bounds(size: int, config: DataConfig) -> list[tuple[int, int]]:
    """Where training, validation and test part of `size` things begin and end, in this order."""
    val = math.floor(size * config.val_fraction)
    test = math.floor(size * config.test_fraction)
    return [(0, size - val - test), (size - val - test, size - test), (size - test, size)]


def splits_of_lines(first: int, last: int, count: int, config: DataConfig) -> npt.NDArray[np.uint8]:
    """Which part each line goes to: lines, which may well be sorted, go to the parts at random, each time the same.

    Args:
        first: the first line that is asked for.
        last: the one after the last.
        count: how many there are in all.
        config: how they are divided.

    Returns:
        0, 1 or 2, for training, validation and test, `[last - first]`.
    """
    ends = [end for _, end in bounds(count, config)]
    if ends[0] == count:
        return np.zeros(last - first, np.uint8)
    if count <= SORTED_LINES:
        places = np.empty(count, np.int64)
        places[rng.permutation(count, 0, rng.Purpose.SPLIT, 0)] = np.arange(count)
        places = places[first:last]
    else:
        places = rng.scrambled(first, last, count, 0, rng.Purpose.SPLIT, 0)
    return np.searchsorted(ends[:2], places, side="right").astype(np.uint8)


def is_newline(delimiter: str) -> bool:
    """Whether lines stand between newlines."""
    return delimiter in (r"\n", "\n")


def split_lines(text: str, config: DataConfig) -> tuple[list[str], dict[str, int]]:
    """What stands between two matches of `--delimiter`, and how many were dropped: `empty`, and `too_long`."""
    if is_newline(config.delimiter):
        return kept_lines(text.split("\n"), config)
    ends, starts = [], [0]
    for match in re.finditer(config.delimiter, text):
        ends.append(match.start())
        starts.append(match.end())
    ends.append(len(text))
    return kept_lines([text[start:end] for start, end in zip(starts, ends, strict=True)], config)


def kept_lines(lines: list[str], config: DataConfig) -> tuple[list[str], dict[str, int]]:
    """Lines without those that are dropped, and how many these are: `empty`, and `too_long`."""
    longest = config.max_length - 2
    full = list(filter(None, lines))
    kept = full
    if max(map(len, full), default=0) > longest:
        kept = [line for line in full if len(line) <= longest]
    return kept, {"empty": len(lines) - len(full), "too_long": len(full) - len(kept)}


def num_records(size: int, config: DataConfig) -> int:
    """How many records `cut` makes of a part of so many characters or lines; 0 if it has not one example."""
    if config.layout == "sequences":
        return num_sequences(size, config.seq_length, config.overlap)
    if config.layout == "lines":
        return size
    return -(-size // PIECE) if size > config.seq_length else 0


def characters_of_records(first: int, last: int, size: int, config: DataConfig) -> tuple[int, int]:
    """Where in a part of `size` characters the characters of its records `first` to `last` (left out) begin and end."""
    if first == last:
        return 0, 0
    if config.layout == "sequences":
        step = stride(config.seq_length, config.overlap)
        return first * step, (last - 1) * step + config.seq_length - 1
    return first * PIECE, min(last * PIECE, size)


def cut(part: Part | BlockText, vocabulary: Vocabulary, config: DataConfig) -> Iterator[Examples]:
    """The records of a part, in blocks, so that the ids of the whole are never in memory."""
    if isinstance(part, list):
        return _cut_lines(part, vocabulary)
    return _cut_sequences(part, vocabulary, config) if config.layout == "sequences" else _cut_pieces(part, vocabulary)


def record_lengths(config: DataConfig) -> tuple[int, int]:
    """How many symbols a record has at least and at most."""
    if config.layout == "sequences":
        return config.seq_length, config.seq_length
    return (3, config.max_length) if config.layout == "lines" else (1, PIECE)


def num_symbols(characters: int, records: int, config: DataConfig) -> int:
    """How many symbols all records of a part have together."""
    if config.layout == "sequences":
        return records * config.seq_length
    return characters + 2 * records if config.layout == "lines" else characters * (records > 0)


def examples(records: Examples, config: DataConfig) -> Examples:
    """The training examples in the records of a split: windows are cut here, elsewhere an example is a record."""
    return windows(records.ids, config.seq_length, config.stride) if config.layout == "windows" else records


def num_examples(characters: int, records: int, config: DataConfig) -> int:
    """How many examples `examples` gives for so many records of so many characters."""
    return max(0, -(-(characters - config.seq_length) // config.stride)) if config.layout == "windows" else records


def windows(ids: npt.NDArray[np.int32], seq_length: int, stride: int) -> Examples:
    """Spans of `seq_length` characters and the one that follows, each `stride` characters after the one before."""
    starts = np.arange(0, len(ids) - seq_length, stride, dtype=np.int64)
    return Examples(ids, starts, np.full(len(starts), seq_length + 1, np.int64))


def predicted_once(records: Examples, config: DataConfig) -> Examples:
    """The examples of a split in which no character is predicted twice, for measuring a loss.

    A stream is one example after another, for a model that carries its state from each to the next.
    """
    if config.layout == "windows":
        return windows(records.ids, config.seq_length, 1)
    return stream_pieces(records.ids) if LAYOUTS[config.layout].carries_state else records


def stream_pieces(ids: npt.NDArray[np.int32], piece: int = 1024) -> Examples:
    """A text in pieces of `piece` predictions, each beginning with the character that the one before it ends with."""
    starts = np.arange(0, max(len(ids) - 1, 0), piece, dtype=np.int64)
    return Examples(ids, starts, np.minimum(piece + 1, len(ids) - starts))


def characters_once(records: Examples, vocabulary: Vocabulary, config: DataConfig) -> npt.NDArray[np.int32]:
    """The characters in the records of a split, in order, each once; of lines also their ends.

    Characters that sequences of a split repeat (`--overlap`) are left out where they stand again.
    """
    if config.layout == "lines":
        kept = [i for i, symbol in enumerate(vocabulary.symbols) if symbol not in (PAD, START)]
        return records.ids[np.isin(records.ids, kept)]
    if config.layout != "sequences" or not len(records):
        return records.ids
    step = stride(config.seq_length, config.overlap)
    rows = records.padded()
    return np.concatenate([rows[0, 1:-step], rows[:, -step:].ravel()])


def in_one_piece(ids: npt.NDArray[np.int32], start_id: int | None) -> Examples:
    """A text as pieces to be read one after another with the state carried over, after one `<S>` if there is one."""
    return stream_pieces(ids if start_id is None else np.concatenate([np.array([start_id], np.int32), ids]))


def of_text(text: str, vocabulary: Vocabulary, config: DataConfig, name: str) -> Examples:
    """A text as examples in which each of its characters is predicted once.

    Without a `<S>` to begin with, the first character, or the first window, is not predicted.

    Raises:
        UserError: characters outside the vocabulary.
    """
    if config.layout == "lines":
        lines, _ = split_lines(text, config)
        return lines_as_examples(lines, vocabulary, name)
    ids = vocabulary.encode(text, name)
    if config.layout == "sequences":
        return _whole_sequences(ids, config.seq_length, vocabulary.start_id)
    return predicted_once(Examples.side_by_side(ids, np.array([len(ids)])), config)


def lines_as_examples(lines: list[str], vocabulary: Vocabulary, name: str = "text") -> Examples:
    """`<S>`, the characters, and `</S>` if the vocabulary has it, of each line.

    Raises:
        UserError: characters outside the vocabulary.
    """
    around = 1 + (vocabulary.end_id is not None)
    sizes = np.fromiter(map(len, lines), np.int64, len(lines))
    lengths = sizes + around
    ids = np.full(lengths.sum(), vocabulary.start_id, np.int32)
    result = Examples.side_by_side(ids, lengths)
    is_character = np.ones(len(ids), bool)
    is_character[result.starts] = False
    if vocabulary.end_id is not None:
        ends = result.starts + lengths - 1
        ids[ends] = vocabulary.end_id
        is_character[ends] = False
    ids[is_character] = vocabulary.encode("".join(lines), name)
    return result


def stride(seq_length: int, overlap: float) -> int:
    """How many characters on the next sequence starts: seq_length - 1 - ceil(overlap * (seq_length - 1)).

    The product is taken of the decimal number that the user wrote, so that 0.07 of 100 is 7 and not a hair more.

    Raises:
        ConfigError: the overlap leaves no step forward.
    """
    characters = seq_length - 1
    step = characters - math.ceil(Fraction(repr(float(overlap))) * characters)
    if step < 1:
        raise ConfigError(
            f"--overlap={overlap}: of the {characters} characters of a sequence it leaves none to go on by; "
            "take a smaller one, or a larger --seq_length"
        )
    return step


def num_sequences(num_characters: int, seq_length: int, overlap: float) -> int:
    """How many sequences `cut_sequences` cuts from so many characters."""
    rest = num_characters - (seq_length - 1)
    return rest // stride(seq_length, overlap) + 1 if rest >= 0 else 0


def cut_sequences(ids: npt.NDArray[np.int32], seq_length: int, overlap: float, start_id: int) -> npt.NDArray[np.int32]:
    """Cuts a text into overlapping sequences, each with `<S>` before its characters.

    Args:
        ids: the text, `[characters]`.
        seq_length: symbols in a sequence, `<S>` included.
        overlap: share of the characters that the next sequence repeats.
        start_id: the id of `<S>`.

    Returns:
        `[sequences, seq_length]`; an incomplete last sequence is dropped.
    """
    characters, step = seq_length - 1, stride(seq_length, overlap)
    if len(ids) < characters:
        return np.zeros((0, seq_length), np.int32)
    spans = np.lib.stride_tricks.sliding_window_view(ids, characters)[::step]
    return np.concatenate([np.full((len(spans), 1), start_id, np.int32), spans], axis=1)


def _whole_sequences(ids: npt.NDArray[np.int32], seq_length: int, start_id: int) -> Examples:
    """Cuts a text as `cut_sequences` does without overlap, but keeps the incomplete last sequence."""
    characters = seq_length - 1
    count = -(-len(ids) // characters)
    padded = np.full(count * characters, start_id, np.int32)
    padded[: len(ids)] = ids
    rows = Examples.of_rows(cut_sequences(padded, seq_length, 0.0, start_id))
    if count:
        rows.lengths[-1] -= count * characters - len(ids)
    return rows


def _cut_sequences(text: str | BlockText, vocabulary: Vocabulary, config: DataConfig) -> Iterator[Examples]:
    step = stride(config.seq_length, config.overlap)
    count = num_sequences(len(text), config.seq_length, config.overlap)
    size = max(1, _BLOCK // config.seq_length)
    for first in range(0, count, size):
        last = min(first + size, count) - 1
        ids = vocabulary.encode(text[first * step : last * step + config.seq_length - 1])
        yield Examples.of_rows(cut_sequences(ids, config.seq_length, config.overlap, vocabulary.start_id))


def _cut_pieces(text: str | BlockText, vocabulary: Vocabulary) -> Iterator[Examples]:
    for start in range(0, len(text), _BLOCK):
        ids = vocabulary.encode(text[start : start + _BLOCK])
        starts = np.arange(0, len(ids), PIECE, dtype=np.int64)
        yield Examples(ids, starts, np.minimum(PIECE, len(ids) - starts))


def _cut_lines(lines: list[str], vocabulary: Vocabulary) -> Iterator[Examples]:
    ends = np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines)))
    first = size = 0
    while first < len(lines):
        last = max(first + 1, int(np.searchsorted(ends, size + _BLOCK, side="right")))
        yield lines_as_examples(lines[first:last], vocabulary)
        first, size = last, int(ends[last - 1])
