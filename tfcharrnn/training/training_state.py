"""The state of a training run: everything a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.config import TrainingConfig
from tfcharrnn.errors import UserError, first_line
from tfcharrnn.runs import checkpoints
from tfcharrnn.runs.checkpoints import Checkpoint
from tfcharrnn.training.metrics import RunningMetrics
from tfcharrnn.training.progress import Progress
from tfcharrnn.training.train_step import RunLength, StepResults, StepRunner


class TrainingState:
    """What a run needs to resume bit for bit: model, optimizer, averages, step, carried state and running metrics.

    Attributes:
        step: updates done.
        metrics: the running metrics.
    """

    def __init__(self, runner: StepRunner, metrics: RunningMetrics):
        self.step = 0
        self.metrics = metrics
        self._step_variable = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._objects: dict[str, Any] = {
            "model": runner.model,
            "optimizer": runner.optimizer,
            "step": self._step_variable,
        }
        if runner.average is not None:
            self._objects["average"] = runner.average.model
        if runner.carried is not None:
            self._objects["carried"] = runner.carried

    def advance(
        self,
        results: StepResults,
        sizes: npt.NDArray[np.int32],
        config: TrainingConfig,
        length: RunLength,
        progress: Progress,
    ) -> list[dict[str, Any]]:
        """Counts the steps of some results, applied or skipped, and updates the running metrics.

        Args:
            results: the steps.
            sizes: number of examples in the batch of each step, `[at least steps]`.
            config: the training options.
            length: the length of the run.
            progress: shows the steps that are skipped.

        Returns:
            The rows of `metrics.jsonl` that are due before the last of these steps.
        """
        rows = []
        for index, (metrics, is_applied) in enumerate(zip(results.per_step(), results.is_finite, strict=True)):
            self.step += 1
            self.metrics.add_time(metrics.num_characters, results.seconds / results.num_steps)
            if is_applied:
                self.metrics.add(metrics, int(sizes[index]))
            else:
                self.metrics.skipped += 1
                if self.metrics.skipped <= config.skip_bad_steps:
                    progress.show_skipped(self.step, self.metrics.skipped, config.skip_bad_steps)
            is_before_last = index + 1 < results.num_steps
            if config.log_every and self.step % config.log_every == 0 and is_before_last and not self.metrics.is_empty:
                epoch = self.step / length.steps_per_epoch
                rows.append(self.metrics.take_row(self.step, epoch))
        return rows

    def save(self, run_dir: Path, log_sizes: dict[str, int], val_loss: float | None = None) -> Path:
        """Writes a checkpoint and returns its folder.

        Args:
            run_dir: the run folder.
            log_sizes: sizes of the log files now, in bytes by name; a resumed run truncates them to these.
            val_loss: the validation loss, if it was measured at this step.

        Raises:
            UserError: the write fails; earlier checkpoints are intact.
        """
        self._step_variable.assign(self.step)
        self.metrics.log_sizes = log_sizes
        losses = checkpoints.Losses(self.metrics.smooth_loss, val_loss)
        return checkpoints.save(run_dir, self._objects, self.step, losses, self.metrics.to_dict())

    def restore(self, checkpoint: Checkpoint, run_dir: Path) -> None:
        """Restores a checkpoint of a run.

        Raises:
            UserError: it is damaged.
        """
        checkpoints.restore(checkpoint, self._objects)
        checkpoint.close()
        saved_step = int(self._step_variable)
        if saved_step != checkpoint.step:
            raise UserError(f"{checkpoint.path}: damaged: the step in its weights file is {saved_step}")
        try:
            self.metrics.restore(checkpoint.log)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{checkpoint.path}: checkpoint.json is damaged ({type(error).__name__}: {first_line(error)}); "
                f"remove {checkpoint.path.name} to resume from the checkpoint before it"
            ) from None
        self.step = checkpoint.step
        if self.metrics.best is None:  # a checkpoint written before it was recorded
            for earlier in checkpoints.list_checkpoints(run_dir):
                if earlier.losses.val is not None and earlier.step <= self.step:
                    self.metrics.add_validation(earlier.step, earlier.losses.val)
