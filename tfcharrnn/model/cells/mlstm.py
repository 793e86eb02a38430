"""The multiplicative LSTM, mLSTM (Krause et al. 2017, arXiv 1609.07959)."""

from __future__ import annotations

from typing import ClassVar

import tensorflow as tf

from tfcharrnn.model.cells.base import Cell, ExtraWeight, Product, State


class MultiplicativeLSTMCell(Cell):
    """An LSTM whose recurrent input m depends on the symbol: each symbol has a recurrent matrix of its own.

        m = p_m q                   where p = x W + b and q = h U, U square
        a = p_a + m V               V, `gate_kernel`, is `[hidden, 4 * hidden]`
        i = sigmoid(a_i)    f = sigmoid(a_f)    g = tanh(a_c)    o = sigmoid(a_o)
        c' = f c + i g      h' = o tanh(c')

    The blocks of p are in the order m, i, f, c, o. Equations 18 to 22 of the paper, with the LSTM's own output
    (h' = o tanh(c'), where the paper has tanh(o c')). The state is (h, c). The bias of the forget gate starts at 1.
    """

    num_gates = 5
    initial_bias = (0.0, 0.0, 1.0, 0.0, 0.0)
    num_recurrent_gates = 1
    num_state_tensors = 2
    extra_weights: ClassVar = {"gate_kernel": ExtraWeight((1, 4))}

    @classmethod
    def forward(cls, p: tf.Tensor, q: tf.Tensor, state: State, gate_kernel: Product) -> State:
        """Computes one step."""
        _, c = state
        hidden = c.shape[-1]
        p_m, p_a = tf.split(p, [hidden, 4 * hidden], axis=-1)
        a_i, a_f, a_c, a_o = tf.split(p_a + gate_kernel(p_m * q), 4, axis=-1)
        c = tf.sigmoid(a_f) * c + tf.sigmoid(a_i) * tf.tanh(a_c)
        return tf.sigmoid(a_o) * tf.tanh(c), c
