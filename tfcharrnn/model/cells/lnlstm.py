"""Long short-term memory with layer normalisation (Ba et al. 2016, arXiv 1607.06450, equations 20 to 22)."""

from __future__ import annotations

from typing import ClassVar

import tensorflow as tf

from tfcharrnn.model.cells.base import Cell, ExtraWeight, State, normalise_layer


class LayerNormLSTMCell(Cell):
    """An LSTM that normalises its two sums and its cell state: gates in the order i, f, c, o, p = x W and q = h U.

        a = LN(p; input_gain) + LN(q; recurrent_gain) + shift
        i = sigmoid(a_i)    f = sigmoid(a_f)    g = tanh(a_c)    o = sigmoid(a_o)
        c' = f c + i g      h' = o tanh(LN(c'; cell_gain) + cell_shift)

    LN(x; gain) = gain (x - mean) / sqrt(variance + 1e-5), over all four gates together for the sums. The state is
    (h, c). The gains start at 1; the shift starts at 0, for the forget gate at 1.
    """

    num_gates = 4
    num_state_tensors = 2
    has_bias = False
    extra_weights: ClassVar = {
        "input_gain": ExtraWeight((4,), 1.0),
        "recurrent_gain": ExtraWeight((4,), 1.0),
        "shift": ExtraWeight((4,), (0.0, 1.0, 0.0, 0.0)),
        "cell_gain": ExtraWeight((1,), 1.0),
        "cell_shift": ExtraWeight((1,)),
    }

    @classmethod
    def forward(
        cls,
        p: tf.Tensor,
        q: tf.Tensor,
        state: State,
        input_gain: tf.Tensor,
        recurrent_gain: tf.Tensor,
        shift: tf.Tensor,
        cell_gain: tf.Tensor,
        cell_shift: tf.Tensor,
    ) -> State:
        """Computes one step."""
        _, c = state
        a = input_gain * normalise_layer(p) + recurrent_gain * normalise_layer(q) + shift
        a_i, a_f, a_c, a_o = tf.split(a, 4, axis=-1)
        c = tf.sigmoid(a_f) * c + tf.sigmoid(a_i) * tf.tanh(a_c)
        return tf.sigmoid(a_o) * tf.tanh(cell_gain * normalise_layer(c) + cell_shift), c
