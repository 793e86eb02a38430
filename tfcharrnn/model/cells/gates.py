"""What makes a gate, a share between 0 and 1, of a sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Gate:
    """An activation of gates, forward and backward.

    Attributes:
        name: as `--recurrent_activation` takes it.
        value: from the sum a to the gate s, both `[batch, hidden]`.
        gradient: from the loss's gradient by s, and s, to that by a; s alone tells the slope there.
    """

    name: str
    value: Callable[[tf.Tensor], tf.Tensor]
    gradient: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def _sigmoid_gradient(d_s: tf.Tensor, s: tf.Tensor) -> tf.Tensor:
    return d_s * s * (1.0 - s)


def _hard(name: str, slope: float) -> Gate:
    """A line through 1/2 at a = 0, cut off at 0 and 1, where the slope is 0."""

    def value(a: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(slope * a + 0.5, 0.0, 1.0)

    def gradient(d_s: tf.Tensor, s: tf.Tensor) -> tf.Tensor:
        return tf.where((s > 0.0) & (s < 1.0), slope * d_s, tf.zeros_like(d_s))

    return Gate(name, value, gradient)


SIGMOID = Gate("sigmoid", tf.sigmoid, _sigmoid_gradient)
# Keras has had two functions of the name hard_sigmoid: this one in versions 1 and 2, and relu6(a + 3) / 6 in version 3.
HARD_SIGMOID = _hard("hard_sigmoid", 0.2)
HARD_SIGMOID_6 = _hard("hard_sigmoid_6", 1.0 / 6.0)

GATES = {gate.name: gate for gate in (SIGMOID, HARD_SIGMOID, HARD_SIGMOID_6)}
