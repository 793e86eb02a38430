"""Optimizers on raw variables, averages of weights, gradient clipping and learning-rate schedules."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

import tensorflow as tf

from tfcharrnn.config import TrainingConfig
from tfcharrnn.model.char_rnn import CharRNN


class Optimizer(tf.Module, abc.ABC):
    """An update rule and its state between steps."""

    @abc.abstractmethod
    def apply(
        self,
        variables: Sequence[tf.Variable],
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        finite: tf.Tensor | None = None,
    ) -> None:
        """Updates the variables.

        Args:
            variables: those the optimizer was made for, in the same order.
            gradients: one for each variable.
            learning_rate: a scalar.
            step: updates done before this one.
            finite: a bool scalar; if false, nothing changes. None: true.
        """


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1), and with a weight decay AdamW (Loshchilov & Hutter 2019, algorithm 2).

    The decay multiplies each matrix by 1 - learning rate * weight decay in each step; biases and initial states do not
    decay.

    Attributes:
        first_moments: m, running means of the gradients, shaped like the variables.
        second_moments: v, running means of their squares.
    """

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float = 0.0,
    ):
        """Makes the moments, initially zero; epsilon is the default of TensorFlow."""
        super().__init__()
        self.beta_1, self.beta_2, self.epsilon, self.weight_decay = beta_1, beta_2, epsilon, weight_decay
        self.first_moments = [tf.Variable(tf.zeros_like(v), trainable=False) for v in variables]
        self.second_moments = [tf.Variable(tf.zeros_like(v), trainable=False) for v in variables]

    def apply(
        self,
        variables: Sequence[tf.Variable],
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        finite: tf.Tensor | None = None,
    ) -> None:
        """Updates the variables; see `Optimizer.apply`."""
        # in float64, since 1 - beta_2^t loses its digits in float32
        t = tf.cast(step, tf.float64) + 1.0
        correction = tf.sqrt(1.0 - self.beta_2**t) / (1.0 - self.beta_1**t)
        rate = tf.cast(tf.cast(learning_rate, tf.float64) * correction, gradients[0].dtype)
        # epsilon is added after the bias correction, as in the paper
        epsilon = tf.cast(self.epsilon * tf.sqrt(1.0 - self.beta_2**t), gradients[0].dtype)
        for variable, m, v, gradient in zip(variables, self.first_moments, self.second_moments, gradients, strict=True):
            new_m = self.beta_1 * m + (1.0 - self.beta_1) * gradient
            new_v = self.beta_2 * v + (1.0 - self.beta_2) * gradient * gradient
            new_value = variable - rate * new_m / (tf.sqrt(new_v) + epsilon)
            if self.weight_decay and _is_matrix(variable):
                new_value -= tf.cast(learning_rate * self.weight_decay, variable.dtype) * variable
            _assign(variable, new_value, finite)
            _assign(m, new_m, finite)
            _assign(v, new_v, finite)


class AdaGrad(Optimizer):
    """AdaGrad (Duchi et al. 2011): each rate decreases with the sum of the squared gradients.

    Attributes:
        accumulators: the sums of squares, shaped like the variables.
    """

    def __init__(self, variables: Sequence[tf.Variable], epsilon: float = 1e-8):
        """Makes the sums, initially zero; epsilon is added under the root."""
        super().__init__()
        self.epsilon = epsilon
        self.accumulators = [tf.Variable(tf.zeros_like(v), trainable=False) for v in variables]

    def apply(
        self,
        variables: Sequence[tf.Variable],
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        finite: tf.Tensor | None = None,
    ) -> None:
        """Updates the variables; see `Optimizer.apply`."""
        rate = tf.cast(learning_rate, gradients[0].dtype)
        for variable, squares, gradient in zip(variables, self.accumulators, gradients, strict=True):
            new_squares = squares + gradient * gradient
            _assign(variable, variable - rate * gradient * tf.math.rsqrt(new_squares + self.epsilon), finite)
            _assign(squares, new_squares, finite)


class SGD(Optimizer):
    """Plain gradient descent."""

    def __init__(self, variables: Sequence[tf.Variable]):
        super().__init__()

    def apply(
        self,
        variables: Sequence[tf.Variable],
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        finite: tf.Tensor | None = None,
    ) -> None:
        """Updates the variables; see `Optimizer.apply`."""
        for variable, gradient in zip(variables, gradients, strict=True):
            _assign(variable, variable - tf.cast(learning_rate, gradient.dtype) * gradient, finite)


def _assign(variable: tf.Variable, value: tf.Tensor, finite: tf.Tensor | None) -> None:
    variable.assign(value if finite is None else tf.where(finite, value, variable))


def _is_matrix(variable: tf.Variable) -> bool:
    """Whether a variable is a kernel or an embedding; the bias of a GRU has two rows, but is none."""
    return variable.shape.rank == 2 and not variable.name.startswith("bias")


def make_optimizer(variables: Sequence[tf.Variable], config: TrainingConfig) -> Optimizer:
    """Makes the optimizer that `--optimizer` names."""
    if config.optimizer == "adagrad":
        return AdaGrad(variables)
    if config.optimizer == "sgd":
        return SGD(variables)
    weight_decay = config.weight_decay if config.optimizer == "adamw" else 0.0
    return Adam(variables, config.beta_1, config.beta_2, config.epsilon, weight_decay)


class WeightAverage:
    """An exponential moving average of the weights (Polyak & Juditsky 1992), as a model of its own.

    After step t, counted from 0, each average a of a weight w becomes d a + (1 - d) w, where
    d = min(decay, (1 + t) / (10 + t)): the small d of the first steps forgets the initial weights, as in TensorFlow's
    `ExponentialMovingAverage`.

    Args:
        model: the model that is trained; the average starts with its weights.
        decay: the greatest weight of the previous average, below 1.

    Attributes:
        model: a model with the averaged weights.
    """

    def __init__(self, model: CharRNN, decay: float):
        self.model = model.copy()
        self._decay = decay
        self._pairs = list(zip(self.model.trainable_variables, model.trainable_variables, strict=True))

    def update(self, step: tf.Tensor, finite: tf.Tensor | None = None) -> None:
        """Averages in the weights after an update.

        Args:
            step: updates done before it.
            finite: a bool scalar; if false, nothing changes. None: true.
        """
        t = tf.cast(step, tf.float64)
        share = 1.0 - tf.minimum(tf.constant(self._decay, tf.float64), (1.0 + t) / (10.0 + t))
        for average, weight in self._pairs:
            _assign(average, average + tf.cast(share, weight.dtype) * (weight - average), finite)


def clip(gradients: Sequence[tf.Tensor], config: TrainingConfig) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Clips by value, then by global norm (Pascanu et al. 2013), as configured.

    Returns:
        The clipped gradients, and their global norm before clipping.
    """
    norm = tf.linalg.global_norm(gradients)
    if config.clip_value:
        gradients = [tf.clip_by_value(gradient, -config.clip_value, config.clip_value) for gradient in gradients]
    if config.clip_norm:
        gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm, None if config.clip_value else norm)
    return list(gradients), norm


def learning_rate(config: TrainingConfig, step: tf.Tensor, steps_per_epoch: int, total_steps: int) -> tf.Tensor:
    """Returns the learning rate of a step, a float64 scalar.

    constant: always the same. exponential: multiplied by `decay_rate` at the start of every epoch after `decay_after`.
    The others warm up linearly over `warmup_steps`, and one step after the last reach `final_rate` times the peak.
    cosine: by half a cosine (Loshchilov & Hutter 2017). linear: by a straight line. wsd: constant until the last
    `decay_fraction` of the steps, then by a straight line (warmup-stable-decay, Hu et al. 2024).

    Args:
        config: the schedule and its parameters.
        step: steps done before this one.
        steps_per_epoch: batches in an epoch.
        total_steps: steps of the whole run.
    """
    highest = tf.constant(config.learning_rate, tf.float64)
    if config.schedule == "exponential":
        epochs = tf.cast(step // steps_per_epoch, tf.float64)
        return highest * config.decay_rate ** tf.maximum(epochs - (config.decay_after - 1), 0.0)
    if config.schedule == "constant":
        return highest
    done = tf.cast(step, tf.float64)
    warm = tf.minimum((done + 1.0) / max(config.warmup_steps, 1), 1.0)
    start = config.warmup_steps
    if config.schedule == "wsd":
        start = max(start, total_steps - math.ceil(config.decay_fraction * total_steps))
    share = tf.clip_by_value((done - start) / max(total_steps - start, 1), 0.0, 1.0)
    decay = 0.5 * (1.0 + tf.cos(math.pi * share)) if config.schedule == "cosine" else 1.0 - share
    if config.final_rate:
        decay = config.final_rate + (1.0 - config.final_rate) * decay
    return highest * warm * decay
