"""The running figures of a training run: smoothed loss, and means over the steps since the last row of metrics."""

from __future__ import annotations

import math
import time
from typing import Any

from tfcharrnn.config import TrainingConfig

# the columns of a row that say how long something took; all others are the same whenever a run is repeated or resumed
TIMING = ("chars_per_second", "seconds", "data_wait")


class RunningMetrics:
    """What has been measured and goes on after a resume.

    Attributes:
        smooth_loss: the smoothed training loss, of what is minimised.
        window: since the last row of `metrics.jsonl`: steps, sums of losses, of characters and of gradient norms, the
            last learning rate.
        skipped: steps whose update was left out, since a loss or a gradient was no finite number.
        sizes: of the log files at the last checkpoint.
        seconds: spent in training steps.
        waited: seconds for which the loop waited for data since the last row.
    """

    def __init__(self, config: TrainingConfig, vocabulary_size: int):
        """Takes the settings of the smoothing; a uniform guess is one over so many symbols."""
        self._config = config
        self._uniform = math.log(vocabulary_size)
        self.smooth_loss: float | None = None
        self.window = [0.0] * 5
        self.skipped = 0
        self.sizes: dict[str, int] = {}
        self.seconds = 0.0
        self.waited = 0.0
        self._since = time.perf_counter()

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready, for a checkpoint."""
        return {
            "smooth_loss": self.smooth_loss,
            "window": self.window,
            "skipped": self.skipped,
            "sizes": self.sizes,
            "seconds": self.seconds,
        }

    def restore(self, value: dict[str, Any]) -> None:
        """Takes what `to_dict` gave; raises an error of Python where it is not that."""
        self.smooth_loss = None if value["smooth_loss"] is None else float(value["smooth_loss"])
        count, loss, characters, norm, rate = value["window"]
        self.window = [float(count), float(loss), float(characters), float(norm), float(rate)]
        self.skipped = int(value.get("skipped", 0))
        self.sizes = {str(name): int(size) for name, size in value["sizes"].items()}
        self.seconds = float(value.get("seconds", 0.0))  # checkpoints did not always have it
        if min(self.sizes.values(), default=0) < 0:
            raise ValueError("a log of a negative size")

    def wait(self, seconds: float) -> None:
        """Counts time in which the loop waited for data."""
        self.waited += seconds

    def add(self, total: float, characters: float, norm: float, rate: float, size: int | None = None) -> None:
        """Takes the results of one step, of a batch of so many examples (None: a full one)."""
        size = self._config.batch_size if size is None else size
        examples = characters if self._config.reduction == "mean" else size
        loss, keep = total / examples, self._config.smoothing
        if self.smooth_loss is None and self._config.smoothing_start != "first":
            is_uniform = self._config.smoothing_start == "uniform"
            self.smooth_loss = (
                self._uniform * characters / examples if is_uniform else float(self._config.smoothing_start)
            )
        self.smooth_loss = loss if self.smooth_loss is None else keep * self.smooth_loss + (1.0 - keep) * loss
        count, totals, all_characters, norms, _ = self.window
        self.window = [count + 1, totals + total, all_characters + characters, norms + norm, rate]

    @property
    def is_empty(self) -> bool:
        """No step was taken since the last row."""
        return not self.window[0]

    def row(self, step: int, epoch: float, speed: float, **more: float | None) -> dict[str, Any]:
        """A row over the steps since the last one: means of loss and gradient norm, the last learning rate."""
        count, total, characters, norms, rate = self.window
        now = time.perf_counter()
        data_wait = min(1.0, self.waited / max(now - self._since, 1e-9))
        self.waited, self._since = 0.0, now
        row = {
            "step": step,
            "epoch": round(epoch, 6),
            "loss": total / characters,
            "smooth_loss": self.smooth_loss,
            "learning_rate": rate,
            "grad_norm": norms / count,
            "chars_per_second": round(speed, 1),
            "seconds": round(self.seconds, 3),
            "data_wait": round(data_wait, 4),
        }
        self.window = [0.0] * 5
        return row | {name: value for name, value in more.items() if value is not None}
