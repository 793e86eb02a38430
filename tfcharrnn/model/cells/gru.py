"""The gated recurrent unit (Cho et al. 2014) in the variant that cuDNN computes."""

from __future__ import annotations

import tensorflow as tf

from tfcharrnn.model.cells.base import Cell, State


class GRUCell(Cell):
    """Gates in the order z, r, h, from the two sums p = x W + b and q = h U + b'.

        z = sigmoid(p_z + q_z)    r = sigmoid(p_r + q_r)    n = tanh(p_h + r q_h)
        h' = z h + (1 - z) n

    `gate` may replace the sigmoid. The reset gate is applied after the recurrent product (`reset_after=True` in
    Keras), so b and b' have different gradients; they are the two rows of `bias`, `[2, 3 * hidden]`.
    """

    library_name = "gru"
    num_gates = 3
    num_saved_tensors = 4
    has_separate_sums = True

    @classmethod
    def variable_shapes(cls, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each variable by its name; the bias has two rows."""
        return super().variable_shapes(input_size, hidden_size) | {"bias": (2, cls.num_gates * hidden_size)}

    @property
    def input_bias(self) -> tf.Tensor:
        """The bias b in x W + b, `[3 * hidden]`."""
        return tf.convert_to_tensor(self.bias)[0]

    @property
    def recurrent_bias(self) -> tf.Tensor:
        """The bias b' in h U + b', `[3 * hidden]`."""
        return tf.convert_to_tensor(self.bias)[1]

    @classmethod
    def forward(cls, p: tf.Tensor, q: tf.Tensor, state: State) -> tuple[State, State]:
        """Computes one step; saves z, r, n and q_h."""
        (h,) = state
        p_z, p_r, p_h = tf.split(p, 3, axis=-1)
        q_z, q_r, q_h = tf.split(q, 3, axis=-1)
        z, r = cls.gate.value(p_z + q_z), cls.gate.value(p_r + q_r)
        n = tf.tanh(p_h + r * q_h)
        return (z * h + (1.0 - z) * n,), (z, r, n, q_h)

    @classmethod
    def backward(cls, saved: State, before: State, after: State, d_after: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        """Computes the derivative of `forward`; p and q differ only in h, where d_q_h = r d_p_h."""
        z, r, n, q_h = saved
        (h_before,), (dh,) = before, d_after
        d_h = dh * (1.0 - z) * (1.0 - n * n)
        d_z = cls.gate.gradient(dh * (h_before - n), z)
        d_r = cls.gate.gradient(d_h * q_h, r)
        return tf.concat([d_z, d_r, d_h], axis=-1), tf.concat([d_z, d_r, d_h * r], axis=-1), (dh * z,)
