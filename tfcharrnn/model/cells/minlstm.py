"""The minimal long short-term memory, minLSTM (Feng et al. 2024, "Were RNNs All We Needed?", section 3.2)."""

from __future__ import annotations

import tensorflow as tf

from tfcharrnn.model.cells.linear import LinearCell


class MinLSTMCell(LinearCell):
    """An LSTM without what depends on h, its gates normalised: in the order i, f, n, from p = x W + b.

        i = sigmoid(p_i)    f = sigmoid(p_f)    n = p_n
        h' = f / (f + i) h + i / (f + i) n

    The bias of the forget gate starts at 1, as in the LSTM.
    """

    num_gates = 3
    initial_bias = (0.0, 1.0, 0.0)

    @classmethod
    def coefficients(cls, p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns f / (f + i) and i / (f + i) n; the quotient is a sigmoid, which cannot be 0 / 0.

        f / (f + i) = 1 / (1 + i / f) = sigmoid(log f - log i).
        """
        p_i, p_f, n = tf.split(p, 3, axis=-1)
        # log f - log i, since log sigmoid(x) = -softplus(-x)
        difference = tf.math.softplus(-p_i) - tf.math.softplus(-p_f)
        return tf.sigmoid(difference), tf.sigmoid(-difference) * n
