"""Dynamic evaluation: a model that goes on learning from the text that it is measured on (Krause et al. 2018).

The text is read in order, piece by piece. Each piece is predicted first and counted; then the weights take one step of
gradient descent on its mean loss. Adaptive n-grams and compressors such as gzip and xz learn from what they have read
as well, so this is the fair comparison with them.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.data.chunking import make_stream_examples
from tfcharrnn.inference.evaluation import Evaluation, Evaluator
from tfcharrnn.model.cells import State
from tfcharrnn.model.char_rnn import CharRNN

# characters read between two steps
PIECE_LENGTH = 64
# learning rates to choose from
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# the choice is made on at most this many characters
_MAX_TUNING_LENGTH = 30_000


class DynamicEvaluator(Evaluator):
    """Measures the loss of a model on a text that it learns from; the model itself stays as it is.

    Args:
        model: the model to start with.
    """

    def __init__(self, model: CharRNN):
        self._trained = model
        self._rate = tf.Variable(0.0, dtype=model.dtype, trainable=False)
        super().__init__(model.copy())

    def evaluate(self, ids: npt.NDArray[np.int32], rate: float) -> Evaluation:
        """Measures the mean loss over a text, beginning with the weights of the trained model.

        Args:
            ids: the characters of the text, `[characters]`.
            rate: learning rate of the step after each piece.

        Raises:
            UserError: the text is empty.
        """
        for variable, trained in zip(self._model.variables, self._trained.variables, strict=True):
            variable.assign(trained)
        self._rate.assign(rate)
        examples = make_stream_examples(ids, self._model.layout.start_id, PIECE_LENGTH)
        return self(examples, 1, in_order=True)

    def choose_rate(self, ids: npt.NDArray[np.int32]) -> float:
        """Returns the rate of `RATES` with the lowest loss on the beginning of a text, usually the validation split."""
        losses = {rate: self.evaluate(ids[:_MAX_TUNING_LENGTH], rate).loss for rate in RATES}
        return min(losses, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)

    def _predict(self, ids: tf.Tensor, state: tuple[State, ...]) -> tuple[tf.Tensor, tf.Tensor, tuple[State, ...]]:
        with tf.GradientTape() as tape:
            losses, hits, after = self._model.losses_and_hits(ids, state)
            loss = tf.reduce_mean(losses)
        variables = self._model.trainable_variables
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            if gradient is not None:  # a learned initial state has none once the text is under way
                variable.assign_sub(self._rate * gradient)
        return tf.cast(losses, tf.float64), hits, after
