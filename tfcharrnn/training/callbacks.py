"""What a training run leaves behind as it goes: metrics, validations, samples and checkpoints, when they fall due."""

from __future__ import annotations

from typing import Any

from tfcharrnn.config import GenerationConfig
from tfcharrnn.data.examples import Examples
from tfcharrnn.data.out_of_core import EvaluationBlocks
from tfcharrnn.inference.evaluation import Evaluator
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.runs import checkpoints
from tfcharrnn.runs.run_folder import Logs, Run
from tfcharrnn.training.metrics import RunningMetrics
from tfcharrnn.training.observers import Observers
from tfcharrnn.training.progress import Progress
from tfcharrnn.training.train_step import Results


class Recorder:
    """Writes what the settings of a run ask for, at the steps that they name, and at the last.

    Of several workers only the chief has one.

    Attributes:
        val_loss: the last validation loss, or None if there was none.
    """

    def __init__(
        self,
        run: Run,
        state: dict[str, Any],
        validation: Examples | EvaluationBlocks,
        evaluator: Evaluator,
        sampler: Sampler,
        running: RunningMetrics,
        progress: Progress,
        steps_per_epoch: int,
        total: int,
    ):
        """Opens the log files; those of a resumed run are cut back to what they were at its checkpoint.

        Args:
            run: the run, whose folder exists.
            state: what a checkpoint holds, `model` and others; its `step` is set here.
            validation: what is predicted for the validation loss; it may be empty.
            evaluator: measures that loss.
            sampler: draws the samples.
            running: the figures, which the training loop adds to.
            progress: what the person at the terminal sees.
            steps_per_epoch: batches in an epoch.
            total: steps of the whole run.
        """
        self.val_loss: float | None = None
        self._run = run
        self._config = run.training
        self._state = state
        self._validation = validation
        self._evaluator = evaluator
        self._sampler = sampler
        self._running = running
        self._progress = progress
        self._steps_per_epoch = steps_per_epoch
        self._total = total
        self._logs = Logs(run.path, running.sizes)
        self._observers = Observers(run, state["model"])

    def record(self, step: int, results: Results, rows: list[dict[str, Any]]) -> None:
        """Does what is due after some steps.

        Args:
            step: updates done.
            results: of the last ones.
            rows: of the metrics, due before the last of these steps.
        """
        config, running = self._config, self._running
        measured = None
        if len(self._validation) and self._due(step, config.eval_every):
            measured = self.val_loss = self._evaluator(self._validation, config.batch_size).loss
        if (measured is not None or self._due(step, config.log_every)) and not running.is_empty:
            rows = [*rows, running.row(step, step / self._steps_per_epoch, results.speed, val_loss=measured)]
        self._logs.write_rows(rows)
        self._observers.rows(rows)
        self._progress.show(step, results.loss, results.speed, measured)
        if self._due(step, config.sample_every):
            sample = GenerationConfig(length=config.sample_length, seed=(config.seed + step) % 2**31)
            text = self._sampler.generate(sample)[0]
            self._logs.write_sample(f"step {step}, smoothed loss {running.smooth_loss or results.loss:.4f}", text)
            self._progress.sample(step, text)
            self._observers.sample(step, text)
        saves = self._due(step, config.checkpoint_every) or results.stopped
        if saves:
            self.save(step, measured)
        if saves or measured is not None:
            self._observers.look(step, last=step == self._total or results.stopped)

    def save(self, step: int, val_loss: float | None = None) -> None:
        """Writes a checkpoint, with the validation loss if it was measured at this step."""
        self._state["step"].assign(step)
        self._running.sizes = self._logs.sizes()
        losses = checkpoints.Losses(self._running.smooth_loss, val_loss)
        checkpoints.save(self._run.path, self._state, step, losses, self._running.to_dict())
        checkpoints.prune(self._run.path, self._config.keep_checkpoints, self._config.keep_every)

    def _due(self, step: int, interval: int) -> bool:
        return step == self._total or (interval > 0 and step % interval == 0)
