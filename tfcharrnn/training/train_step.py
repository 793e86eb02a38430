"""The training step (forward, backward, clip, update) and many of them in one compiled call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn import rng
from tfcharrnn.config import TrainingConfig
from tfcharrnn.data.input_pipeline import Call
from tfcharrnn.model.cells import State
from tfcharrnn.model.char_rnn import CharRNN, StreamState
from tfcharrnn.training import optimizers
from tfcharrnn.training.optimizers import WeightAverage

# One state for each layer.
States = tuple[State, ...]
Stop = Callable[[], bool]

# A compiled call should be long enough to hide its launch cost and short enough to be interrupted.
_CALL_FLOPS = 5e9
_MAX_STEPS_PER_CALL = 1000
# A call returns to Python about this often, in seconds, however many steps it was asked to run.
SECONDS_BETWEEN_RETURNS = 1.0
# The speed assumed before the first measurement, in operations per second: that of a slow machine.
_ASSUMED_FLOPS_PER_SECOND = 2e10
# Below this many operations the overhead of launching a step's kernels matters.
_SMALL_STEP_FLOPS = 2e9


class StepMetrics(NamedTuple):
    """What one training step measured: four scalars, or, for several steps, four arrays `[steps]`.

    Attributes:
        loss_sum: sum of the losses over all predicted characters, in nats.
        num_characters: number of predicted characters.
        grad_norm: global norm of the gradients before clipping.
        learning_rate: the learning rate of the step.
    """

    loss_sum: Any
    num_characters: Any
    grad_norm: Any
    learning_rate: Any

    def stack(self) -> tf.Tensor:
        """Returns the four scalars as one tensor, float64 `[4]`."""
        return tf.stack([tf.cast(value, tf.float64) for value in self])


class StepResults(NamedTuple):
    """Results of consecutive training steps.

    Attributes:
        metrics: float64 arrays `[steps]`. A step whose loss or gradient norm is not finite changed nothing.
        width: symbols in an example.
        seconds: how long the steps took.
        stopped: training was asked to stop after these steps.
        is_first: they are the first with examples of this width, and most of the time went into compiling.
    """

    metrics: StepMetrics
    width: int
    seconds: float
    stopped: bool = False
    is_first: bool = False

    @classmethod
    def from_rows(
        cls, rows: npt.NDArray[np.float64], width: int, seconds: float, stopped: bool, is_first: bool
    ) -> StepResults:
        """Unpacks the rows `[steps, 4]` that `StepMetrics.stack` made."""
        return cls(StepMetrics(*rows.T), width, seconds, stopped, is_first)

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.metrics.loss_sum)

    @property
    def is_finite(self) -> npt.NDArray[np.bool_]:
        """For each step whether it was applied, that is whether its loss and gradients are finite, `[steps]`."""
        return np.isfinite(np.stack(self.metrics)).all(axis=0)

    def per_step(self) -> list[StepMetrics]:
        """Returns the metrics of each step, as Python floats."""
        return [StepMetrics(*row) for row in np.stack(self.metrics, axis=1).tolist()]

    @property
    def loss(self) -> float:
        """Mean loss of the applied steps in nats a character; NaN if there is none."""
        applied = self.is_finite
        if not applied.any():
            return math.nan
        return float(self.metrics.loss_sum[applied].sum() / self.metrics.num_characters[applied].sum())

    @property
    def chars_per_second(self) -> float:
        """Training speed."""
        return float(self.metrics.num_characters.sum() / self.seconds)


class RunLength(NamedTuple):
    """The length of a training run.

    Attributes:
        steps_per_epoch: batches in an epoch; a stream starts over, and learning rates decay, at multiples of it.
        total_steps: steps of the whole run.
    """

    steps_per_epoch: int
    total_steps: int


class StepRunner(Protocol):
    """Runs training steps, on one device (`Trainer`) or on many (`DataParallelTrainer`).

    Attributes:
        model: the model; its weights are those after the last step.
        optimizer: the optimizer with its moments.
        average: with `--average` the running average of the weights; else None.
        carried: for a stream, the state that goes from one step to the next; else None.
        steps_per_call: how many batches a call has room for.
    """

    model: CharRNN
    optimizer: optimizers.Optimizer
    average: WeightAverage | None
    carried: StreamState | None
    steps_per_call: int

    def run(self, call: Call, skips_left: int = 0, stop: Stop = lambda: False) -> Iterator[StepResults]:
        """Runs the steps of one call and returns to Python at least every few seconds.

        Args:
            call: the batches. Where incomplete ones are not dropped, rows beyond a batch's size count nothing.
            skips_left: how many non-finite steps may be skipped; the next one ends the call and is its last step.
            stop: polled to end the call early.
        """

    def gradient_norms(self, ids: tf.Tensor, step: int, size: int | None = None) -> dict[str, float]:
        """Returns the norm of the loss's gradient for each variable, for the current weights and carried state.

        Args:
            ids: a batch, `[rows, width]`.
            step: the step it belongs to.
            size: how many rows of the whole batch are examples; None: all.
        """


class Trainer:
    """A model, its optimizer and its compiled training step on one device; see `StepRunner` for the attributes.

    Args:
        model: the model to train.
        config: the training options.
        width: mean number of symbols in an example; decides `steps_per_call`.
        length: the length of the run.
        rows: the rows of each batch to train on, for one replica among several; None: all.
    """

    def __init__(
        self, model: CharRNN, config: TrainingConfig, width: float, length: RunLength, rows: range | None = None
    ):
        self.model = model
        self.config = config
        self.length = length
        self.rows = range(config.batch_size) if rows is None else rows
        self.variables = model.trainable_variables
        self.optimizer = optimizers.make_optimizer(self.variables, config)
        self.average = WeightAverage(model, config.average) if config.average else None
        self.carried = StreamState(model, len(self.rows)) if model.layout.carries_state or config.carry_state else None
        # per weight and character two operations in the forward pass and four in the backward pass
        flops = 6 * model.num_parameters * config.batch_size * width
        flops_here = flops * len(self.rows) / config.batch_size
        self.jit_compile = model.backend.jit_compile and flops_here < _SMALL_STEP_FLOPS
        self.steps_per_call = config.steps_per_call or max(1, min(_MAX_STEPS_PER_CALL, int(_CALL_FLOPS / flops)))
        self._steps_at_once = max(1, int(SECONDS_BETWEEN_RETURNS * _ASSUMED_FLOPS_PER_SECOND / flops))
        self._compiled_widths: set[int] = set()
        # a large step is faster where XLA compiles only its recurrent loops; see `recurrence`
        self.run_steps = tf.function(self._run_steps, jit_compile=self.jit_compile, autograph=False)

    def run(self, call: Call, skips_left: int = 0, stop: Stop = lambda: False) -> Iterator[StepResults]:
        """Runs the steps of one call; see `StepRunner.run`."""
        begin, width = 0, call.ids.shape[2]
        sizes = () if self.config.drop_remainder else (call.sizes,)
        while begin < call.num_steps:
            end = min(begin + self._steps_at_once, call.num_steps)
            start = time.perf_counter()
            rows = self.run_steps(
                np.int64(call.first_step), np.int32(begin), np.int32(end), call.ids, np.int32(skips_left), *sizes
            ).numpy()[begin:end]
            if self.carried is not None:
                # not in compiled code: on a GPU, XLA cannot use int32 variables, which TensorFlow keeps on the host
                self.carried.symbols.assign(call.ids[end - 1, :, -1])
            seconds = time.perf_counter() - start
            is_first = width not in self._compiled_widths
            if not is_first:
                self._steps_at_once = max(1, int(SECONDS_BETWEEN_RETURNS * (end - begin) / seconds))
            self._compiled_widths.add(width)
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            is_diverged = len(bad) > skips_left
            if is_diverged:
                rows = rows[: bad[skips_left] + 1]
            stopped = stop()
            yield StepResults.from_rows(rows, width, seconds, stopped, is_first)
            if stopped or is_diverged:
                return
            skips_left -= len(bad)
            begin = end

    def _run_steps(
        self,
        first_step: tf.Tensor,
        begin: tf.Tensor,
        end: tf.Tensor,
        batches: tf.Tensor,
        skips_left: tf.Tensor,
        sizes: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Trains on the batches from `begin` up to `end` in one compiled loop.

        Args:
            first_step: updates done before the first batch, int64.
            begin: index of the first batch to use, int32.
            end: index after the last one, int32.
            batches: int32 `[steps_per_call, rows, width]`.
            skips_left: how many non-finite steps may be skipped, int32.
            sizes: number of examples in each whole batch, int32 `[steps_per_call]`; None: all are full.

        Returns:
            A row of `StepMetrics` for each batch, float64 `[steps_per_call, 4]`; rows of unused batches are undefined.
        """

        def train_on_batch(
            index: tf.Tensor, skips_left: tf.Tensor, states: States, metrics: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.Tensor, States, tf.TensorArray]:
            step, ids = first_step + tf.cast(index, tf.int64), batches[index]
            size = None if sizes is None else sizes[index]
            loss_sum, num_characters, gradients, after = self.gradients(ids, states, step, size)
            row, is_finite = self.update(loss_sum, num_characters, gradients, step)
            if self.config.loss_after_update:
                loss_after = self._loss(ids, states, step, size)[0]
                # if the update itself was too large, the next step will find that and stop
                row = row._replace(loss_sum=tf.where(tf.math.is_finite(loss_after), loss_after, loss_sum))
            if self.carried is not None:
                states = select_states(is_finite, after, self._state_before(step, states))
            skips_left -= tf.cast(~is_finite, tf.int32)
            return index + 1, skips_left, states, metrics.write(index, row.stack())

        _, _, states, metrics = tf.while_loop(
            lambda index, skips_left, *_: (index < end) & (skips_left >= 0),
            train_on_batch,
            (
                begin,
                skips_left,
                self.carried_states(),
                tf.TensorArray(tf.float64, batches.shape[0], element_shape=[4]),
            ),
            maximum_iterations=batches.shape[0],
        )
        if self.carried is not None:
            tf.nest.map_structure(lambda variable, value: variable.assign(value), self.carried.state, states)
        return metrics.stack()

    def gradients(
        self,
        ids: tf.Tensor,
        states: States,
        step: tf.Tensor,
        size: tf.Tensor | None = None,
        *,
        of_sum: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], States]:
        """Runs the model forward, then backward through every step of the examples.

        Args:
            ids: a batch, int32 `[rows, width]`.
            states: the state carried over from the step before; unused unless the layout carries its state.
            step: updates done before, int64.
            size: how many rows of the whole batch are examples, int32; None: all.
            of_sum: differentiate the sum of the losses instead of the training loss.

        Returns:
            The sum of the losses in nats, the number of predicted characters, a gradient for each variable, and the
            state after the examples.
        """
        with tf.GradientTape() as tape:  # it must record the initial state, which may be learned
            loss_sum, num_characters, after = self._loss(ids, states, step, size)
            loss = loss_sum if of_sum else loss_sum / self.denominator(num_characters, size)
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, self.variables)]
        return loss_sum, num_characters, gradients, after

    def _loss(
        self, ids: tf.Tensor, states: States, step: tf.Tensor, size: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, States]:
        """Runs the model forward; see `gradients` for the arguments and results."""
        dropout_key = rng.key(self.config.seed, rng.Purpose.DROPOUT, step)
        num_characters = self.model.count_targets(ids)
        is_example = None if size is None else tf.range(self.rows.start, self.rows.stop) < size
        if is_example is not None and self.model.layout.pad_id is None:  # with padding, empty rows have no targets
            num_examples = tf.reduce_sum(tf.cast(is_example, self.model.dtype))
            num_characters = num_examples * self.model.count_targets(ids[:1])
        before = None if self.carried is None else self._state_before(step, states)
        losses, after = self.model.losses(ids, before, dropout_key, self.rows, self.config.batch_size)
        if is_example is not None:
            losses = tf.where(is_example[:, tf.newaxis], losses, tf.zeros_like(losses))
        return tf.reduce_sum(losses), num_characters, after

    def denominator(self, num_characters: tf.Tensor, size: tf.Tensor | None = None) -> tf.Tensor | int:
        """Returns the denominator of the training loss: characters, or with `--reduction=sum` examples."""
        if self.config.reduction == "mean":
            return num_characters
        return self.config.batch_size if size is None else tf.cast(size, self.model.dtype)

    def update(
        self, loss_sum: tf.Tensor, num_characters: tf.Tensor, gradients: list[tf.Tensor], step: tf.Tensor
    ) -> tuple[StepMetrics, tf.Tensor]:
        """Clips the gradients and updates the weights, unless the loss or the gradients are not finite.

        Args:
            loss_sum: sum of the losses of the whole batch.
            num_characters: number of predicted characters of the whole batch.
            gradients: of the training loss, one for each variable.
            step: updates done before, int64.

        Returns:
            The metrics of the step, and whether it was applied, a bool scalar.
        """
        gradients, norm = optimizers.clip(gradients, self.config)
        rate = optimizers.learning_rate(self.config, step, *self.length)
        is_finite = tf.math.is_finite(loss_sum) & tf.math.is_finite(norm)

        def apply(finite: tf.Tensor | None = None) -> tf.Tensor:
            self.optimizer.apply(self.variables, gradients, rate, step, finite)
            if self.average is not None:
                self.average.update(step, finite)
            return is_finite

        if self.jit_compile:  # a `tf.where` fuses with the update; with a branch some steps take 1.3 times as long
            apply(is_finite)
        else:
            tf.cond(is_finite, apply, lambda: is_finite)
        return StepMetrics(loss_sum, num_characters, norm, rate), is_finite

    def gradient_norms(self, ids: tf.Tensor, step: int, size: int | None = None) -> dict[str, float]:
        """Returns the norm of the loss's gradient for each variable; see `StepRunner.gradient_norms`."""
        _, _, gradients, _ = self.gradients(
            ids, self.carried_states(), tf.constant(step, tf.int64), None if size is None else tf.constant(size)
        )
        by_variable = {v.ref(): gradient for v, gradient in zip(self.variables, gradients, strict=True)}
        return {name: float(tf.norm(by_variable[v.ref()])) for name, v in self.model.named_variables.items()}

    def carried_states(self) -> States:
        """Returns the carried state as tensors; of a layout that carries none, an empty tuple."""
        return tf.nest.map_structure(tf.convert_to_tensor, self.carried.state) if self.carried else ()

    def _state_before(self, step: tf.Tensor, states: States) -> States:
        """Returns the state a step starts from: at the start of an epoch of a stream, or of all lines, the initial one.

        With `--reset_state` some rows start over in every step. Where the initial state is learned, a step that starts
        from it has a gradient for it.
        """
        starts_over = step % self.length.steps_per_epoch == 0 if self.model.layout.carries_state else step == 0
        if self.config.reset_state:
            key = rng.key(self.config.seed, rng.Purpose.RESET, step)
            is_reset = rng.uniform([self.config.batch_size, 1], key) < self.config.reset_state
            starts_over |= is_reset[self.rows.start : self.rows.stop]
        return tf.nest.map_structure(
            lambda first, carried: tf.where(starts_over, first, carried),
            self.model.initial_state(len(self.rows)),
            states,
        )


def select_states(condition: tf.Tensor, states: States, otherwise: States) -> States:
    """Returns `states` where a bool scalar is true, else `otherwise`."""
    return tf.nest.map_structure(lambda new, old: tf.where(condition, new, old), states, otherwise)
