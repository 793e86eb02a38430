"""Optimizers on raw variables, gradient clipping and learning-rate schedules."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfcharrnn.config import TrainingConfig


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
    """Adam (Kingma & Ba 2015, algorithm 1).

    Attributes:
        first_moments: m, running means of the gradients, shaped like the variables.
        second_moments: v, running means of their squares.
    """

    def __init__(
        self, variables: Sequence[tf.Variable], beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7
    ):
        """Makes the moments, initially zero; epsilon is the default of TensorFlow."""
        super().__init__()
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
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
            _assign(variable, variable - rate * new_m / (tf.sqrt(new_v) + epsilon), finite)
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


OPTIMIZERS: dict[str, Callable[[Sequence[tf.Variable]], Optimizer]] = {"adam": Adam, "adagrad": AdaGrad, "sgd": SGD}


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
    cosine: linear warm-up over `warmup_steps`, then half a cosine that reaches zero one step after the last
    (Loshchilov & Hutter 2017).

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
    if config.schedule == "cosine":
        done = tf.cast(step, tf.float64)
        warm = tf.minimum((done + 1.0) / max(config.warmup_steps, 1), 1.0)
        share = (done - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
        return highest * warm * 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(share, 0.0, 1.0)))
    return highest
