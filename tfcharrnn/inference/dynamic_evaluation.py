"""Dynamic evaluation: a model that goes on learning from the text that it is measured on (Krause et al. 2018).

The text is read in order, piece by piece. Each piece is predicted first and counted; then the weights w take a step
along the gradient g of its mean loss. There are two rules (Krause et al. 2018, section 4):

    sgd:  w <- w - rate g
    rms:  w <- w - rate g / (r + 0.3 mean(r)) + min(pull r / mean(r), 1) (w_trained - w)

r is the root of the mean of g^2 over the pieces so far, for each weight (in the paper over the training text, which
may not be at hand), and mean(r) its mean over all weights. So weights with large gradients take no larger steps than
others, and are pulled back more to what they were. The first pieces, when r is not well known, take smaller steps.

Adaptive n-grams and compressors such as gzip and xz learn from what they have read as well, so this is the fair
comparison with them.
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
# learning rates to choose from, by rule
RATES = {"rms": (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3), "sgd": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)}
# the choice is made on at most this many characters
_MAX_TUNING_LENGTH = 30_000
# rule rms: the pull of the trained weights, the share of mean(r) in the denominator, and the pieces with smaller steps
_PULL = 0.002
_SMOOTHING = 0.3
_WARMUP_PIECES = 20


class DynamicEvaluator(Evaluator):
    """Measures the loss of a model on a text that it learns from; the model itself stays as it is.

    Args:
        model: the model to start with.
        rule: how the weights follow the text, `rms` or `sgd`.
    """

    def __init__(self, model: CharRNN, rule: str = "rms"):
        self._trained = model
        self._rule = rule
        self._rate = tf.Variable(0.0, dtype=model.dtype, trainable=False)
        self._num_pieces = tf.Variable(0.0, dtype=model.dtype, trainable=False)
        self._mean_squares = [tf.Variable(tf.zeros_like(v), trainable=False) for v in model.trainable_variables]
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
        for variable in (self._num_pieces, *self._mean_squares):
            variable.assign(tf.zeros_like(variable))
        self._rate.assign(rate)
        examples = make_stream_examples(ids, self._model.layout.start_id, PIECE_LENGTH)
        return self(examples, 1, in_order=True)

    def choose_rate(self, ids: npt.NDArray[np.int32]) -> float:
        """Returns the rate of `RATES` with the lowest loss on the beginning of a text, usually the validation split.

        The loss falls with the rate and then rises, so that rates above the first one that is worse are not tried.
        """
        best_rate, lowest = RATES[self._rule][0], math.inf
        for rate in RATES[self._rule]:
            loss = self.evaluate(ids[:_MAX_TUNING_LENGTH], rate).loss
            if not loss < lowest:
                break
            best_rate, lowest = rate, loss
        return best_rate

    def _predict(self, ids: tf.Tensor, state: tuple[State, ...]) -> tuple[tf.Tensor, tf.Tensor, tuple[State, ...]]:
        variables = self._model.trainable_variables
        with tf.GradientTape() as tape:
            losses, hits, after = self._model.losses_and_hits(ids, state)
            loss = tf.reduce_mean(losses)
        # a learned initial state has no gradient once the text is under way
        gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        {"sgd": self._follow, "rms": self._follow_scaled}[self._rule](list(map(tf.convert_to_tensor, gradients)))
        return tf.cast(losses, tf.float64), hits, after

    def _follow(self, gradients: list[tf.Tensor]) -> None:
        """Takes a step of the rule sgd."""
        for variable, gradient in zip(self._model.trainable_variables, gradients, strict=True):
            variable.assign_sub(self._rate * gradient)

    def _follow_scaled(self, gradients: list[tf.Tensor]) -> None:
        """Takes a step of the rule rms."""
        number = self._num_pieces.assign_add(1.0)
        roots = []
        for mean_square, gradient in zip(self._mean_squares, gradients, strict=True):
            roots.append(tf.sqrt(mean_square.assign_add((gradient * gradient - mean_square) / number)))
        mean_root = tf.add_n([tf.reduce_sum(root) for root in roots]) / self._model.num_parameters
        rate = self._rate * tf.minimum(number / _WARMUP_PIECES, 1.0)
        tiny = np.finfo(self._model.dtype.as_numpy_dtype).tiny  # where all gradients are zero
        for variable, trained, gradient, root in zip(
            self._model.trainable_variables, self._trained.trainable_variables, gradients, roots, strict=True
        ):
            step = rate * gradient / (root + _SMOOTHING * mean_root + tiny)
            pull = tf.minimum(_PULL * root / (mean_root + tiny), 1.0)
            variable.assign(variable - step + pull * (trained - variable))
