"""Training: the step that is compiled, and the loop around it."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn import checkpoints, cutting, optimizers, pipeline, randomness
from tfcharrnn import run as run_lib
from tfcharrnn.cells import State
from tfcharrnn.config import GenerationConfig, TrainingConfig
from tfcharrnn.dataset import DataFolder
from tfcharrnn.errors import UserError
from tfcharrnn.evaluation import Evaluator
from tfcharrnn.interruption import Interruption
from tfcharrnn.model import Carried, CharRNN
from tfcharrnn.progress import Progress
from tfcharrnn.run import Run
from tfcharrnn.sampling import Sampler

# of each layer
States = tuple[State, ...]

# A compiled call should be long enough that starting it costs nothing, and short enough to be interrupted.
_CALL_FLOPS = 5e9
_MAX_STEPS_PER_CALL = 1000
# Below so many operations a step's own overhead counts.
_SMALL_STEP = 2e9


class Trainer:
    """A model with its optimizer and its compiled training step.

    Attributes:
        carried: for a stream what goes from one step to the next, else None.
        steps_per_call: how many steps go into one compiled call: as set, or so many that it is worth its start.
    """

    def __init__(self, model: CharRNN, config: TrainingConfig, width: float, steps_per_epoch: int, total_steps: int):
        """Takes the model and the settings.

        Args:
            model: what is trained.
            config: how.
            width: symbols in an example, on average; decides `steps_per_call`.
            steps_per_epoch: decides where a stream begins anew and, with `total_steps`, the learning rate.
            total_steps: see `steps_per_epoch`.
        """
        self.model = model
        self.config = config
        self.variables = model.trainable_variables
        self.optimizer = optimizers.OPTIMIZERS[config.optimizer](self.variables)
        self.carried = Carried(model, config.batch_size) if model.layout.carries_state else None
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        # two operations a weight and character forward, four backward
        flops = 6 * model.num_parameters * config.batch_size * width
        small = flops < _SMALL_STEP
        self.steps_per_call = config.steps_per_call or max(1, min(_MAX_STEPS_PER_CALL, int(_CALL_FLOPS / flops)))
        # a large step is faster if XLA compiles its loops alone; see `recurrence`
        self.run_steps = tf.function(self._run_steps, jit_compile=model.implementation.jit_compile and small)

    def train_step(self, ids: tf.Tensor, state: States | None, step: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], States]:
        """One update of the weights: forward, backward through the whole example, clip, update.

        Args:
            ids: examples, `[batch, width]`.
            state: the model's state before them; None: the initial one.
            step: updates done before, int64.

        Returns:
            The sum of the losses in nats, over how many characters it goes, the gradients' global norm and the
            learning rate, all before the update; and the state after the examples, for the next step of a stream.
        """
        dropout_key = randomness.key(self.config.seed, randomness.Purpose.DROPOUT, step)
        characters = self.model.num_targets(ids)
        with tf.GradientTape() as tape:
            losses, state = self.model.losses(ids, state, dropout_key)
            total = tf.reduce_sum(losses)
            loss = total / (characters if self.config.reduction == "mean" else self.config.batch_size)
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, self.variables)]
        gradients, norm = optimizers.clip(gradients, self.config)
        rate = optimizers.learning_rate(self.config, step, self._steps_per_epoch, self._total_steps)
        self.optimizer.apply(self.variables, gradients, rate, step)
        return (total, characters, norm, rate), state

    def _run_steps(self, first_step: tf.Tensor, count: tf.Tensor, batches: tf.Tensor) -> tf.Tensor:
        """Several steps in one compiled loop.

        Args:
            first_step: updates done before, int64.
            count: steps to do; at most as many as there are batches.
            batches: `[steps_per_call, batch, width]`.

        Returns:
            The four numbers of `train_step` for each step, float64 `[steps_per_call, 4]`; rows from `count` on mean
            nothing.
        """
        results = tf.TensorArray(tf.float64, batches.shape[0], element_shape=[4])
        carries = self.carried is not None
        states = tf.nest.map_structure(tf.convert_to_tensor, self.carried.state) if self.carried else ()

        def body(index: tf.Tensor, states: States, results: tf.TensorArray) -> tuple[tf.Tensor, States, tf.TensorArray]:
            step, ids = first_step + tf.cast(index, tf.int64), batches[index]
            result, after = self.train_step(ids, self._state_before(step, states) if carries else None, step)
            row = tf.stack([tf.cast(value, tf.float64) for value in result])
            return index + 1, after if carries else (), results.write(index, row)

        _, states, results = tf.while_loop(
            lambda index, *_: index < count,
            body,
            (tf.constant(0), states, results),
            maximum_iterations=batches.shape[0],
        )
        if self.carried:
            tf.nest.map_structure(lambda variable, value: variable.assign(value), self.carried.state, states)
            self.carried.symbols.assign(batches[count - 1, :, -1])
        return results.stack()

    def _state_before(self, step: tf.Tensor, states: States) -> States:
        """The state that a stream has carried to a step; an epoch begins at the beginning."""
        begins = step % self._steps_per_epoch == 0
        return tf.nest.map_structure(
            lambda first, carried: tf.where(begins, first, carried),
            self.model.initial_state(self.config.batch_size),
            states,
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """How a training run ended.

    Attributes:
        run_dir: the run folder.
        step: steps done in all.
        loss: training loss of the last steps, in nats a character.
        val_loss: last validation loss, or None if there was none.
        interrupted: stopped before its end, by a signal.
    """

    run_dir: str
    step: int
    loss: float
    val_loss: float | None
    interrupted: bool


class _RunningMetrics:
    """What has been measured and goes on after a resume.

    Attributes:
        smooth_loss: the smoothed training loss, of what is minimised.
        window: since the last row of `metrics.jsonl`: steps, sums of losses, of characters and of gradient norms, the
            last learning rate.
        sizes: of the log files at the last checkpoint.
    """

    def __init__(self, config: TrainingConfig, vocabulary_size: int):
        self._config = config
        self._uniform = math.log(vocabulary_size)
        self.smooth_loss: float | None = None
        self.window = [0.0] * 5
        self.sizes: dict[str, int] = {}

    def to_dict(self) -> dict[str, Any]:
        return {"smooth_loss": self.smooth_loss, "window": self.window, "sizes": self.sizes}

    def restore(self, value: dict[str, Any]) -> None:
        """Takes what `to_dict` gave; raises KeyError, TypeError or ValueError where it is not that."""
        self.smooth_loss = None if value["smooth_loss"] is None else float(value["smooth_loss"])
        count, loss, characters, norm, rate = value["window"]
        self.window = [float(count), float(loss), float(characters), float(norm), float(rate)]
        self.sizes = {str(name): int(size) for name, size in value["sizes"].items()}

    def add(self, total: float, characters: float, norm: float, rate: float) -> None:
        """Takes the results of one step."""
        examples = characters if self._config.reduction == "mean" else self._config.batch_size
        loss, keep = total / examples, self._config.smoothing
        if self.smooth_loss is None and self._config.smoothing_start != "first":
            is_uniform = self._config.smoothing_start == "uniform"
            self.smooth_loss = (
                self._uniform * characters / examples if is_uniform else float(self._config.smoothing_start)
            )
        self.smooth_loss = loss if self.smooth_loss is None else keep * self.smooth_loss + (1.0 - keep) * loss
        count, totals, all_characters, norms, _ = self.window
        self.window = [count + 1, totals + total, all_characters + characters, norms + norm, rate]

    def row(self, step: int, epoch: float, speed: float, **more: float | None) -> dict[str, Any]:
        """A row over the steps since the last one: means of loss and gradient norm, the last learning rate."""
        count, total, characters, norms, rate = self.window
        row = {
            "step": step,
            "epoch": round(epoch, 6),
            "loss": total / characters,
            "smooth_loss": self.smooth_loss,
            "learning_rate": rate,
            "grad_norm": norms / count,
            "chars_per_second": round(speed, 1),
        }
        self.window = [0.0] * 5
        return row | {name: value for name, value in more.items() if value is not None}


def train(run: Run, data: DataFolder, *, resume: bool = False, quiet: bool = False) -> Result:
    """Trains the model of a run on a data folder.

    Args:
        run: the settings and the run folder, which exists.
        data: what to train on.
        resume: go on from the newest checkpoint, or from the start if there is none yet.
        quiet: show nothing.

    Returns:
        How it ended. SIGINT (Ctrl-C) and SIGTERM end it after the current call, with a checkpoint.

    Raises:
        UserError: too little data for a batch, a run that is at its end already, a damaged checkpoint, or a disk that
            refuses.
    """
    config = run.training
    order = pipeline.training_order(data.read("train"), data.config, config)
    validation = cutting.predicted_once(data.read("val"), data.config)
    total = config.steps or config.epochs * order.steps_per_epoch
    model = CharRNN(run.model, len(data.vocabulary), config.seed, layout=data.layout)
    trainer = Trainer(model, config, order.mean_width, order.steps_per_epoch, total)
    evaluator, running = Evaluator(model), _RunningMetrics(config, len(data.vocabulary))
    sampler = Sampler(model, data.vocabulary, data.config.seq_length, trainer.carried)
    step_variable = tf.Variable(0, dtype=tf.int64, trainable=False)
    state = {"model": model, "optimizer": trainer.optimizer, "step": step_variable}
    if trainer.carried is not None:
        state["carried"] = trainer.carried
    start = step = _restore(run, state, running) if resume else 0
    if start >= total:
        raise UserError(f"{run.path}: is at step {start:,} of {total:,} already; give more --steps or --epochs")
    if resume:
        run.save()  # with the settings given now
    logs = run_lib.Logs(run.path, running.sizes)
    size = trainer.steps_per_call
    events = (config.eval_every, config.sample_every, config.checkpoint_every)
    batches = pipeline.training_batches(order, lambda: pipeline.calls(start, total, events, size), size)
    progress = Progress(run, data, model, order.steps_per_epoch, start, total, quiet=quiet)
    loss, val_loss, evaluated = float("nan"), None, False

    def due(interval: int) -> bool:
        return step == total or (interval > 0 and step % interval == 0)

    def save() -> None:
        step_variable.assign(step)
        running.sizes = logs.sizes()
        losses = checkpoints.Losses(running.smooth_loss, val_loss if evaluated else None)
        checkpoints.save(run.path, state, step, losses, running.to_dict())
        checkpoints.prune(run.path, config.keep_checkpoints)

    with Interruption() as interruption, progress:
        clock = time.perf_counter()
        for first, count, ids in batches:
            results = trainer.run_steps(first, count, ids).numpy()[: int(count)]
            seconds = time.perf_counter() - clock
            speed = results[:, 1].sum() / seconds
            progress.compiled(ids.shape[2], seconds)
            if not np.isfinite(results).all():
                raise _diverged(int(first), results)
            evaluated = False
            rows = []
            for result in results.tolist():
                step += 1
                running.add(*result)
                if due(config.log_every) and step < int(first) + int(count):
                    rows.append(running.row(step, step / order.steps_per_epoch, speed))
            if len(validation) and due(config.eval_every):
                val_loss, evaluated = evaluator(validation, config.batch_size).loss, True
            if evaluated or due(config.log_every):
                rows.append(
                    running.row(step, step / order.steps_per_epoch, speed, val_loss=val_loss if evaluated else None)
                )
            logs.write_rows(rows)
            loss = results[:, 0].sum() / results[:, 1].sum()
            progress.show(step, loss, speed, val_loss if evaluated else None)
            if due(config.sample_every):
                sample = GenerationConfig(length=config.sample_length, seed=(config.seed + step) % 2**31)
                text = sampler.generate(sample)[0]
                logs.write_sample(f"step {step}, smoothed loss {running.smooth_loss:.4f}", text)
                progress.sample(step, text)
            if due(config.checkpoint_every) or interruption.requested:
                save()
            if interruption.requested:
                break
            clock = time.perf_counter()
    progress.finish(step, total, val_loss, interrupted=step < total)
    return Result(str(run.path), step, loss, val_loss, interrupted=step < total)


def _diverged(first: int, results: npt.NDArray[np.float64]) -> UserError:
    """The error of a call in which a loss or a gradient was no finite number; `results` as `_run_steps` returns."""
    index = int(np.argmin(np.isfinite(results).all(axis=1)))
    total, characters, norm, rate = results[index]
    return UserError(
        f"step {first + index + 1}: loss {total / characters:g}, gradient norm {norm:g} at learning rate {rate:g}; "
        "stopped before anything was saved of it; --resume with a smaller --learning_rate, or set --clip_norm"
    )


def _restore(run: Run, state: dict[str, Any], running: _RunningMetrics) -> int:
    """Reads the newest checkpoint into the objects of a training run and returns its step; 0 if there is none yet."""
    if not checkpoints.listed(run.path):
        return 0
    checkpoint = checkpoints.find(run.path)
    checkpoints.restore(checkpoint, state)
    if int(state["step"]) != checkpoint.step:
        raise UserError(f"{checkpoint.path}: its step is {int(state['step'])} in the weights' file; it is damaged")
    try:
        running.restore(checkpoint.log)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{checkpoint.path}: checkpoint.json is damaged ({type(error).__name__}: {error})") from None
    return checkpoint.step
