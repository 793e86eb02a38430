"""The Elman network (Elman 1990, "Finding structure in time")."""

from __future__ import annotations

import tensorflow as tf

from tfcharrnn.model.cells.base import Cell, State


class RNNCell(Cell):
    """h' = tanh(x W + b + h U)."""

    gates = 1

    @classmethod
    def forward(cls, projected: tf.Tensor, recurrent: tf.Tensor, state: State) -> tuple[State, State]:
        """One step; see `Cell.forward`. Nothing is saved: the output says all."""
        return (tf.tanh(projected + recurrent),), ()

    @classmethod
    def backward(cls, saved: State, before: State, after: State, d_after: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        """Tanh' = 1 - tanh^2; see `Cell.backward`."""
        (h,), (dh,) = after, d_after
        d_sum = dh * (1.0 - h * h)
        return d_sum, d_sum, (tf.zeros_like(h),)
