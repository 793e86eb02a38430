"""Examples as spans of one long array of ids, and how the records of a split become examples."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfcharrnn.config import DataConfig
from tfcharrnn.layouts import LAYOUTS

# predictions in one example of a text that is evaluated as a stream
STREAM_CHUNK = 1024


class Spans(NamedTuple):
    """Spans of an array of ids.

    Attributes:
        starts: where each span begins, int64 `[...]`.
        lengths: symbols in each, int64 `[...]`.
    """

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Short sequences of ids, as spans of one array; spans may overlap.

    Attributes:
        ids: int32 `[symbols]`.
        starts: where each example begins, int64 `[examples]`.
        lengths: symbols in each example, int64 `[examples]`.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def from_lengths(cls, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> Examples:
        """Splits an array into consecutive examples."""
        return cls(ids, np.cumsum(lengths) - lengths, lengths)

    @classmethod
    def from_rows(cls, rows: npt.NDArray[np.int32]) -> Examples:
        """Makes examples of equal length, `[examples, length]`."""
        return cls.from_lengths(rows.ravel(), np.full(len(rows), rows.shape[1], np.int64))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self)

    @property
    def width(self) -> int:
        """Length of the longest example."""
        return int(self.lengths.max(initial=0))

    def gather(self, indices: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int32]:
        """Returns the examples at `indices`, padded with zeros to `width`: `[..., width]` for indices `[...]`."""
        return gather(self.ids, self.starts[indices], self.lengths[indices], width)

    def pad(self) -> npt.NDArray[np.int32]:
        """Returns all examples padded with zeros, `[examples, width]`."""
        return self.gather(np.arange(len(self)), self.width)


def gather(
    ids: npt.NDArray[Any],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    width: int,
    *,
    is_ring: bool = False,
) -> npt.NDArray[Any]:
    """Copies spans of `ids` into rows padded with zeros: `[...]` to `[..., width]`.

    Args:
        ids: `[symbols]`.
        starts: where each span begins, `[...]`.
        lengths: symbols in each, `[...]`, at most `width`.
        width: length of a row.
        is_ring: the first symbol follows the last, so a span may go past the end.
    """
    positions = np.arange(width)
    rows = ids.take(starts[..., np.newaxis] + positions, mode="wrap" if is_ring else "clip")
    if np.any(lengths < width):
        rows[positions >= lengths[..., np.newaxis]] = 0
    return rows


def make_training_examples(records: Examples, config: DataConfig) -> Examples:
    """Makes the training examples of a split: its windows, or in the other layouts its records."""
    return cut_windows(records.ids, config.seq_length, config.stride) if config.layout == "windows" else records


def count_training_examples(characters: int, records: int, config: DataConfig) -> int:
    """Returns the number of examples that `make_training_examples` makes."""
    return count_windows(characters, config.seq_length, config.stride) if config.layout == "windows" else records


def make_evaluation_examples(records: Examples, config: DataConfig) -> Examples:
    """Makes examples that predict no character of a split twice.

    Those of a stream follow one another, for a model that carries its state from each to the next.
    """
    if config.layout == "windows":
        return cut_windows(records.ids, config.seq_length, 1)
    return cut_stream(records.ids) if LAYOUTS[config.layout].carries_state else records


def count_evaluation_examples(characters: int, records: int, config: DataConfig) -> int:
    """Returns the number of examples that `make_evaluation_examples` makes."""
    if config.layout == "windows":
        return count_windows(characters, config.seq_length, 1)
    return count_windows(characters, 1, STREAM_CHUNK) if LAYOUTS[config.layout].carries_state else records


def cut_windows(ids: npt.NDArray[np.int32], seq_length: int, stride: int) -> Examples:
    """Cuts windows of `seq_length` characters and the one that follows; they start `stride` characters apart."""
    starts = np.arange(0, len(ids) - seq_length, stride, dtype=np.int64)
    return Examples(ids, starts, np.full(len(starts), seq_length + 1, np.int64))


def count_windows(characters: int, seq_length: int, stride: int) -> int:
    """Returns the number of windows that `cut_windows` cuts."""
    return max(0, -(-(characters - seq_length) // stride))


def cut_stream(ids: npt.NDArray[np.int32], size: int = STREAM_CHUNK) -> Examples:
    """Cuts a text into chunks of `size` predictions, each starting with the last character of the one before."""
    starts = np.arange(0, max(len(ids) - 1, 0), size, dtype=np.int64)
    return Examples(ids, starts, np.minimum(size + 1, len(ids) - starts))
