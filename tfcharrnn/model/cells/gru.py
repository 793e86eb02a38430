"""The gated recurrent unit (Cho et al. 2014) in the variant that cuDNN computes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.model.cells.base import Cell, State


class GRUCell(Cell):
    """Gates in the order z, r, h, from the two sums p = x W + b and q = h U + b'.

        z = sigmoid(p_z + q_z)    r = sigmoid(p_r + q_r)    n = tanh(p_h + r q_h)
        h' = z h + (1 - z) n

    where `gate` may be another activation than sigmoid. The reset gate works after the recurrent product
    (`reset_after=True` in Keras), so b and b' differ; they are the two rows of `bias`, `[2, 3 * hidden]`.
    """

    gates = 3
    saved_count = 4
    two_sums = True

    def _initial_bias(self) -> npt.NDArray[np.float64]:
        return np.zeros((2, self.gates * self.hidden_size))

    @property
    def input_bias(self) -> tf.Tensor:
        """The bias beside x W, `[3 * hidden]`."""
        return self.bias[0]

    @property
    def recurrent_bias(self) -> tf.Tensor:
        """The bias beside h U, `[3 * hidden]`."""
        return self.bias[1]

    @classmethod
    def forward(cls, projected: tf.Tensor, recurrent: tf.Tensor, state: State) -> tuple[State, State]:
        """One step; see `Cell.forward`. Saved are z, r, n and q_h."""
        (h,) = state
        p_z, p_r, p_h = tf.split(projected, 3, axis=-1)
        q_z, q_r, q_h = tf.split(recurrent, 3, axis=-1)
        z, r = cls.gate.value(p_z + q_z), cls.gate.value(p_r + q_r)
        n = tf.tanh(p_h + r * q_h)
        return (z * h + (1.0 - z) * n,), (z, r, n, q_h)

    @classmethod
    def backward(cls, saved: State, before: State, after: State, d_after: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        """Both sums get the same gradients for z and r; that of q_h is r times that of p_h; see `Cell.backward`."""
        z, r, n, q_h = saved
        (h_before,), (dh,) = before, d_after
        d_h = dh * (1.0 - z) * (1.0 - n * n)
        d_z = cls.gate.gradient(dh * (h_before - n), z)
        d_r = cls.gate.gradient(d_h * q_h, r)
        return tf.concat([d_z, d_r, d_h], axis=-1), tf.concat([d_z, d_r, d_h * r], axis=-1), (dh * z,)
