"""How well a model predicts a text."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.errors import UserError
from tfcharrnn.model import CharRNN
from tfcharrnn.pipeline import evaluation_batches


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result: `loss` in nats a character, over so many predicted `characters`."""

    loss: float
    characters: int

    @property
    def bits_per_char(self) -> float:
        """The loss in bits."""
        return self.loss / math.log(2.0)

    @property
    def perplexity(self) -> float:
        """Exp of the loss: among how many equally likely characters the model is as unsure."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def to_dict(self) -> dict[str, float | int | None]:
        """As `evaluate` prints it; null in place of a perplexity too large for a number, which JSON cannot write."""
        return {
            "loss": self.loss,
            "bits_per_char": self.bits_per_char,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
            "characters": self.characters,
        }


class Evaluator:
    """Measures the loss of a model on sequences, each from the initial state; compiled once for a shape."""

    def __init__(self, model: CharRNN):
        """Takes the model, whose weights may change between evaluations."""
        self._model = model
        self._total = tf.function(self._total_loss)

    def __call__(
        self, sequences: npt.NDArray[np.int32], batch_size: int, lengths: npt.NDArray[np.int64] | None = None
    ) -> Evaluation:
        """The mean loss of every target in some sequences.

        Args:
            sequences: `[records, seq_length]`; each symbol but the first is a target.
            batch_size: sequences evaluated side by side.
            lengths: how many symbols of each are real, `[records]`; None: all.

        Raises:
            UserError: there are none.
        """
        total, count = 0.0, 0
        for ids, real in evaluation_batches(sequences, max(1, min(batch_size, len(sequences))), lengths):
            total += float(self._total(ids, real))
            count += int(np.count_nonzero(real))
        if not count:
            raise UserError("there is no text to evaluate")
        return Evaluation(total / count, count)

    def _total_loss(self, ids: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
        losses = tf.cast(self._model.losses(ids), tf.float64)
        return tf.reduce_sum(tf.where(real, losses, tf.zeros_like(losses)))
