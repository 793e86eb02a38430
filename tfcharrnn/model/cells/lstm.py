"""Long short-term memory with a forget gate (Hochreiter & Schmidhuber 1997; Gers et al. 2000)."""

from __future__ import annotations

import tensorflow as tf

from tfcharrnn.model.cells.base import Cell, State


class LSTMCell(Cell):
    """Gates in the order i, f, c, o, all from the one sum a = p + q, where p = x W + b and q = h U.

        i = sigmoid(a_i)    f = sigmoid(a_f)    g = tanh(a_c)    o = sigmoid(a_o)
        c' = f c + i g      h' = o tanh(c')

    `gate` may replace the sigmoid. The state is (h, c). The bias of the forget gate starts at 1 (Jozefowicz et
    al. 2015), so that the cell keeps its memory until it learns what to forget.
    """

    library_name = "lstm"
    num_gates = 4
    initial_bias = (0.0, 1.0, 0.0, 0.0)
    num_state_tensors = 2
    num_saved_tensors = 4

    @classmethod
    def forward(cls, p: tf.Tensor, q: tf.Tensor, state: State) -> tuple[State, State]:
        """Computes one step; saves i, f, g and o."""
        _, c = state
        a_i, a_f, a_c, a_o = tf.split(p + q, 4, axis=-1)
        i, f, g, o = cls.gate.value(a_i), cls.gate.value(a_f), tf.tanh(a_c), cls.gate.value(a_o)
        c = f * c + i * g
        return (o * tf.tanh(c), c), (i, f, g, o)

    @classmethod
    def backward(cls, saved: State, before: State, after: State, d_after: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        """Computes the derivative of `forward`; the gradient of c' comes both from h' and from the next step."""
        i, f, g, o = saved
        _, c_before = before
        dh, dc = d_after
        tanh_c = tf.tanh(after[1])
        dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
        d_sum = tf.concat(
            [
                cls.gate.gradient(dc * g, i),
                cls.gate.gradient(dc * c_before, f),
                dc * i * (1.0 - g * g),
                cls.gate.gradient(dh * tanh_c, o),
            ],
            axis=-1,
        )
        return d_sum, d_sum, (tf.zeros_like(dh), dc * f)
