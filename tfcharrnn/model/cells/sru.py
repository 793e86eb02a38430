"""The simple recurrent unit, SRU (Lei et al. 2018), in its first form, whose gates do not read the state."""

from __future__ import annotations

import tensorflow as tf

from tfcharrnn.model.cells.linear import LinearCell


class SRUCell(LinearCell):
    """A weighted average of inputs, and a highway around it: blocks in the order u, f, r, v, from p = x W + b.

        f = sigmoid(p_f)    r = sigmoid(p_r)
        c' = f c + (1 - f) p_u
        h' = r tanh(c') + (1 - r) p_v

    The state is (h, c). These are equations 1 to 4 of arXiv 1709.02755, version 1. There the highway carries x itself;
    here v is a projection of it, since x may have another size. The bias of the forget gate starts at 1.
    """

    num_gates = 4
    initial_bias = (0.0, 1.0, 0.0, 0.0)
    num_state_tensors = 2

    @classmethod
    def coefficients(cls, p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns f and (1 - f) p_u."""
        p_u, p_f, _, _ = tf.split(p, 4, axis=-1)
        return tf.sigmoid(p_f), tf.sigmoid(-p_f) * p_u

    @classmethod
    def output(cls, p: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        """Returns r tanh(c) + (1 - r) p_v."""
        _, _, p_r, p_v = tf.split(p, 4, axis=-1)
        return tf.sigmoid(p_r) * tf.tanh(c) + tf.sigmoid(-p_r) * p_v
