"""The `tf.data` pipeline: from the records of a split to batches on their way to the device.

Which records make the batch of a training step is a function of (seed, step) alone. So the order is the same for a
seed, and a run resumes in the middle of an epoch without reading the epoch again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn import randomness
from tfcharrnn.errors import UserError


class TrainingOrder:
    """Which records each step trains on: every epoch in a new random order, incomplete batches dropped.

    Attributes:
        batch_size: records in a batch.
        steps_per_epoch: batches in an epoch.
    """

    def __init__(self, num_records: int, batch_size: int, seed: int):
        """Takes the sizes; a batch larger than the data is an error.

        Raises:
            UserError: fewer records than one batch needs.
        """
        if num_records < batch_size:
            raise UserError(
                f"--batch_size={batch_size} is more than the {num_records} training sequences there are; "
                "take a smaller batch, a smaller --seq_length or more text"
            )
        self.batch_size = batch_size
        self.steps_per_epoch = num_records // batch_size
        self._num_records = num_records
        self._seed = seed
        self._epoch_order = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        order = randomness.permutation(self._num_records, self._seed, randomness.Purpose.SHUFFLE, epoch)
        return order[: self.steps_per_epoch * self.batch_size].reshape(self.steps_per_epoch, self.batch_size)

    def records(self, step: int) -> npt.NDArray[np.int64]:
        """The records of a step, counted from 0: `[batch]`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epoch_order(epoch)[position]


def calls(start: int, stop: int, intervals: Iterable[int], steps_per_call: int) -> Iterator[tuple[int, int]]:
    """Cuts the steps from `start` to `stop` into compiled calls of at most `steps_per_call`.

    A call never runs over a multiple of an interval (0: no such interval), so that what happens at intervals happens
    exactly there.

    Yields:
        The first step of a call and the number of steps in it.
    """
    intervals = [interval for interval in intervals if interval]
    while start < stop:
        ends = [start + steps_per_call, stop, *((start // interval + 1) * interval for interval in intervals)]
        yield start, min(ends) - start
        start = min(ends)


def training_batches(
    sequences: npt.NDArray[np.int32],
    order: TrainingOrder,
    planned_calls: Callable[[], Iterator[tuple[int, int]]],
    steps_per_call: int,
) -> tf.data.Dataset:
    """The batches of each compiled call.

    Args:
        sequences: every training record, `[records, seq_length]`.
        order: which records a step takes.
        planned_calls: gives the first step and the number of steps of each call, as `calls` does.
        steps_per_call: how many batches an element has room for.

    Returns:
        A dataset of `(first_step, count, batches)`: int64 `[]`, int32 `[]` and int32
        `[steps_per_call, batch, seq_length]`, where batches from `count` on are empty room (zeros).
    """
    shape = (steps_per_call, order.batch_size, sequences.shape[1])

    def gather(first_step: np.int64, count: np.int32) -> npt.NDArray[np.int32]:
        batches = np.zeros(shape, np.int32)
        for index in range(count):
            batches[index] = sequences[order.records(int(first_step) + index)]
        return batches

    def load(first_step: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        batches = tf.numpy_function(gather, [first_step, count], tf.int32)
        return first_step, count, tf.ensure_shape(batches, shape)

    signature = (tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int32))
    dataset = tf.data.Dataset.from_generator(planned_calls, output_signature=signature)
    return dataset.map(load, num_parallel_calls=2, deterministic=True).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(
    sequences: npt.NDArray[np.int32], batch_size: int, lengths: npt.NDArray[np.int64] | None = None
) -> tf.data.Dataset:
    """Every record once, in order, in batches of one shape.

    Args:
        sequences: the records, `[records, seq_length]`.
        batch_size: records in a batch.
        lengths: how many symbols of each record are real, `[records]`; None: all.

    Returns:
        A dataset of `(ids, real)`: int32 `[batch, seq_length]` and bool `[batch, seq_length - 1]`, true for each
        target to count; the last batch is filled up with records in which none is.
    """
    seq_length = sequences.shape[1]
    lengths = np.full(len(sequences), seq_length) if lengths is None else lengths
    dataset = tf.data.Dataset.from_tensor_slices((sequences, lengths))
    filler = tf.data.Dataset.from_tensors((np.zeros(seq_length, np.int32), np.int64(0)))
    dataset = dataset.concatenate(filler.repeat(-len(sequences) % batch_size))
    dataset = dataset.batch(batch_size, drop_remainder=True)
    positions = tf.range(1, seq_length, dtype=tf.int64)
    return dataset.map(lambda ids, lengths: (ids, positions < lengths[:, tf.newaxis])).prefetch(tf.data.AUTOTUNE)


def split_batch(ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Inputs and targets of a batch: the ids but the last, and the ids but the first.

    Args:
        ids: `[batch, seq_length]`.

    Returns:
        Two tensors `[batch, seq_length - 1]`; the target of a symbol is the one that follows it.
    """
    return ids[:, :-1], ids[:, 1:]
