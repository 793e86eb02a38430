"""The training step: forward, backward, clip, update; and many of them in one compiled call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn import rng
from tfcharrnn.config import TrainingConfig
from tfcharrnn.model.cells import State
from tfcharrnn.model.char_rnn import Carried, CharRNN
from tfcharrnn.training import optimizers

# of each layer
States = tuple[State, ...]

# A compiled call should be long enough that starting it costs nothing, and short enough to be interrupted.
_CALL_FLOPS = 5e9
_MAX_STEPS_PER_CALL = 1000
# However many steps a call is asked to have, it is left and entered again about so often, in seconds.
_LONGEST = 1.0
# As long as nothing was measured, a machine is taken to be as slow as this, in operations a second.
_SLOW_MACHINE = 2e10
# Below so many operations a step's own overhead counts.
_SMALL_STEP = 2e9


class Results(NamedTuple):
    """What some steps gave.

    Attributes:
        steps: a row for each step: the sum of the losses in nats, over how many characters it goes, the gradients'
            global norm, and the learning rate, float64 `[steps, 4]`. Where a loss or a norm is no finite number,
            that step changed nothing.
        width: symbols in an example.
        seconds: how long they took.
        stopped: it was asked for to stop here.
    """

    steps: npt.NDArray[np.float64]
    width: int
    seconds: float
    stopped: bool = False

    @property
    def loss(self) -> float:
        """The mean loss of the good steps in nats a character; not a number if there is none."""
        good = self.steps[np.isfinite(self.steps).all(axis=1)]
        return float(good[:, 0].sum() / good[:, 1].sum()) if len(good) else math.nan

    @property
    def speed(self) -> float:
        """Characters a second."""
        return float(self.steps[:, 1].sum() / self.seconds)


class Trainer:
    """A model with its optimizer and its compiled training step.

    Attributes:
        rows: which rows of each batch it trains on: all, or those of one replica among others.
        carried: for a stream what goes from one step to the next, else None.
        steps_per_call: how many steps go into one compiled call: as set, or so many that it is worth its start.
    """

    def __init__(
        self,
        model: CharRNN,
        config: TrainingConfig,
        width: float,
        steps_per_epoch: int,
        total_steps: int,
        rows: range | None = None,
    ):
        """Takes the model and the settings.

        Args:
            model: what is trained.
            config: how.
            width: symbols in an example, on average; decides `steps_per_call`.
            steps_per_epoch: decides where a stream begins anew and, with `total_steps`, the learning rate.
            total_steps: see `steps_per_epoch`.
            rows: of each batch, those to train on; None: all.
        """
        self.model = model
        self.config = config
        self.rows = range(config.batch_size) if rows is None else rows
        self.variables = model.trainable_variables
        self.optimizer = optimizers.OPTIMIZERS[config.optimizer](self.variables)
        self.carried = Carried(model, len(self.rows)) if model.layout.carries_state else None
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        # two operations a weight and character forward, four backward
        flops = 6 * model.num_parameters * config.batch_size * width
        self.jit_compile = model.implementation.jit_compile and flops * len(self.rows) / config.batch_size < _SMALL_STEP
        self.steps_per_call = config.steps_per_call or max(1, min(_MAX_STEPS_PER_CALL, int(_CALL_FLOPS / flops)))
        self._steps_at_once = max(1, int(_LONGEST * _SLOW_MACHINE / flops))
        self._compiled: set[int] = set()
        # a large step is faster if XLA compiles its loops alone; see `recurrence`
        self.run_steps = tf.function(self._run_steps, jit_compile=self.jit_compile)

    def run(
        self,
        first_step: int,
        count: int,
        batches: tf.Tensor,
        skips_left: int = 0,
        stop: Callable[[], bool] = lambda: False,
        sizes: tf.Tensor | None = None,
    ) -> Iterator[Results]:
        """Does the steps of a call, and gives control back at least every few seconds.

        Args:
            first_step: updates done before.
            count: steps to do.
            batches: `[steps_per_call, batch, width]`, of which the first `count` are used.
            skips_left: how many steps with a loss or a gradient that is not finite may be skipped; at the next one the
                call ends, and that step is its last.
            stop: asked now and then whether the call is to end where it is.
            sizes: how many rows of each batch are examples, int32 `[steps_per_call]`. The others are empty and count
                nothing; needed where incomplete batches are not dropped.
        """
        begin, width = 0, batches.shape[2]
        more = () if self.config.drop_remainder or sizes is None else (sizes,)
        while begin < count:
            end = min(begin + self._steps_at_once, count)
            clock = time.perf_counter()
            rows = self.run_steps(
                np.int64(first_step), np.int32(begin), np.int32(end), batches, np.int32(skips_left), *more
            ).numpy()[begin:end]
            seconds = time.perf_counter() - clock
            if width in self._compiled:  # else most of the time went into that
                self._steps_at_once = max(1, int(_LONGEST * (end - begin) / seconds))
            self._compiled.add(width)
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            stopped = stop()
            yield Results(rows[: bad[skips_left] + 1] if len(bad) > skips_left else rows, width, seconds, stopped)
            if stopped or len(bad) > skips_left:
                return
            skips_left -= len(bad)
            begin = end

    def gradient_norms(self, ids: tf.Tensor, step: int, size: int | None = None) -> dict[str, float]:
        """The norm of the loss's gradient by each variable, as the weights and the carried state are now.

        Args:
            ids: a batch, `[batch, width]`.
            step: the step that it belongs to.
            size: how many of its rows are examples; None: all.
        """
        state, step_tensor = self.carried_states() if self.carried else None, tf.constant(step, tf.int64)
        _, _, gradients, _ = self.gradients(ids, state, step_tensor, size if size is None else tf.constant(size))
        by_variable = {v.ref(): gradient for v, gradient in zip(self.variables, gradients, strict=True)}
        return {name: float(tf.norm(by_variable[v.ref()])) for name, v in self.model.named_variables.items()}

    def train_step(
        self, ids: tf.Tensor, state: States | None, step: tf.Tensor, size: tf.Tensor | None = None
    ) -> tuple[tuple[tf.Tensor, ...], States, tf.Tensor]:
        """One update of the weights: forward, backward through the whole example, clip, update.

        Args:
            ids: examples, `[batch, width]`.
            state: what the step before has carried to this one; None: each example begins at the initial state.
            step: updates done before, int64.
            size: how many rows of the whole batch are examples, if the others are empty; None: all.

        Returns:
            The sum of the losses in nats, over how many characters it goes, the gradients' global norm and the
            learning rate, all before the update; the state after the examples, for the next step of a stream; and
            whether loss and gradients are finite numbers. If they are not, nothing is updated.
        """
        total, characters, gradients, after = self.gradients(ids, state, step, size)
        result, finite = self.update(total, characters, gradients, step)
        return result, after, finite

    def gradients(
        self,
        ids: tf.Tensor,
        state: States | None,
        step: tf.Tensor,
        size: tf.Tensor | None = None,
        *,
        of_sum: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], States]:
        """Forward, and backward through the whole example.

        Args:
            ids: as in `train_step`, like `state`, `step` and `size`.
            state: see `ids`.
            step: see `ids`.
            size: see `ids`.
            of_sum: give the gradients of the sum of the losses, instead of what is minimised.

        Returns:
            The sum of the losses in nats, over how many characters it goes, a gradient for each variable, and the state
            after the examples.
        """
        dropout_key = rng.key(self.config.seed, rng.Purpose.DROPOUT, step)
        characters = self.model.num_targets(ids)
        is_example = None if size is None else tf.range(self.rows.start, self.rows.stop) < size
        if is_example is not None and self.model.layout.pad_id is None:  # else empty rows are padding, never counted
            examples = tf.reduce_sum(tf.cast(is_example, self.model.dtype))
            characters = examples * self.model.num_targets(ids[:1])
        with tf.GradientTape() as tape:  # it must see the initial state, which may be learned
            before = None if state is None else self._state_before(step, state)
            losses, after = self.model.losses(ids, before, dropout_key, self.rows, self.config.batch_size)
            if is_example is not None:
                losses = tf.where(is_example[:, tf.newaxis], losses, tf.zeros_like(losses))
            total = tf.reduce_sum(losses)
            minimised = total if of_sum else total / self.num_losses(characters, size)
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(minimised, self.variables)]
        return total, characters, gradients, after

    def num_losses(self, characters: tf.Tensor, size: tf.Tensor | None = None) -> tf.Tensor | int:
        """By what the sum of the losses of a batch, of `size` examples, is divided to give what is minimised."""
        if self.config.reduction == "mean":
            return characters
        return self.config.batch_size if size is None else tf.cast(size, self.model.dtype)

    def update(
        self, total: tf.Tensor, characters: tf.Tensor, gradients: list[tf.Tensor], step: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
        """Clips the gradients and updates the weights.

        Args:
            total: what `gradients` gave, like `characters` and `gradients`; over several replicas, added up.
            characters: see `total`.
            gradients: see `total`; of what is minimised.
            step: updates done before, int64.

        Returns:
            The four numbers of `Results.steps`, and whether loss and gradients are finite.
        """
        gradients, norm = optimizers.clip(gradients, self.config)
        rate = optimizers.learning_rate(self.config, step, self._steps_per_epoch, self._total_steps)
        finite = tf.math.is_finite(total) & tf.math.is_finite(norm)

        if self.jit_compile:  # XLA makes the choice a part of the arithmetic; a branch would cost a third of the step
            self.optimizer.apply(self.variables, gradients, rate, step, finite)
        else:

            def update() -> tf.Tensor:
                self.optimizer.apply(self.variables, gradients, rate, step)
                return finite

            tf.cond(finite, update, lambda: finite)
        return (total, characters, norm, rate), finite

    def _run_steps(
        self,
        first_step: tf.Tensor,
        begin: tf.Tensor,
        end: tf.Tensor,
        batches: tf.Tensor,
        skips_left: tf.Tensor,
        sizes: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Several steps in one compiled loop.

        Args:
            first_step: updates done before the first batch, int64.
            begin: the first batch to use.
            end: the batch to stop before.
            batches: `[steps_per_call, batch, width]`.
            skips_left: how many bad steps may be skipped; see `run`.
            sizes: see `run`.

        Returns:
            The four numbers of `Results.steps`, float64 `[steps_per_call, 4]`; other rows mean nothing.
        """
        results = tf.TensorArray(tf.float64, batches.shape[0], element_shape=[4])
        carries = self.carried is not None

        def body(
            index: tf.Tensor, states: States, skips_left: tf.Tensor, results: tf.TensorArray
        ) -> tuple[tf.Tensor, States, tf.Tensor, tf.TensorArray]:
            step, ids = first_step + tf.cast(index, tf.int64), batches[index]
            size = None if sizes is None else sizes[index]
            result, after, finite = self.train_step(ids, states if carries else None, step, size)
            row = tf.stack([tf.cast(value, tf.float64) for value in result])
            if carries:
                before = self._state_before(step, states)
                states = tf.nest.map_structure(lambda new, old: tf.where(finite, new, old), after, before)
            return index + 1, states, skips_left - tf.cast(~finite, tf.int32), results.write(index, row)

        states = self.carried_states() if carries else ()
        _, states, _, results = tf.while_loop(
            lambda index, states, skips_left, results: (index < end) & (skips_left >= 0),
            body,
            (begin, states, skips_left, results),
            maximum_iterations=batches.shape[0],
        )
        if self.carried:
            tf.nest.map_structure(lambda variable, value: variable.assign(value), self.carried.state, states)
            self.carried.symbols.assign(batches[end - 1, :, -1])
        return results.stack()

    def carried_states(self) -> States:
        """What `carried` holds, as tensors."""
        return tf.nest.map_structure(tf.convert_to_tensor, self.carried.state) if self.carried else ()

    def _state_before(self, step: tf.Tensor, states: States) -> States:
        """The state that a stream has carried to a step; an epoch begins at the beginning."""
        begins = step % self._steps_per_epoch == 0
        return tf.nest.map_structure(
            lambda first, carried: tf.where(begins, first, carried),
            self.model.initial_state(len(self.rows)),
            states,
        )
