"""The `tf.data` pipeline: from the records of a split to batches on their way to the device.

Which records make the batch of a training step is a function of (seed, step) alone. So the order is the same for a
seed, and a run resumes in the middle of an epoch without reading the epoch again.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn import cutting, randomness
from tfcharrnn.config import DataConfig, TrainingConfig
from tfcharrnn.errors import UserError
from tfcharrnn.examples import Examples, gather
from tfcharrnn.layouts import LAYOUTS

# Examples of different lengths are padded to at most so many widths, each of which is compiled once.
_NUM_BUCKETS = 5
_BUCKET_STEP = 8


class Order(abc.ABC):
    """Which symbols each step trains on.

    Attributes:
        ids: all symbols, `[symbols]`.
        batch_size: examples in a batch.
        steps_per_epoch: batches in an epoch.
    """

    ids: npt.NDArray[np.int32]
    batch_size: int
    steps_per_epoch: int

    @abc.abstractmethod
    def spans(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The batch of a step, counted from 0: where its examples start in `ids`, and their lengths, each `[batch]`."""

    @abc.abstractmethod
    def width(self, step: int) -> int:
        """The length to which the examples of a step are padded."""

    @property
    @abc.abstractmethod
    def mean_width(self) -> float:
        """That length in the mean over the steps."""


class ShuffledOrder(Order):
    """Examples that stand alone: every epoch in a random order, incomplete batches dropped.

    Batches are made of examples of like length, so that little is padded. Which they are changes with every epoch.
    """

    def __init__(self, examples: Examples, config: TrainingConfig):
        """Takes the examples and the settings; a batch larger than the data is an error.

        Raises:
            UserError: fewer examples than one batch needs.
        """
        self.ids = examples.ids
        self.batch_size = config.batch_size
        self.steps_per_epoch = _full_batches(len(examples), config.batch_size)
        self._examples = examples
        self._widths = bucket_widths(examples.lengths)
        self._config = config
        self._epoch_order = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        """The examples of each step of an epoch, `[steps, batch]`."""
        seed, key = self._config.seed, epoch if self._config.shuffle == "epoch" else 0
        order = randomness.permutation(len(self._examples), seed, randomness.Purpose.SHUFFLE, key)
        order = order[: self.steps_per_epoch * self.batch_size]
        if self._widths.min() == self._widths.max():
            return order.reshape(self.steps_per_epoch, self.batch_size)
        order = order[np.argsort(self._widths[order], kind="stable")].reshape(self.steps_per_epoch, self.batch_size)
        return order[randomness.permutation(len(order), seed, randomness.Purpose.SHUFFLE, key, index=1)]

    def _indices(self, step: int) -> npt.NDArray[np.int64]:
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epoch_order(epoch)[position]

    def spans(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See `Order.spans`."""
        indices = self._indices(step)
        return self._examples.starts[indices], self._examples.lengths[indices]

    def width(self, step: int) -> int:
        """See `Order.width`: the widest bucket of the batch."""
        return int(self._widths[self._indices(step)].max())

    @property
    def mean_width(self) -> float:
        """See `Order.mean_width`."""
        return float(self._widths.mean())


class StreamOrder(Order):
    """One text as `batch_size` parallel streams: each step goes on in all of them where the one before it ended."""

    def __init__(self, ids: npt.NDArray[np.int32], seq_length: int, batch_size: int):
        """Cuts a text into streams of equal length; a few characters at its end may be left over.

        Raises:
            UserError: a stream would be shorter than one step.
        """
        self.ids = ids
        self.batch_size = batch_size
        self._seq_length = seq_length
        self._stream_length, self.steps_per_epoch = _streams(len(ids), seq_length, batch_size)

    def spans(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See `Order.spans`; an example's last symbol is the first of the next step's."""
        first = step % self.steps_per_epoch * self._seq_length
        starts = np.arange(self.batch_size, dtype=np.int64) * self._stream_length + first
        return starts, np.full(self.batch_size, self._seq_length + 1, np.int64)

    def width(self, step: int) -> int:
        """See `Order.width`."""
        return self._seq_length + 1

    @property
    def mean_width(self) -> float:
        """See `Order.mean_width`."""
        return self._seq_length + 1.0


def training_order(records: Examples, data: DataConfig, config: TrainingConfig) -> Order:
    """The order in which a run trains on the records of a split.

    Raises:
        UserError: too few of them for one batch.
    """
    if LAYOUTS[data.layout].carries_state:
        return StreamOrder(records.ids, data.seq_length, config.batch_size)
    return ShuffledOrder(cutting.examples(records, data), config)


def steps_per_epoch(characters: int, records: int, data: DataConfig, config: TrainingConfig) -> int:
    """How many steps an epoch of so many characters in so many records has.

    Raises:
        UserError: they are too few for one batch.
    """
    if LAYOUTS[data.layout].carries_state:
        return _streams(characters, data.seq_length, config.batch_size)[1]
    return _full_batches(cutting.num_examples(characters, records, data), config.batch_size)


def _streams(characters: int, seq_length: int, batch_size: int) -> tuple[int, int]:
    """The length of each stream, and how many steps it has."""
    length = max(characters - 1, 0) // batch_size
    if length < seq_length:
        raise UserError(
            f"--batch_size={batch_size}: the {characters} characters to train on make streams of {length}, less than "
            f"--seq_length={seq_length}; take a smaller one of the two, or more text"
        )
    return length, length // seq_length


def _full_batches(num_examples: int, batch_size: int) -> int:
    if num_examples < batch_size:
        raise UserError(
            f"--batch_size={batch_size} is more than the {num_examples} training examples there are; "
            "take a smaller batch, shorter examples or more text"
        )
    return num_examples // batch_size


def bucket_widths(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each example the length to which it is padded: one of a handful, so that few shapes are compiled.

    They are such that the buckets hold about equally many examples.

    Args:
        lengths: `[examples]`.

    Returns:
        `[examples]`, each at least the length, and none longer than the longest.
    """
    shares = np.arange(1, _NUM_BUCKETS + 1) / _NUM_BUCKETS
    ends = -(-np.quantile(lengths, shares, method="higher").astype(np.int64) // _BUCKET_STEP) * _BUCKET_STEP
    ends = np.unique(np.minimum(ends, lengths.max()))
    return ends[np.searchsorted(ends, lengths)]


def calls(start: int, stop: int, intervals: Iterable[int], steps_per_call: int) -> Iterator[tuple[int, int]]:
    """Cuts the steps from `start` to `stop` into compiled calls of at most `steps_per_call`.

    A call never runs over a multiple of an interval (0: no such interval), so that what happens at intervals happens
    exactly there; nor over a multiple of `steps_per_call`, so that a run that was stopped cuts the rest the same way.

    Yields:
        The first step of a call and the number of steps in it.
    """
    intervals = [interval for interval in (*intervals, steps_per_call) if interval]
    while start < stop:
        end = min(stop, *((start // interval + 1) * interval for interval in intervals))
        yield start, end - start
        start = end


def training_batches(
    order: Order, planned_calls: Callable[[], Iterator[tuple[int, int]]], steps_per_call: int
) -> tf.data.Dataset:
    """The batches of each compiled call.

    Args:
        order: which symbols a step takes.
        planned_calls: gives the first step and the number of steps of each call, as `calls` does.
        steps_per_call: how many batches an element has room for.

    Returns:
        A dataset of `(first_step, count, batches)`: int64 `[]`, int32 `[]` and int32
        `[steps_per_call, batch, width]`, where batches from `count` on are empty room (zeros). All steps between two
        multiples of `steps_per_call` have one width, whichever call they fall in, and so the same arithmetic.
    """

    def load_call(first_step: np.int64, count: np.int32) -> npt.NDArray[np.int32]:
        steps = range(int(first_step), int(first_step) + int(count))
        first_of_group = steps[0] - steps[0] % steps_per_call
        width = max(order.width(step) for step in range(first_of_group, first_of_group + steps_per_call))
        starts, lengths = (np.stack(spans) for spans in zip(*map(order.spans, steps), strict=True))
        batches = np.zeros((steps_per_call, order.batch_size, width), np.int32)
        batches[: len(steps)] = gather(order.ids, starts, lengths, width)
        return batches

    def load(first_step: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        batches = tf.numpy_function(load_call, [first_step, count], tf.int32)
        return first_step, count, tf.ensure_shape(batches, [steps_per_call, order.batch_size, None])

    signature = (tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int32))
    dataset = tf.data.Dataset.from_generator(planned_calls, output_signature=signature)
    return dataset.map(load, num_parallel_calls=2, deterministic=True).prefetch(tf.data.AUTOTUNE)


# ids `[batch, width]`, which targets are real `[batch, width - 1]`, which examples they are `[at most batch]`
EvaluationBatch = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.int64]]


def evaluation_batches(examples: Examples, batch_size: int, *, in_order: bool = False) -> Iterator[EvaluationBatch]:
    """Every example once, in batches of a handful of shapes.

    Args:
        examples: what to measure.
        batch_size: examples in a batch.
        in_order: keep the order of the examples, and one shape.

    Yields:
        `(ids, real, indices)`: int32 `[batch, width]`; bool `[batch, width - 1]`, true for each target that is real
        and not padding; and which examples they are, `[at most batch]`; rows beyond those are empty.
    """
    if not len(examples):
        return
    widths = np.full(len(examples), examples.width) if in_order else bucket_widths(examples.lengths)
    for width in np.unique(widths):
        bucket = np.flatnonzero(widths == width)
        for first in range(0, len(bucket), batch_size):
            indices = bucket[first : first + batch_size]
            ids = np.zeros((batch_size, width), np.int32)
            ids[: len(indices)] = examples.gather(indices, width)
            real = np.zeros((batch_size, width - 1), bool)
            real[: len(indices)] = np.arange(1, width) < examples.lengths[indices, np.newaxis]
            yield ids, real, indices


def split_batch(ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Inputs and targets of a batch: the ids but the last, and the ids but the first.

    Args:
        ids: `[batch, width]`.

    Returns:
        Two tensors `[batch, width - 1]`; the target of a symbol is the one that follows it.
    """
    return ids[:, :-1], ids[:, 1:]
