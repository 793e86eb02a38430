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
        self._compiled_widths: set[int] = set()
        self._is_synchronized = False
        self._step = tf.function(self._step_on_replicas, autograph=False)
        self._gather = tf.function(self._gather_carried, autograph=False)

    def run(self, call: Call, skips_left: int = 0, stop: Stop = lambda: False) -> Iterator[StepResults]:
        """Runs the steps of one call; see `StepRunner.run`.

        All workers run the same steps; a stop requested on one of them ends the call after the same step on all.
        The call holds this worker's rows.
        """
        if not self._is_synchronized:
            self._broadcast()
        rows: list[list[float]] = []
        start, width = time.perf_counter(), call.ids.shape[2]
        for index in range(call.num_steps):
            step = tf.constant(call.first_step + index, tf.int64)
            size = None if self._config.drop_remainder else call.sizes[index]
            *row, num_stops = self._step(call.ids[index], step, tf.constant(float(stop())), size).numpy().tolist()
            rows.append(row)
            skips_left -= not np.isfinite(row).all()
            is_last = index == call.num_steps - 1 or num_stops > 0 or skips_left < 0
            if is_last and self.carried:
                self._gather()
            now = time.perf_counter()
            if is_last or now - start > SECONDS_BETWEEN_RETURNS:
                is_first = width not in self._compiled_widths
                self._compiled_widths.add(width)
                yield StepResults.from_rows(np.array(rows), width, now - start, num_stops > 0, is_first)
                rows, start = [], time.perf_counter()
            if is_last:
                return

    def gradient_norms(self, ids: tf.Tensor, step: int, size: int | None = None) -> dict[str, float]:
        """Returns the gradient norms of the first replica's rows; see `StepRunner.gradient_norms`."""
        first = self._replicas[0]
        return first.gradient_norms(ids[: len(first.rows)], step, size)

    def _step_on_replicas(
        self, ids: tf.Tensor, step: tf.Tensor, stop: tf.Tensor, size: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Runs one step on all replicas; returns its `StepMetrics` and how many replicas are to stop, `[5]`."""
        first_row = self._replicas[0].rows.start

        def on_replica(ids: tf.Tensor, step: tf.Tensor, stop: tf.Tensor, size: tf.Tensor | None) -> tf.Tensor:
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
            return tf.concat([row, tf.cast(sums[2:], tf.float64)], axis=0)

        return self._local_value(self._strategy.run(on_replica, (ids, step, stop, size)))

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
