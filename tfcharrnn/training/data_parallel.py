"""Data-parallel training on `tf.distribute`: the training step on many replicas of the model.

Each replica holds the whole model and optimizer on its own device and computes the losses of its own rows of every
batch. The gradients of the summed losses are added up over all replicas (all-reduce) and divided by the number of
characters of the whole batch; then every replica makes the same update.

The variables are plain, not mirrored: a replica runs the same code as a single device, compiled or not, and the
strategy provides the devices, the workers and the all-reduce. Compiled code cannot update mirrored variables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.config import TrainingConfig
from tfcharrnn.data.input_pipeline import Call
from tfcharrnn.distributed.cluster import Cluster
from tfcharrnn.model.char_rnn import CharRNN, StreamState
from tfcharrnn.training.train_step import (
    SECONDS_BETWEEN_RETURNS,
    RunLength,
    States,
    StepResults,
    Stop,
    Trainer,
    select_states,
)


class DataParallelTrainer:
    """Runs training steps on the replicas of this worker, in step with those of all other workers.

    Args:
        make_model: makes the model, with the same weights each time.
        config: the training options; the batch size is that of all replicas together.
        width: mean number of symbols in an example.
        length: the length of the run.
        cluster: the workers.

    Attributes:
        model: the model of the first replica; after every step all replicas have the same weights.
        optimizer: the optimizer of the first replica.
        average: with `--average` the running average of the weights of the first replica; else None.
        carried: for a stream, the state of all rows of a batch at the end of the last call; else None.
        steps_per_call: how many batches a call has room for.
    """

    def __init__(
        self,
        make_model: Callable[[], CharRNN],
        config: TrainingConfig,
        width: float,
        length: RunLength,
        cluster: Cluster,
    ):
        self._cluster = cluster
        self._config = config
        self._strategy: Any = cluster.strategy
        self._replicas = []
        for device, rows in zip(cluster.devices, cluster.split_batch(config.batch_size), strict=True):
            with tf.device(device):
                self._replicas.append(_Replica(make_model(), config, width, length, rows))
        first = self._replicas[0]
        self.model, self.optimizer, self.average = first.model, first.optimizer, first.average
        self.steps_per_call = first.steps_per_call
        self.carried = StreamState(self.model, config.batch_size) if first.carried else None
        self._steps_at_once = 1  # until their speed is known
        self._compiled_widths: set[int] = set()
        self._is_synchronized = False
        self._run_steps = tf.function(self._run_steps_on_replicas, autograph=False)
        self._gather = tf.function(self._gather_carried, autograph=False)

    def run(self, call: Call, skips_left: int = 0, stop: Stop = lambda: False) -> Iterator[StepResults]:
        """Runs the steps of one call; see `StepRunner.run`.

        All workers run the same steps; a stop requested on one of them ends the call after the same step on all.
        The call holds this worker's rows.
        """
        if not self._is_synchronized:
            self._broadcast()
        sizes = () if self._config.drop_remainder else (call.sizes,)
        rows: list[npt.NDArray[np.float64]] = []
        begin, is_last = 0, False
        start, width = time.perf_counter(), call.ids.shape[2]
        while not is_last:
            end = min(begin + self._steps_at_once, call.num_steps)
            bounds = (np.int64(call.first_step), np.int32(begin), np.int32(end))
            results = self._run_steps(*bounds, call.ids, np.int32(skips_left), np.bool_(stop()), *sizes)
            *counts, metrics = (result.numpy() for result in results)
            end, skips_left, num_stops = map(int, counts)
            rows.append(metrics[begin:end])
            begin = end
            is_last = end == call.num_steps or num_stops > 0 or skips_left < 0
            seconds = time.perf_counter() - start
            is_first = width not in self._compiled_widths
            # workers must run the same steps in a call, and would measure different speeds
            if self._cluster.num_workers == 1 and not is_first:
                self._steps_at_once = max(1, int(SECONDS_BETWEEN_RETURNS * sum(map(len, rows)) / seconds))
            if is_last and self.carried:
                self._gather()
            if is_last or seconds > SECONDS_BETWEEN_RETURNS:
                self._compiled_widths.add(width)
                yield StepResults.from_rows(np.concatenate(rows), width, seconds, num_stops > 0, is_first)
                rows, start = [], time.perf_counter()

    def gradient_norms(self, ids: tf.Tensor, step: int, size: int | None = None) -> dict[str, float]:
        """Returns the gradient norms of the first replica's rows; see `StepRunner.gradient_norms`."""
        first = self._replicas[0]
        return first.gradient_norms(ids[: len(first.rows)], step, size)

    def _run_steps_on_replicas(
        self,
        first_step: tf.Tensor,
        begin: tf.Tensor,
        end: tf.Tensor,
        batches: tf.Tensor,
        skips_left: tf.Tensor,
        stop: tf.Tensor,
        sizes: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Trains on the batches from `begin` up to `end` in one loop, which a stop on any worker ends after a step.

        Args:
            first_step: updates done before the first batch, int64.
            begin: index of the first batch to use, int32.
            end: index after the last one, int32.
            batches: the rows of this worker, int32 `[steps_per_call, rows, width]`.
            skips_left: how many non-finite steps may be skipped, int32.
            stop: whether this worker is to stop, bool.
            sizes: number of examples in each whole batch, int32 `[steps_per_call]`; None: all are full.

        Returns:
            The index after the last batch that was used, how many non-finite steps may still be skipped, how many
            replicas are to stop, and a row of `StepMetrics` for each batch, float64 `[steps_per_call, 4]`; rows of
            unused batches are undefined.
        """

        def train_on_batch(
            index: tf.Tensor, skips_left: tf.Tensor, _: tf.Tensor, metrics: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.TensorArray]:
            size = None if sizes is None else sizes[index]
            step = first_step + tf.cast(index, tf.int64)
            row, is_finite, num_stops = self._step_on_replicas(batches[index], step, stop, size)
            return index + 1, skips_left - tf.cast(~is_finite, tf.int32), num_stops, metrics.write(index, row)

        metrics = tf.TensorArray(tf.float64, batches.shape[0], element_shape=[4])
        # the loop is around the replicas: `all_reduce` cannot stand in a loop inside one
        index, skips_left, num_stops, metrics = tf.while_loop(
            lambda index, skips_left, num_stops, _: (index < end) & (skips_left >= 0) & (num_stops == 0),
            train_on_batch,
            (begin, skips_left, tf.constant(0), metrics),
        )
        return index, skips_left, num_stops, metrics.stack()

    def _step_on_replicas(
        self, ids: tf.Tensor, step: tf.Tensor, stop: tf.Tensor, size: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Runs one step on all replicas.

        Returns:
            Its `StepMetrics`, float64 `[4]`, whether it was applied, and how many replicas are to stop, int32.
        """
        first_row = self._replicas[0].rows.start

        def on_replica(
            ids: tf.Tensor, step: tf.Tensor, stop: tf.Tensor, size: tf.Tensor | None
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            replica, context = self._current_replica(), tf.distribute.get_replica_context()
            ids = ids[replica.rows.start - first_row : replica.rows.stop - first_row]
            before = replica.carried_states()
            loss_sum, num_characters, gradients, after = replica.compiled_gradients(ids, before, step, size)
            sums = tf.stack([loss_sum, num_characters, tf.cast(stop, loss_sum.dtype)])
            # outside the compiled code, which on a CPU cannot communicate with other devices
            sums, *gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, [sums, *gradients])
            row, is_finite = replica.compiled_update(sums[0], sums[1], gradients, step, size)
            if replica.carried:
                kept = select_states(is_finite, after, before)
                tf.nest.map_structure(lambda variable, value: variable.assign(value), replica.carried.state, kept)
                replica.carried.symbols.assign(ids[:, -1])
            return row, is_finite, tf.cast(sums[2], tf.int32)

        row, is_finite, num_stops = map(self._local_value, self._strategy.run(on_replica, (ids, step, stop, size)))
        return row, is_finite, num_stops

    def _gather_carried(self) -> None:
        """Concatenates the carried states of the replicas of all workers into `carried`."""

        def on_replica() -> tuple[tf.Tensor, ...]:
            values = [tf.convert_to_tensor(variable) for variable in _flatten(self._current_replica().carried)]
            return tuple(tf.distribute.get_replica_context().all_gather(values, axis=0))

        gathered = self._strategy.run(on_replica)
        for variable, value in zip(_flatten(self.carried), gathered, strict=True):
            variable.assign(self._local_value(value))

    def _broadcast(self) -> None:
        """Copies the first replica's variables, which may come from a checkpoint, and the rows of `carried` to all."""
        first, *others = self._replicas
        for other in others:
            for variable, value in zip(other.synchronized, first.synchronized, strict=True):
                variable.assign(value)
        for replica in self._replicas:
            for variable, whole in zip(_flatten(replica.carried), _flatten(self.carried), strict=True):
                variable.assign(whole[replica.rows.start : replica.rows.stop])
        self._is_synchronized = True

    def _current_replica(self) -> _Replica:
        """Returns the replica that is being traced."""
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        return self._replicas[int(tf.get_static_value(index)) - self._cluster.index * len(self._replicas)]

    def _local_value(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the value of this worker's first replica."""
        return self._strategy.experimental_local_results(values)[0]


class _Replica(Trainer):
    """Trains on some rows of each batch; the gradients of other replicas are added before the update."""

    def __init__(self, model: CharRNN, config: TrainingConfig, width: float, length: RunLength, rows: range):
        super().__init__(model, config, width, length, rows)
        self.compiled_gradients = tf.function(self._gradients_of_sum, jit_compile=self.jit_compile, autograph=False)
        self.compiled_update = tf.function(self._update_by_sum, jit_compile=self.jit_compile, autograph=False)

    @property
    def synchronized(self) -> list[tf.Variable]:
        """The variables that must be the same in all replicas."""
        average = self.average.model.variables if self.average else ()
        return [*self.model.variables, *self.optimizer.variables, *average]

    def _gradients_of_sum(
        self, ids: tf.Tensor, states: States, step: tf.Tensor, size: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], States]:
        return self.gradients(ids, states, step, size, of_sum=True)

    def _update_by_sum(
        self,
        loss_sum: tf.Tensor,
        num_characters: tf.Tensor,
        gradients: list[tf.Tensor],
        step: tf.Tensor,
        size: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Updates by the gradients of the summed losses of the whole batch."""
        denominator = self.denominator(num_characters, size)
        metrics, is_finite = self.update(loss_sum, num_characters, [g / denominator for g in gradients], step)
        return metrics.stack(), is_finite


def _flatten(carried: StreamState | None) -> list[tf.Variable]:
    """Returns the variables of a carried state, in a fixed order."""
    return tf.nest.flatten([carried.state, carried.symbols]) if carried else []
