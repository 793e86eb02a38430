"""Running metrics of a training run: the smoothed loss, and means over the steps since the last row."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

from tfcharrnn.config import TrainingConfig
from tfcharrnn.training.train_step import StepMetrics

# the columns of a row that hold timings; all others are the same whenever a run is repeated or resumed
TIMING = ("chars_per_second", "seconds", "data_wait")

# no count of steps, validations or bytes is larger, and none of skipped steps
_MAX_COUNT, _MAX_SKIPPED = 2**62, 2**30


class Window(NamedTuple):
    """Sums over the steps since the last row of `metrics.jsonl`.

    Attributes:
        steps: number of applied steps.
        loss_sum: sum of the losses in nats.
        num_characters: number of predicted characters.
        grad_norm_sum: sum of the gradient norms.
        learning_rate: learning rate of the last step.
    """

    steps: float = 0.0
    loss_sum: float = 0.0
    num_characters: float = 0.0
    grad_norm_sum: float = 0.0
    learning_rate: float = 0.0

    def add(self, step: StepMetrics) -> Window:
        """Returns the sums with one more step."""
        return Window(
            self.steps + 1,
            self.loss_sum + step.loss_sum,
            self.num_characters + step.num_characters,
            self.grad_norm_sum + step.grad_norm,
            step.learning_rate,
        )


class BestValidation(NamedTuple):
    """The lowest validation loss so far.

    Attributes:
        step: the step after which it was measured; it has a checkpoint.
        loss: in nats a character.
        num_since: validations since then, none of them lower.
    """

    step: int
    loss: float
    num_since: int = 0


class RunningMetrics:
    """Metrics that continue across a resume.

    Args:
        config: the options for smoothing.
        vocabulary_size: number of symbols; a uniform guess has the loss log(vocabulary_size).

    Attributes:
        smooth_loss: exponentially smoothed training loss; None before the first step.
        window: sums since the last row.
        best: the lowest validation loss; None before the first validation.
        skipped: steps not applied because their loss or gradients were not finite.
        log_sizes: sizes of the log files at the last checkpoint, in bytes by name.
        seconds: time spent in training steps.
        waited: seconds the loop waited for data since the last row.
    """

    def __init__(self, config: TrainingConfig, vocabulary_size: int):
        self._config = config
        self._uniform_loss = math.log(vocabulary_size)
        self.smooth_loss: float | None = None
        self.window = Window()
        self.best: BestValidation | None = None
        self.skipped = 0
        self.log_sizes: dict[str, int] = {}
        self.seconds = 0.0
        self.waited = 0.0
        self._window_start = time.perf_counter()
        # of the steps since the last row that this process trained
        self._timed_characters, self._timed_seconds = 0.0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the metrics as JSON-ready values for a checkpoint."""
        return {
            "smooth_loss": self.smooth_loss,
            "window": list(self.window),
            "best": None if self.best is None else list(self.best),
            "skipped": self.skipped,
            "sizes": self.log_sizes,
            "seconds": self.seconds,
        }

    def restore(self, value: dict[str, Any]) -> None:
        """Restores what `to_dict` returned.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: `value` has another form.
        """
        self.smooth_loss = None if value["smooth_loss"] is None else float(value["smooth_loss"])
        steps, loss_sum, num_characters, grad_norm_sum, learning_rate = value["window"]
        self.window = Window(
            float(steps), float(loss_sum), float(num_characters), float(grad_norm_sum), float(learning_rate)
        )
        if value.get("best") is not None:  # absent from early checkpoints
            best_step, best_loss, num_since = value["best"]
            self.best = BestValidation(int(best_step), float(best_loss), int(num_since))
        self.skipped = int(value.get("skipped", 0))
        self.log_sizes = {str(name): int(size) for name, size in value["sizes"].items()}
        self.seconds = float(value.get("seconds", 0.0))  # absent from early checkpoints
        counts = [*self.log_sizes.values(), *(self.best or ())[::2]]
        if not all(0 <= count <= _MAX_COUNT for count in counts) or not 0 <= self.skipped <= _MAX_SKIPPED:
            raise ValueError("a count is not possible")
        if not all(map(math.isfinite, (*self.window, self.seconds))):
            raise ValueError("a sum is not finite")

    def add(self, step: StepMetrics, num_examples: int | None = None) -> None:
        """Adds an applied step whose batch held `num_examples` examples (None: a full batch)."""
        num_examples = self._config.batch_size if num_examples is None else num_examples
        denominator = step.num_characters if self._config.reduction == "mean" else num_examples
        loss, keep = step.loss_sum / denominator, self._config.smoothing
        if self.smooth_loss is None and self._config.smoothing_start != "first":
            if self._config.smoothing_start == "uniform":
                self.smooth_loss = self._uniform_loss * step.num_characters / denominator
            else:
                self.smooth_loss = float(self._config.smoothing_start)
        self.smooth_loss = loss if self.smooth_loss is None else keep * self.smooth_loss + (1.0 - keep) * loss
        self.window = self.window.add(step)

    def add_time(self, num_characters: float, seconds: float) -> None:
        """Counts the time of a step, applied or not."""
        self.seconds += seconds
        self._timed_characters += num_characters
        self._timed_seconds += seconds

    def add_validation(self, step: int, val_loss: float) -> bool:
        """Counts a validation; returns whether its loss is the lowest so far."""
        if self.best is None or val_loss < self.best.loss:
            self.best = BestValidation(step, val_loss)
            return True
        self.best = self.best._replace(num_since=self.best.num_since + 1)
        return False

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the validation loss has not fallen for `--patience` validations."""
        return self.best is not None and 0 < self._config.patience <= self.best.num_since

    @property
    def is_empty(self) -> bool:
        """Whether no step was applied since the last row."""
        return not self.window.steps

    def take_row(self, step: int, epoch: float, val_loss: float | None = None) -> dict[str, Any]:
        """Returns a row for the steps since the last one, means of loss and gradient norm, and starts a new window.

        Its speed is that of all these steps, with what compiling them and waiting for data took.
        """
        window, now = self.window, time.perf_counter()
        chars_per_second = self._timed_characters / max(self._timed_seconds + self.waited, 1e-9)
        self._timed_characters, self._timed_seconds = 0.0, 0.0
        data_wait = min(1.0, self.waited / max(now - self._window_start, 1e-9))
        self.window, self.waited, self._window_start = Window(), 0.0, now
        row = {
            "step": step,
            "epoch": round(epoch, 6),
            "loss": window.loss_sum / window.num_characters,
            "smooth_loss": self.smooth_loss,
            "learning_rate": window.learning_rate,
            "grad_norm": window.grad_norm_sum / window.steps,
            "chars_per_second": round(chars_per_second, 1),
            "seconds": round(self.seconds, 3),
            "data_wait": round(data_wait, 4),
        }
        return row if val_loss is None else {**row, "val_loss": val_loss}
