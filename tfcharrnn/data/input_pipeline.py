"""The `tf.data` pipeline that loads training batches while the device computes."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.config import TrainingConfig
from tfcharrnn.data.batching import BatchSampler, RingSampler, ShuffledSampler, StreamSampler
from tfcharrnn.data.chunking import join_characters
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.data.examples import make_training_examples
from tfcharrnn.data.out_of_core import OutOfCoreShuffledSampler, OutOfCoreStreamSampler
from tfcharrnn.errors import UserError

# calls that are loaded at a time
_PARALLEL_LOADS = 2


def make_sampler(data: DataFolder, config: TrainingConfig, rows: range | None = None) -> BatchSampler:
    """Makes the sampler of a training run; it reads from disk if the split is larger than `--shuffle_buffer`.

    Args:
        data: the data folder.
        config: the training options.
        rows: the rows of each batch that this process feeds; None: all. The content of a row does not depend on them.

    Raises:
        UserError: too few records for one batch, or missing or damaged shards.
    """
    fits_in_memory = data.count_symbols("train") <= config.shuffle_buffer
    if data.layout.carries_state:
        if fits_in_memory:
            return StreamSampler(data.read("train").ids, data.config.seq_length, config, rows)
        return OutOfCoreStreamSampler(data, config, rows)
    if config.shuffle == "none" and not fits_in_memory:
        raise UserError(
            f"--shuffle=none: reads the whole training text into memory, {data.count_symbols('train'):,} symbols; set "
            "--shuffle_buffer to as many, or --shuffle=once"
        )
    if fits_in_memory and config.random_start:
        records = data.read("train")
        characters = join_characters(records, data.vocabulary, data.config)
        return RingSampler(characters, len(records), data.config, config, rows)
    if fits_in_memory:
        return ShuffledSampler(make_training_examples(data.read("train"), data.config), config, rows)
    return OutOfCoreShuffledSampler(data, config, rows)


def plan_calls(start: int, stop: int, intervals: Iterable[int], steps_per_call: int) -> Iterator[tuple[int, int]]:
    """Divides the steps from `start` to before `stop` into compiled calls of at most `steps_per_call` steps.

    A call ends at every multiple of an interval (0: no interval), so that periodic work happens exactly there, and at
    every multiple of `steps_per_call`, so that a resumed run divides the remaining steps in the same way.

    Yields:
        `(first_step, num_steps)` of a call.
    """
    intervals = [interval for interval in (*intervals, steps_per_call) if interval]
    while start < stop:
        end = min(stop, *((start // interval + 1) * interval for interval in intervals))
        yield start, end - start
        start = end


class Call(NamedTuple):
    """The batches of one compiled call.

    Attributes:
        first_step: training steps before the call.
        num_steps: training steps in the call.
        sizes: examples in each whole batch, over all processes, int32 `[steps_per_call]`.
        ids: the rows that this process feeds, int32 `[steps_per_call, rows, width]`; zeros from batch `num_steps` on.
        wait_seconds: how long the training loop waited for them.
    """

    first_step: int
    num_steps: int
    sizes: tf.Tensor
    ids: tf.Tensor
    wait_seconds: float


class BatchPipeline:
    """Loads the batches of compiled calls in the background; as a context manager it releases the data at the end.

    All steps between two multiples of `steps_per_call` have the same width, and so the same arithmetic, however they
    are divided into calls.
    """

    def __init__(self, sampler: BatchSampler, steps_per_call: int):
        """Makes a pipeline.

        Args:
            sampler: chooses the examples; it is closed with the pipeline.
            steps_per_call: batches that a call has room for.
        """
        self._sampler = sampler
        self._steps_per_call = steps_per_call
        self._error: UserError | None = None

    def __enter__(self) -> BatchPipeline:
        return self

    def __exit__(self, *error: object) -> None:
        self._sampler.close()
        # TensorFlow never frees the Python functions of a dataset, nor this object, which they refer to.
        del self._sampler

    def iterate(self, start: int, stop: int, intervals: Iterable[int] = ()) -> Iterator[Call]:
        """Yields the calls from step `start` to before `stop`, divided as by `plan_calls`.

        Raises:
            UserError: missing or damaged shards.
        """
        calls = iter(self.make_dataset(start, stop, intervals))
        while True:
            begun = time.perf_counter()
            try:
                call = next(calls, None)
            except tf.errors.OpError:
                if self._error is None:
                    raise
                error, self._error = self._error, None  # TensorFlow has wrapped it in an error of its own
                raise error from None
            if call is None:
                return
            first_step, num_steps, sizes, ids = call
            yield Call(int(first_step), int(num_steps), sizes, ids, time.perf_counter() - begun)

    def make_dataset(self, start: int, stop: int, intervals: Iterable[int] = ()) -> tf.data.Dataset:
        """Makes a dataset of the calls of `iterate`, `(first_step, num_steps, sizes, ids)`: int64 `[]`, else int32."""
        plan = functools.partial(plan_calls, start, stop, tuple(intervals), self._steps_per_call)
        signature = (tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int32))
        room, num_rows = self._steps_per_call, len(self._sampler.rows)

        def load(first_step: tf.Tensor, num_steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
            sizes, ids = tf.numpy_function(self._load_call, [first_step, num_steps], [tf.int32, tf.int32])
            sizes = tf.ensure_shape(sizes, [room])
            return first_step, num_steps, sizes, tf.ensure_shape(ids, [room, num_rows, None])

        # Loads wait for a sampler's reading thread, which itself computes with TensorFlow: in the threads that all of
        # TensorFlow shares, they could leave it none.
        options = tf.data.Options()
        options.threading.private_threadpool_size = _PARALLEL_LOADS + 1
        dataset = tf.data.Dataset.from_generator(plan, output_signature=signature)
        dataset = dataset.map(load, num_parallel_calls=_PARALLEL_LOADS, deterministic=True)
        return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)

    def _load_call(self, first_step: np.int64, num_steps: np.int32) -> tuple[npt.NDArray[np.int32], ...]:
        """Loads the `sizes` and `ids` of a call."""
        sampler, room = self._sampler, self._steps_per_call
        steps = range(int(first_step), int(first_step) + int(num_steps))
        first_of_group = steps[0] - steps[0] % room
        try:
            width = max(map(sampler.get_width, range(first_of_group, first_of_group + room)))
            sizes = np.zeros(room, np.int32)
            sizes[: len(steps)] = [sampler.count_examples(step) for step in steps]
            ids = np.zeros((room, len(sampler.rows), width), np.int32)
            ids[: len(steps)] = sampler.load_batches(steps, width)
        except UserError as error:
            self._error = error
            raise
        return sizes, ids
