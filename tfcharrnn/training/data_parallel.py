"""The training step on many replicas of the model, side by side on `tf.distribute`.

Each replica has the whole model and the whole optimizer on a device of its own, and computes the loss of its own rows
of every batch. The gradients of the sums of these losses are added up over all replicas (all-reduce), divided by the
number of characters of the whole batch, and then every replica makes the very same update.

The variables are plain ones: what a replica does is what a single one would, compiled or not, and the strategy is asked
for the devices, for the workers and for the sum. Mirrored variables could be updated from outside compiled code only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfcharrnn.config import TrainingConfig
from tfcharrnn.distributed.cluster import Cluster
from tfcharrnn.model.char_rnn import Carried, CharRNN
from tfcharrnn.training.train_step import Results, States, Trainer

# A call gives control back about so often, in seconds.
_LONGEST = 1.0


class ReplicatedTrainer:
    """Does what a `Trainer` does, with the replicas of this worker and, in step with them, those of all others.

    Attributes:
        model: that of the first replica; after every step the others' weights are the same.
        optimizer: of the first replica.
        carried: for a stream what goes from one step to the next, for all rows of a batch, as it was at the end of the
            last call; else None.
        steps_per_call: how many steps the batches of a call have room for.
    """

    def __init__(
        self,
        make_model: Callable[[], CharRNN],
        config: TrainingConfig,
        width: float,
        steps_per_epoch: int,
        total_steps: int,
        cluster: Cluster,
    ):
        """Makes the replicas of this worker.

        Args:
            make_model: makes the model, each time the same.
            config: how it is trained; its batch size is that of all replicas together.
            width: as `Trainer` takes it, like `steps_per_epoch` and `total_steps`.
            steps_per_epoch: see `width`.
            total_steps: see `width`.
            cluster: the workers.
        """
        self._cluster = cluster
        self._config = config
        self._strategy: Any = cluster.strategy
        self._replicas = []
        for device, rows in zip(cluster.devices, cluster.rows(config.batch_size), strict=True):
            with tf.device(device):
                self._replicas.append(_Replica(make_model(), config, width, steps_per_epoch, total_steps, rows))
        first = self._replicas[0]
        self.model, self.optimizer, self.steps_per_call = first.model, first.optimizer, first.steps_per_call
        self.carried = Carried(self.model, config.batch_size) if first.carried else None
        self._is_spread = False
        self._step = tf.function(self._step_of_all)
        self._collect = tf.function(self._collect_carried)

    def run(
        self,
        first_step: int,
        count: int,
        batches: tf.Tensor,
        skips_left: int = 0,
        stop: Callable[[], bool] = lambda: False,
        sizes: tf.Tensor | None = None,
    ) -> Iterator[Results]:
        """Does the steps of a call; see `Trainer.run`.

        All workers do the same steps, and a stop that is asked for on one of them ends the call after the same step on
        all.

        Args:
            first_step: updates done before.
            count: steps to do.
            batches: this worker's rows, `[steps_per_call, rows, width]`.
            skips_left: as in `Trainer.run`.
            stop: asked before every step.
            sizes: as in `Trainer.run`, of whole batches.
        """
        if not self._is_spread:
            self._spread()
        rows: list[list[float]] = []
        clock, width = time.perf_counter(), batches.shape[2]
        for index in range(count):
            step = tf.constant(first_step + index, tf.int64)
            size = None if self._config.drop_remainder or sizes is None else sizes[index]
            *row, stops = self._step(batches[index], step, tf.constant(float(stop())), size).numpy().tolist()
            rows.append(row)
            skips_left -= not np.isfinite(row).all()
            is_last = index == count - 1 or stops > 0 or skips_left < 0
            if is_last and self.carried:
                self._collect()
            now = time.perf_counter()
            if is_last or now - clock > _LONGEST:
                yield Results(np.array(rows), width, now - clock, stops > 0)
                rows, clock = [], time.perf_counter()
            if is_last:
                return

    def gradient_norms(self, ids: tf.Tensor, step: int, size: int | None = None) -> dict[str, float]:
        """The norms of the gradients of the first replica's own rows; see `Trainer.gradient_norms`.

        Args:
            ids: this worker's rows of a batch, `[rows, width]`.
            step: the step that it belongs to.
            size: as in `Trainer.gradient_norms`.
        """
        first = self._replicas[0]
        return first.gradient_norms(ids[: len(first.rows)], step, size)

    def _step_of_all(
        self, ids: tf.Tensor, step: tf.Tensor, stop: tf.Tensor, size: tf.Tensor | None = None
    ) -> tf.Tensor:
        """One step on all replicas; the four numbers of `Results.steps`, and how many replicas are to stop, `[5]`."""
        begin = self._replicas[0].rows.start

        def on_replica(ids: tf.Tensor, step: tf.Tensor, stop: tf.Tensor, size: tf.Tensor | None) -> tf.Tensor:
            replica, context = self._here(), tf.distribute.get_replica_context()
            own = ids[replica.rows.start - begin : replica.rows.stop - begin]
            before = replica.carried_states()
            total, characters, gradients, after = replica.compiled_gradients(
                own, before if self.carried else None, step, size
            )
            sums = tf.stack([total, characters, tf.cast(stop, total.dtype)])
            # outside of the compiled code, which on a CPU cannot talk to other devices
            sums, *gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, [sums, *gradients])
            row, finite = replica.compiled_update(sums[0], sums[1], gradients, step, size)
            if replica.carried:
                kept = tf.nest.map_structure(lambda new, old: tf.where(finite, new, old), after, before)
                tf.nest.map_structure(lambda variable, value: variable.assign(value), replica.carried.state, kept)
                replica.carried.symbols.assign(own[:, -1])
            return tf.concat([row, tf.cast(sums[2:], tf.float64)], axis=0)

        return self._local(self._strategy.run(on_replica, (ids, step, stop, size)))

    def _collect_carried(self) -> None:
        """Puts together what the replicas of all workers carry."""

        def on_replica() -> tuple[tf.Tensor, ...]:
            values = [tf.convert_to_tensor(variable) for variable in _flat(self._here().carried)]
            return tuple(tf.distribute.get_replica_context().all_gather(values, axis=0))

        gathered = self._strategy.run(on_replica)
        for variable, value in zip(_flat(self.carried), gathered, strict=True):
            variable.assign(self._local(value))

    def _spread(self) -> None:
        """Gives all replicas what the first one has, which may come from a checkpoint, and their rows of `carried`."""
        first, *others = self._replicas
        for other in others:
            for mine, its in zip(other.kept, first.kept, strict=True):
                mine.assign(its)
        for replica in self._replicas:
            for mine, whole in zip(_flat(replica.carried), _flat(self.carried), strict=True):
                mine.assign(whole[replica.rows.start : replica.rows.stop])
        self._is_spread = True

    def _here(self) -> _Replica:
        """The replica that is traced now."""
        place = tf.distribute.get_replica_context().replica_id_in_sync_group
        return self._replicas[int(tf.get_static_value(place)) - self._cluster.index * len(self._replicas)]

    def _local(self, values: tf.Tensor) -> tf.Tensor:
        return self._strategy.experimental_local_results(values)[0]


class _Replica(Trainer):
    """One replica: a trainer of some rows, whose gradients others are to be added to before the update."""

    def __init__(
        self,
        model: CharRNN,
        config: TrainingConfig,
        width: float,
        steps_per_epoch: int,
        total_steps: int,
        rows: range,
    ):
        super().__init__(model, config, width, steps_per_epoch, total_steps, rows)
        self.compiled_gradients = tf.function(self._gradients_of_sum, jit_compile=self.jit_compile)
        self.compiled_update = tf.function(self._update_by_mean, jit_compile=self.jit_compile)

    @property
    def kept(self) -> list[tf.Variable]:
        """What must be the same in all replicas."""
        return [*self.model.variables, *self.optimizer.variables]

    def _gradients_of_sum(
        self, ids: tf.Tensor, state: States | None, step: tf.Tensor, size: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], States]:
        return self.gradients(ids, state, step, size, of_sum=True)

    def _update_by_mean(
        self,
        total: tf.Tensor,
        characters: tf.Tensor,
        gradients: list[tf.Tensor],
        step: tf.Tensor,
        size: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        number = self.num_losses(characters, size)
        row, finite = self.update(total, characters, [gradient / number for gradient in gradients], step)
        return tf.stack([tf.cast(value, tf.float64) for value in row]), finite


def _flat(carried: Carried | None) -> list[tf.Variable]:
    return tf.nest.flatten([carried.state, carried.symbols]) if carried else []
