"""The `tf.data` pipeline: from the records of a split to batches on their way to the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.config import TrainingConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.batching import Order, ShuffledOrder, StreamOrder, bucket_widths
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.data.examples import Examples
from tfcharrnn.data.out_of_core import ShuffledBlocks, StreamBlocks
from tfcharrnn.errors import UserError


def training_order(data: DataFolder, config: TrainingConfig, rows: range | None = None) -> Order:
    """The order in which a run trains on a data folder: in memory, or if that is too small for it, from disk.

    Args:
        data: the folder.
        config: the settings.
        rows: which rows of each batch are fed by this process; None: all. What stands in a row does not depend on it.

    Raises:
        UserError: too few records for one batch, or missing or damaged shards.
    """
    fits = data.symbols("train") <= config.shuffle_buffer
    if data.layout.carries_state:
        if fits:
            return StreamOrder(data.read("train").ids, data.config.seq_length, config.batch_size, rows)
        return StreamBlocks(data, config, rows)
    if fits:
        return ShuffledOrder(chunking.examples(data.read("train"), data.config), config, rows)
    return ShuffledBlocks(data, config, rows)


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
        A dataset of `(first_step, count, sizes, batches)`: int64 `[]`, int32 `[]`, int32 `[steps_per_call]`: how many
        rows of the whole batch are examples, see `Order.size`; and int32 `[steps_per_call, rows, width]`: the rows
        that this process feeds. Batches from `count` on are empty room (zeros). All steps between two multiples of
        `steps_per_call` have one width, whichever call they fall in, and so the same arithmetic.
    """

    def load_call(first_step: np.int64, count: np.int32) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        steps = range(int(first_step), int(first_step) + int(count))
        first_of_group = steps[0] - steps[0] % steps_per_call
        try:
            width = max(order.width(step) for step in range(first_of_group, first_of_group + steps_per_call))
            sizes = np.zeros(steps_per_call, np.int32)
            sizes[: len(steps)] = [order.size(step) for step in steps]
            batches = np.zeros((steps_per_call, len(order.rows), width), np.int32)
            batches[: len(steps)] = order.batches(steps, width)
        except UserError as error:
            order.error = error  # `taken` raises it again
            raise
        return sizes, batches

    def load(first_step: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, ...]:
        sizes, batches = tf.numpy_function(load_call, [first_step, count], [tf.int32, tf.int32])
        sizes = tf.ensure_shape(sizes, [steps_per_call])
        return first_step, count, sizes, tf.ensure_shape(batches, [steps_per_call, len(order.rows), None])

    signature = (tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int32))
    dataset = tf.data.Dataset.from_generator(planned_calls, output_signature=signature)
    return dataset.map(load, num_parallel_calls=2, deterministic=True).prefetch(tf.data.AUTOTUNE)


def taken(dataset: tf.data.Dataset, order: Order, waited: Callable[[float], None]) -> Iterator[tuple[tf.Tensor, ...]]:
    """The elements of `training_batches`, whose errors TensorFlow wraps in its own.

    Args:
        dataset: what `training_batches` made.
        order: of which order.
        waited: is told for how many seconds each element was waited for.

    Raises:
        UserError: what the order ran into.
    """
    elements = iter(dataset)
    while True:
        clock = time.perf_counter()
        try:
            element = next(elements, None)
        except tf.errors.OpError:
            if order.error is None:
                raise
            raise order.error from None
        waited(time.perf_counter() - clock)
        if element is None:
            return
        yield element


# ids `[batch, width]`, which targets are real `[batch, width - 1]`, which examples they are `[at most batch]`
EvaluationBatch = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.int64]]


def evaluation_batches(
    examples: Examples, batch_size: int, *, in_order: bool = False, ends: npt.NDArray[np.int64] | None = None
) -> Iterator[EvaluationBatch]:
    """Every example once, in batches of a handful of shapes.

    Args:
        examples: what to measure.
        batch_size: examples in a batch.
        in_order: keep the order of the examples, and one shape.
        ends: the widths of batches, as `orders.bucket_ends` gives them; None: those that suit the examples.

    Yields:
        `(ids, real, indices)`: int32 `[batch, width]`; bool `[batch, width - 1]`, true for each target that is real
        and not padding; and which examples they are, `[at most batch]`; rows beyond those are empty.
    """
    if not len(examples):
        return
    if in_order:
        widths = np.full(len(examples), examples.width)
    elif ends is None:
        widths = bucket_widths(examples.lengths)
    else:
        widths = ends[np.searchsorted(ends, examples.lengths)]
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
