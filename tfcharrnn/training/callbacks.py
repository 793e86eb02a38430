"""Training callbacks: what they are told, loss plot and TensorBoard."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfcharrnn import files
from tfcharrnn.config import TrainingConfig
from tfcharrnn.errors import ConfigError, UserError, shorten, warn
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.progress_bar import is_in_notebook
from tfcharrnn.runs import html_summary, logs, plotting
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.training.metrics import BestValidation

# drawing the plot may take at most this share of the training time
_PLOTTING_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class StepReport:
    """A training step.

    Attributes:
        step: its number, from 1: steps done, this one included.
        epoch: passes over the training text so far, such as 0.25.
        loss: mean loss of its batch in nats a character.
        mean_loss: that of all steps of its compiled call, which varies less; NaN if none was applied.
        learning_rate: its learning rate.
        grad_norm: global norm of its gradients before clipping.
        chars_per_second: training speed of its compiled call; None if most of the time went into compiling.
        is_applied: False if its loss or gradients were not finite, so that it was skipped.
        is_current: whether it was the last one of its compiled call. Several steps may be computed at once and
            reported together; the weights are then already those of the last.
        val_loss: the validation loss after it; None if not measured.
        row: the row that it added to `metrics.jsonl`; None if it added none.
    """

    step: int
    epoch: float
    loss: float
    mean_loss: float
    learning_rate: float
    grad_norm: float
    chars_per_second: float | None
    is_applied: bool
    is_current: bool
    val_loss: float | None
    row: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class ValidationReport:
    """A validation.

    Attributes:
        step: steps done before.
        loss: the validation loss in nats a character.
        best: the lowest one so far, with its `loss`, its `step`, and the number of validations since, `num_since`.
    """

    step: int
    loss: float
    best: BestValidation


@dataclasses.dataclass(frozen=True)
class SampleReport:
    """A text generated during training.

    Attributes:
        step: steps done before.
        text: the text.
    """

    step: int
    text: str


@dataclasses.dataclass(frozen=True)
class CheckpointReport:
    """A checkpoint that has been written.

    Attributes:
        step: steps done before.
        path: its folder, which `load_model` takes; older checkpoints may have been removed.
    """

    step: int
    path: Path


@dataclasses.dataclass(frozen=True)
class Result:
    """How a training run ended.

    Attributes:
        run_dir: the run folder.
        step: updates done.
        loss: training loss of the last steps, in nats a character.
        val_loss: last validation loss in nats a character, or None if there was none.
        best: the lowest validation loss and its step, which `--checkpoint=best` restores; None if there was none.
        interrupted: whether a signal stopped the run before its end.
        is_shared: whether other workers took part.
    """

    run_dir: str
    step: int
    loss: float
    val_loss: float | None
    best: BestValidation | None
    interrupted: bool
    is_shared: bool = False

    def _repr_html_(self) -> str:
        """Returns a table with the losses and their curve, which notebooks show."""
        values = {
            "step": f"{self.step:,}{', interrupted' if self.interrupted else ''}",
            "training loss": html_summary.format_loss(self.loss),
            "validation loss": html_summary.format_loss(self.val_loss),
        }
        if self.best is not None:
            values["lowest validation loss"] = f"{html_summary.format_loss(self.best.loss)}, step {self.best.step:,}"
        return html_summary.summarise(self.run_dir, values, logs.read_intact_metrics(Path(self.run_dir)).rows)


class Callback:
    """What happens besides training: methods that the training loop calls, each of which does nothing by itself.

    Derive a class, override what you need, and pass an object of it: `train_model(callbacks=[MyLogger()])`. The methods
    are called in the order in which they stand here, after the plots, logs and progress lines of the package itself,
    which are callbacks, too. With several workers only the chief calls them. An exception ends training; the
    checkpoints stay as they are, and `resume=True` continues from the last one.
    """

    def on_step(self, step: StepReport) -> None:
        """Called for each training step, in order, once its metrics are written."""

    def on_validation(self, validation: ValidationReport) -> None:
        """Called after each validation."""

    def on_sample(self, sample: SampleReport) -> None:
        """Called with each text generated during training."""

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Called after each checkpoint that follows a step."""

    def on_end(self, result: Result) -> None:
        """Called when training ends, complete or interrupted by a signal, but not when it ends with an error."""


class _Plot(Callback):
    """Draws something after validations and checkpoints, so rarely that it takes little of the training time."""

    # seconds between two drawings at least
    _pause = 0.0

    def __init__(self, run: Run):
        self._path = run.path
        self._next_time = 0.0
        self._drawn_step = 0

    def on_validation(self, validation: ValidationReport) -> None:
        """Draws the plot, unless it was drawn a short while ago."""
        self._draw_in_time(validation.step)

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Draws the plot, unless it was drawn a short while ago."""
        self._draw_in_time(checkpoint.step)

    def on_end(self, result: Result) -> None:
        """Draws the last plot."""
        self._next_time = 0.0
        self._draw_in_time(result.step)

    def _draw_in_time(self, step: int) -> None:
        has_rows = (self._path / "metrics.jsonl").stat().st_size > 0
        if step == self._drawn_step or not has_rows or time.monotonic() < self._next_time:
            return
        start = time.monotonic()
        try:
            self._draw()
        except UserError as error:  # a plot that fails must not end the run
            warn(str(error))
        end = time.monotonic()
        self._next_time = end + max((end - start) / _PLOTTING_SHARE, self._pause)
        self._drawn_step = step

    def _draw(self) -> None:
        raise NotImplementedError


class LossPlot(_Plot):
    """Keeps `loss.png` in the run folder up to date."""

    def _draw(self) -> None:
        plotting.draw([self._path], self._path / "loss.png")


class NotebookCurve(_Plot):
    """Draws the losses below the cell of a notebook as they are measured."""

    _pause = 1.0

    def __init__(self, run: Run):
        super().__init__(run)
        self._display: Any = None

    def on_step(self, step: StepReport) -> None:
        """Draws the curve once a row is written, unless it was drawn a short while ago."""
        if step.row:
            self._draw_in_time(step.step)

    def _draw(self) -> None:
        from IPython import display  # there is one in a notebook

        curve = display.HTML(html_summary.draw_losses(logs.read_intact_metrics(self._path).rows))
        if self._display is None:
            self._display = display.display(curve, display_id=True)
        else:
            self._display.update(curve)


class TensorBoard(Callback):
    """Writes event files to `tensorboard/` in the run folder: metrics, samples, histograms of the weights."""

    def __init__(self, run: Run, model: CharRNN):
        self._model = model
        self._histogram_step = 0
        folder = run.path / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._folder = contextlib.ExitStack()  # open as long as the writer
        self._writer = tf.summary.create_file_writer(self._folder.enter_context(files.ascii_alias(folder)))

    def on_step(self, step: StepReport) -> None:
        """Writes the new row of metrics, if there is one."""
        if step.row is None:
            return
        with self._writer.as_default():
            for name in plotting.COLUMNS:
                if name in step.row:
                    tf.summary.scalar(name, step.row[name], step=step.step)

    def on_validation(self, validation: ValidationReport) -> None:
        """Writes histograms of the weights."""
        self._write_weights(validation.step)

    def on_sample(self, sample: SampleReport) -> None:
        """Writes a sample, indented, so that TensorBoard's Markdown shows it verbatim."""
        with self._writer.as_default():
            tf.summary.text("sample", "".join(f"    {line}\n" for line in sample.text.split("\n")), step=sample.step)

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Writes histograms of the weights, unless a validation has at this step."""
        self._write_weights(checkpoint.step)

    def _write_weights(self, step: int) -> None:
        if step != self._histogram_step:
            with self._writer.as_default():
                for name, variable in self._model.named_variables.items():
                    tf.summary.histogram(name, variable, step=step)
        self._histogram_step = step
        self._writer.flush()


def make_callbacks(run: Run, model: CharRNN, *, quiet: bool = False) -> list[Callback]:
    """Makes the callbacks that the training options ask for, and in a notebook, unless `quiet`, the curve."""
    callbacks: list[Callback] = [] if quiet or not is_in_notebook() else [NotebookCurve(run)]
    if run.training.tensorboard:
        callbacks.append(TensorBoard(run, model))
    if run.training.plot:
        callbacks.append(LossPlot(run))
    return callbacks


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Checks that callbacks are objects of classes derived from `Callback`.

    Raises:
        ConfigError: one is not.
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError(f"callbacks: {shorten(callback)} is not an object of a class derived from Callback")


def check_available(config: TrainingConfig) -> None:
    """Checks that the packages needed for `--plot` and `--tensorboard` are installed.

    Raises:
        UserError: one is missing.
    """
    if config.plot:
        plotting.check_available()
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tensorboard is missing; install it with pip install 'tfcharrnn[tensorboard]'")
