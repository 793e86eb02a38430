"""The minimal gated recurrent unit, minGRU (Feng et al. 2024, "Were RNNs All We Needed?", section 3.1)."""

from __future__ import annotations

import tensorflow as tf

from tfcharrnn.model.cells.linear import LinearCell


class MinGRUCell(LinearCell):
    """A GRU without what depends on h: gates in the order z, n, from p = x W + b.

    z = sigmoid(p_z)    n = p_n
    h' = (1 - z) h + z n
    """

    num_gates = 2

    @classmethod
    def coefficients(cls, p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns 1 - z and z n."""
        p_z, n = tf.split(p, 2, axis=-1)
        return tf.sigmoid(-p_z), tf.sigmoid(p_z) * n
