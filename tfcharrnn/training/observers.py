"""What looks on while a run is trained, if it is asked for: a picture of the curves, and TensorBoard."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import tensorflow as tf

from tfcharrnn.config import TrainingConfig
from tfcharrnn.errors import UserError, warn
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs import plotting
from tfcharrnn.runs.run_folder import Run

# drawing takes at most this share of the time
_DRAWING_SHARE = 0.05


def check_available(config: TrainingConfig) -> None:
    """Checks that what was asked for is installed.

    Raises:
        UserError: it is not.
    """
    if config.plot:
        plotting.check_available()
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tensorboard is missing; install it with pip install 'tfcharrnn[tensorboard]'")


class Observers:
    """Shows a run to others: `loss.png` with `--plot`, event files in `tensorboard/` with `--tensorboard`."""

    def __init__(self, run: Run, model: CharRNN):
        """Takes the run, whose folder exists, and its model."""
        self._run = run
        self._model = model
        self._writer = None
        if run.training.tensorboard:
            self._writer = tf.summary.create_file_writer(str(run.path / "tensorboard"))
        self._draw_from = 0.0

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Takes new rows of the metrics."""
        if self._writer is None:
            return
        with self._writer.as_default():
            for row in rows:
                for name in plotting.COLUMNS:
                    if name in row:
                        tf.summary.scalar(name, row[name], step=row["step"])

    def sample(self, step: int, text: str) -> None:
        """Takes a text that the model has made up."""
        if self._writer is None:
            return
        with self._writer.as_default():  # indented, since TensorBoard reads Markdown, in which that means as it stands
            tf.summary.text("sample", "".join(f"    {line}\n" for line in text.split("\n")), step=step)

    def look(self, step: int, *, last: bool = False) -> None:
        """Looks at the weights and the curves as they are now; the curves not too often, but at the last."""
        if self._writer is not None:
            with self._writer.as_default():
                for name, variable in self._model.named_variables.items():
                    tf.summary.histogram(name, variable, step=step)
            self._writer.flush()
        has_rows = (self._run.path / "metrics.jsonl").stat().st_size > 0
        if self._run.training.plot and has_rows and (last or time.monotonic() >= self._draw_from):
            clock = time.monotonic()
            try:
                plotting.draw([self._run.path], self._run.path / "loss.png")
            except UserError as error:  # the run is worth more than its picture
                warn(str(error))
            now = time.monotonic()
            self._draw_from = now + (now - clock) / _DRAWING_SHARE
