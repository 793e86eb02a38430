"""Training callbacks: loss plot and TensorBoard."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from typing import Any, NamedTuple

import tensorflow as tf

from tfcharrnn import files
from tfcharrnn.config import TrainingConfig
from tfcharrnn.errors import UserError, warn
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs import plotting
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.training.metrics import BestValidation

# drawing the plot may take at most this share of the training time
_PLOTTING_SHARE = 0.05


class StepReport(NamedTuple):
    """Where a run stands after some steps.

    Attributes:
        step: updates done.
        loss: mean training loss of the last steps, in nats a character.
        chars_per_second: training speed of the last steps; None if most of their time went into compiling.
        val_loss: the validation loss, if it was measured at this step.
        best: the lowest validation loss so far; None before the first validation.
        rows: the new rows of `metrics.jsonl`.
    """

    step: int
    loss: float
    chars_per_second: float | None
    val_loss: float | None
    best: BestValidation | None
    rows: list[dict[str, Any]]


class Callback:
    """Methods that the training loop calls on the chief worker, in this order; each does nothing unless overridden."""

    def on_steps(self, report: StepReport) -> None:
        """Called after every group of compiled steps, once its metrics are written."""

    def on_sample(self, step: int, text: str) -> None:
        """Called with each text generated during training."""

    def on_checkpoint(self, step: int, *, is_last: bool) -> None:
        """Called after each checkpoint and each validation."""


class LossPlot(Callback):
    """Keeps `loss.png` in the run folder up to date."""

    def __init__(self, run: Run):
        self._path = run.path
        self._next_time = 0.0

    def on_checkpoint(self, step: int, *, is_last: bool) -> None:
        """Draws the plot, unless it was drawn a short while ago or there is nothing to draw."""
        has_rows = (self._path / "metrics.jsonl").stat().st_size > 0
        if not has_rows or not (is_last or time.monotonic() >= self._next_time):
            return
        start = time.monotonic()
        try:
            plotting.draw([self._path], self._path / "loss.png")
        except UserError as error:  # a plot that fails must not end the run
            warn(str(error))
        end = time.monotonic()
        self._next_time = end + (end - start) / _PLOTTING_SHARE


class TensorBoard(Callback):
    """Writes event files to `tensorboard/` in the run folder: metrics, samples, histograms of the weights."""

    def __init__(self, run: Run, model: CharRNN):
        self._model = model
        folder = run.path / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._folder = contextlib.ExitStack()  # open as long as the writer
        self._writer = tf.summary.create_file_writer(self._folder.enter_context(files.ascii_alias(folder)))

    def on_steps(self, report: StepReport) -> None:
        """Writes the new rows of metrics."""
        with self._writer.as_default():
            for row in report.rows:
                for name in plotting.COLUMNS:
                    if name in row:
                        tf.summary.scalar(name, row[name], step=row["step"])

    def on_sample(self, step: int, text: str) -> None:
        """Writes a sample, indented, so that TensorBoard's Markdown shows it verbatim."""
        with self._writer.as_default():
            tf.summary.text("sample", "".join(f"    {line}\n" for line in text.split("\n")), step=step)

    def on_checkpoint(self, step: int, *, is_last: bool) -> None:
        """Writes histograms of the weights."""
        with self._writer.as_default():
            for name, variable in self._model.named_variables.items():
                tf.summary.histogram(name, variable, step=step)
        self._writer.flush()


def make_callbacks(run: Run, model: CharRNN) -> list[Callback]:
    """Makes the callbacks that the training options ask for."""
    callbacks: list[Callback] = []
    if run.training.tensorboard:
        callbacks.append(TensorBoard(run, model))
    if run.training.plot:
        callbacks.append(LossPlot(run))
    return callbacks


def check_available(config: TrainingConfig) -> None:
    """Checks that the packages needed for `--plot` and `--tensorboard` are installed.

    Raises:
        UserError: one is missing.
    """
    if config.plot:
        plotting.check_available()
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tensorboard is missing; install it with pip install 'tfcharrnn[tensorboard]'")
