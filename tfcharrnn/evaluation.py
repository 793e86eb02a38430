"""How well a model predicts a text."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.cells import State
from tfcharrnn.errors import UserError
from tfcharrnn.examples import Examples
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
    """Measures the loss of a model on examples; compiled once for each shape.

    Examples that stand alone are each read from the initial state. Those of a stream are read one after another, and
    the state is carried over.
    """

    def __init__(self, model: CharRNN):
        """Takes the model, whose weights may change between evaluations."""
        self._model = model
        self._totals = tf.function(self._total_losses)

    def __call__(self, examples: Examples, batch_size: int) -> Evaluation:
        """The mean loss of every symbol that is predicted in some examples.

        Args:
            examples: what to measure.
            batch_size: examples evaluated side by side.

        Raises:
            UserError: there are none.
        """
        totals, count = self.totals(examples, batch_size)
        if not count:
            raise UserError("there is no text to evaluate")
        return Evaluation(math.fsum(totals) / count, count)

    def totals(self, examples: Examples, batch_size: int) -> tuple[npt.NDArray[np.float64], int]:
        """The sum of the losses of each example in nats, `[examples]`, and over how many symbols they all go."""
        carries = self._model.layout.carries_state
        batch_size = 1 if carries else max(1, min(batch_size, len(examples)))
        totals, count = np.zeros(len(examples)), 0
        state = self._model.initial_state(batch_size)
        for ids, real, indices in evaluation_batches(examples, batch_size, in_order=carries):
            if not real.any():  # as in texts of nothing but <S>
                continue
            batch_totals, after = self._totals(ids, real, state)
            totals[indices] = batch_totals.numpy()[: len(indices)]
            count += len(indices) if self._model.layout.last_only else int(np.count_nonzero(real))
            if carries:
                state = after
        return totals, count

    def _total_losses(
        self, ids: tf.Tensor, real: tf.Tensor, state: tuple[State, ...]
    ) -> tuple[tf.Tensor, tuple[State, ...]]:
        """The sum of each example's losses, `[batch]`, and the state after them."""
        losses, state = self._model.losses(ids, state)
        losses = tf.cast(losses, tf.float64)
        return tf.reduce_sum(tf.where(real[:, -losses.shape[1] :], losses, tf.zeros_like(losses)), axis=1), state
