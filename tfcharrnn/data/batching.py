"""Which examples each step trains on, of a split that is in memory.

Which they are is a function of (seed, step) alone. So the order is the same for a seed, and a run resumes in the middle
of an epoch without reading the epoch again.
"""

from __future__ import annotations

import abc
import functools

import numpy as np
import numpy.typing as npt

from tfcharrnn import rng
from tfcharrnn.config import DataConfig, TrainingConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.examples import Examples, gather
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import LAYOUTS

# Examples of different lengths are padded to at most so many widths, each of which is compiled once.
_NUM_BUCKETS = 5
_BUCKET_STEP = 8


class Order(abc.ABC):
    """Which symbols each step trains on.

    Attributes:
        batch_size: examples in a batch, that of all processes that train together.
        rows: which of them are fed by this process.
        steps_per_epoch: batches in an epoch.
        error: why its last batch could not be had, if so.
    """

    batch_size: int
    rows: range
    steps_per_epoch: int
    error: UserError | None = None

    @abc.abstractmethod
    def batches(self, steps: range, width: int) -> npt.NDArray[np.int32]:
        """The rows of some steps, counted from 0: `[steps, rows, width]`, zeros after the end of each example."""

    @abc.abstractmethod
    def width(self, step: int) -> int:
        """The length to which the examples of a step are padded."""

    @property
    @abc.abstractmethod
    def mean_width(self) -> float:
        """That length in the mean over the steps."""

    def size(self, step: int) -> int:
        """How many of the whole batch's rows are examples: the first so many; the others are empty."""
        return self.batch_size

    def close(self) -> None:
        """Lets go of all that it holds: TensorFlow never forgets a function of a pipeline, and so not the order."""
        self.__dict__.clear()


class MemoryOrder(Order):
    """Examples as spans of one array.

    Attributes:
        ids: all symbols, `[symbols]`.
    """

    ids: npt.NDArray[np.int32]

    @abc.abstractmethod
    def spans(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The rows of a step: where their examples start in `ids`, and their lengths, each `[rows]`."""

    def batches(self, steps: range, width: int) -> npt.NDArray[np.int32]:
        """See `Order.batches`."""
        starts, lengths = (np.stack(spans) for spans in zip(*map(self.spans, steps), strict=True))
        return gather(self.ids, starts, lengths, width)


class ShuffledOrder(MemoryOrder):
    """Examples that stand alone: every epoch in a random order, an incomplete batch dropped or trained on.

    Batches are made of examples of like length, so that little is padded. Which they are changes with every epoch.
    """

    def __init__(self, examples: Examples, config: TrainingConfig, rows: range | None = None):
        """Takes the examples, the settings, and which rows of each batch are fed by this process (None: all).

        Raises:
            UserError: fewer examples than one batch needs.
        """
        self.ids = examples.ids
        self.batch_size = config.batch_size
        self.rows = range(config.batch_size) if rows is None else rows
        self.steps_per_epoch = num_batches(len(examples), config)
        self._examples = examples
        self._widths = bucket_widths(examples.lengths)
        self._config = config
        self._epoch_order = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        """The examples of each step of an epoch, `[steps, batch]`, and -1 where a row is empty."""
        seed, key = self._config.seed, epoch if self._config.shuffle == "epoch" else 0
        order = rng.permutation(len(self._examples), seed, rng.Purpose.SHUFFLE, key)
        order = order[: self.steps_per_epoch * self.batch_size]
        if self._widths.min() == self._widths.max():
            return in_rows(order, self.steps_per_epoch, self.batch_size)
        order = order[np.argsort(self._widths[order], kind="stable")]
        order = in_rows(order, self.steps_per_epoch, self.batch_size)
        return order[rng.permutation(len(order), seed, rng.Purpose.SHUFFLE, key, index=1)]

    def _indices(self, step: int) -> npt.NDArray[np.int64]:
        """The examples of a step, `[size]`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        indices = self._epoch_order(epoch)[position]
        return indices if self._config.drop_remainder else indices[indices >= 0]

    def spans(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See `MemoryOrder.spans`; an empty row has the length 0."""
        indices = self._indices(step)[self.rows.start : self.rows.stop]
        starts, lengths = np.zeros((2, len(self.rows)), np.int64)
        starts[: len(indices)], lengths[: len(indices)] = (
            self._examples.starts[indices],
            self._examples.lengths[indices],
        )
        return starts, lengths

    def width(self, step: int) -> int:
        """See `Order.width`: the widest bucket of the batch."""
        return int(self._widths[self._indices(step)].max())

    def size(self, step: int) -> int:
        """See `Order.size`."""
        return len(self._indices(step))

    @property
    def mean_width(self) -> float:
        """See `Order.mean_width`."""
        return float(self._widths.mean())


class StreamOrder(MemoryOrder):
    """One text as `batch_size` parallel streams: each step goes on in all of them where the one before it ended."""

    def __init__(self, ids: npt.NDArray[np.int32], seq_length: int, batch_size: int, rows: range | None = None):
        """Cuts a text into streams of equal length; a few characters at its end may be left over.

        Raises:
            UserError: a stream would be shorter than one step.
        """
        self.ids = ids
        self.batch_size = batch_size
        self.rows = range(batch_size) if rows is None else rows
        self._seq_length = seq_length
        self._stream_length, self.steps_per_epoch = streams(len(ids), seq_length, batch_size)

    def spans(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See `MemoryOrder.spans`; an example's last symbol is the first of the next step's."""
        first = step % self.steps_per_epoch * self._seq_length
        starts = np.array(self.rows, np.int64) * self._stream_length + first
        return starts, np.full(len(starts), self._seq_length + 1, np.int64)

    def width(self, step: int) -> int:
        """See `Order.width`."""
        return self._seq_length + 1

    @property
    def mean_width(self) -> float:
        """See `Order.mean_width`."""
        return self._seq_length + 1.0


def steps_per_epoch(characters: int, records: int, data: DataConfig, config: TrainingConfig) -> int:
    """How many steps an epoch of so many characters in so many records has.

    Raises:
        UserError: they are too few for one batch.
    """
    if LAYOUTS[data.layout].carries_state:
        return streams(characters, data.seq_length, config.batch_size)[1]
    return num_batches(chunking.num_examples(characters, records, data), config)


def streams(characters: int, seq_length: int, batch_size: int) -> tuple[int, int]:
    """The length of each stream, and how many steps it has."""
    length = max(characters - 1, 0) // batch_size
    if length < seq_length:
        raise UserError(
            f"--batch_size={batch_size}: the {characters} characters to train on make streams of {length}, less than "
            f"--seq_length={seq_length}; take a smaller one of the two, or more text"
        )
    return length, length // seq_length


def num_batches(num_examples: int, config: TrainingConfig) -> int:
    """How many batches an epoch of so many examples has.

    Raises:
        UserError: they are too few for one.
    """
    if not config.drop_remainder and num_examples:
        return -(-num_examples // config.batch_size)
    if num_examples < config.batch_size:
        raise UserError(
            f"--batch_size={config.batch_size} is more than the {num_examples} training examples there are; "
            "take a smaller batch, shorter examples or more text"
        )
    return num_examples // config.batch_size


def in_rows(order: npt.NDArray[np.int64], steps: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Examples as the rows of batches, `[steps, batch]`, and -1 where the last ones are empty."""
    rows = np.full(steps * batch_size, -1, np.int64)
    rows[: len(order)] = order
    return rows.reshape(steps, batch_size)


def bucket_widths(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each example the length to which it is padded: one of a handful, so that few shapes are compiled.

    Args:
        lengths: `[examples]`.

    Returns:
        `[examples]`, each at least the length, and none longer than the longest.
    """
    ends = bucket_ends(*np.unique(lengths, return_counts=True))
    return ends[np.searchsorted(ends, lengths)]


def bucket_ends(lengths: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The handful of widths, ascending; they are such that the buckets hold about equally many examples.

    Args:
        lengths: the different lengths that examples have, ascending.
        counts: how many examples have each.
    """
    # the quantiles of all lengths, taken from above
    places = np.ceil((counts.sum() - 1) * (np.arange(1, _NUM_BUCKETS + 1) / _NUM_BUCKETS))
    quantiles = lengths[np.searchsorted(np.cumsum(counts), places, side="right")]
    return np.unique(np.minimum(-(-quantiles // _BUCKET_STEP) * _BUCKET_STEP, lengths[-1]))
