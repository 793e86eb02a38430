"""Loads the examples of a split for evaluation, and makes batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tfcharrnn.data.batching import assign_widths, choose_widths, count_lengths, round_up
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.data.examples import Examples, count_evaluation_examples, make_evaluation_examples

# a split of more symbols stays on disk
_MAX_IN_MEMORY = 2**24
# symbols of such a split that are read at a time
_PART_SIZE = 2**21


def load_evaluation_examples(data: DataFolder, split: str) -> Examples | OutOfCoreExamples:
    """Loads examples that predict no character of a split twice; if they are many, they stay on disk.

    Raises:
        UserError: missing or damaged shards.
    """
    if data.count_symbols(split) <= _MAX_IN_MEMORY:
        return make_evaluation_examples(data.read(split), data.config)
    return OutOfCoreExamples(data, split)


class OutOfCoreExamples:
    """The evaluation examples of a split, read from disk in parts; can be iterated over repeatedly.

    Attributes:
        num_examples: number of examples.
        widths: the lengths to which they are padded, ascending.
    """

    def __init__(self, data: DataFolder, split: str):
        """Opens a split that has records.

        Raises:
            UserError: missing or damaged shards.
        """
        self._config, self._split = data.config, data.splits[split]
        self._carries_state = data.layout.carries_state
        self._shards = data.open_shards(split)
        self._records_per_part = max(1, int(_PART_SIZE * self._split.records / data.count_symbols(split)))
        self.num_examples = count_evaluation_examples(self._split.characters, self._split.records, data.config)
        self.widths = choose_widths(*count_lengths(data, split))

    def __iter__(self) -> Iterator[Examples]:
        """Yields the examples of one part after another.

        Raises:
            UserError: damaged shards.
        """
        split, config = self._split, self._config
        if config.layout in ("sequences", "lines"):
            for first in range(0, split.records, self._records_per_part):
                yield self._shards.read(first, min(first + self._records_per_part, split.records))
            return
        context = 1 if self._carries_state else config.seq_length
        for first in range(0, split.characters - context, _PART_SIZE):
            last = min(first + _PART_SIZE + context, split.characters)
            ids = np.concatenate(list(self._shards.read_text(first, last)))
            yield make_evaluation_examples(Examples.from_lengths(ids, np.array([len(ids)])), config)


class EvaluationBatch(NamedTuple):
    """A batch of examples to evaluate.

    Attributes:
        ids: int32 `[batch, width]`, padded with zeros.
        is_real: false for targets that are padding, bool `[batch, width - 1]`.
        indices: which examples are in the first rows, `[at most batch]`; the other rows are empty.
    """

    ids: npt.NDArray[np.int32]
    is_real: npt.NDArray[np.bool_]
    indices: npt.NDArray[np.int64]


def make_evaluation_batches(
    examples: Examples, batch_size: int, *, in_order: bool = False, widths: npt.NDArray[np.int64] | None = None
) -> Iterator[EvaluationBatch]:
    """Yields every example once, in batches of a few shapes.

    Args:
        examples: the examples to evaluate.
        batch_size: examples in a batch.
        in_order: keep the order of the examples, and use one shape; short texts of about the same length share it.
        widths: the widths of batches, ascending; None: chosen for these examples.
    """
    if not len(examples):
        return
    if in_order:
        # A text of one piece is padded to a power of two, so that texts of any length have a few shapes, each compiled
        # once. Of several pieces only the last may be padded, since the state goes on from the others.
        width = examples.width if len(examples) > 1 else 1 + 2 ** max(examples.width - 2, 0).bit_length()
        padded = np.full(len(examples), width)
    else:
        padded = assign_widths(examples.lengths) if widths is None else round_up(examples.lengths, widths)
    for width in np.unique(padded):
        bucket = np.flatnonzero(padded == width)
        for first in range(0, len(bucket), batch_size):
            indices = bucket[first : first + batch_size]
            ids = np.zeros((batch_size, width), np.int32)
            ids[: len(indices)] = examples.gather(indices, width)
            is_real = np.zeros((batch_size, width - 1), bool)
            is_real[: len(indices)] = np.arange(1, width) < examples.lengths[indices, np.newaxis]
            yield EvaluationBatch(ids, is_real, indices)
