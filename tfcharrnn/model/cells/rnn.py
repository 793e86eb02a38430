"""The Elman network (Elman 1990, "Finding structure in time")."""

from __future__ import annotations

import tensorflow as tf

from tfcharrnn.model.cells.base import Cell, State


class RNNCell(Cell):
    """h' = tanh(p + q), where p = x W + b and q = h U."""

    library_name = "rnn"
    num_gates = 1

    @classmethod
    def forward(cls, p: tf.Tensor, q: tf.Tensor, state: State) -> tuple[State, State]:
        """Computes one step; saves nothing, since the output is all that `backward` needs."""
        return (tf.tanh(p + q),), ()

    @classmethod
    def backward(cls, saved: State, before: State, after: State, d_after: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        """Computes the derivative of `forward`: tanh' = 1 - tanh^2."""
        (h,), (dh,) = after, d_after
        d_sum = dh * (1.0 - h * h)
        return d_sum, d_sum, (tf.zeros_like(h),)
