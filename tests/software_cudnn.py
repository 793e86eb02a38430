"""cuDNN's recurrent operations in plain TensorFlow, so that what surrounds them can be tested without a GPU."""

import types

import tensorflow as tf

from tfcharrnn.model import backends

GATES = {"rnn_tanh": 1, "lstm": 4, "gru": 3}


class SoftwareCudnn:
    """Replaces `tf.raw_ops.CudnnRNNV2` and `V3` by loops over the steps; `calls` has the arguments of each call."""

    def __init__(self, patch):
        self.calls = []
        patch.setattr(backends, "is_cudnn_available", lambda: True)
        for name in ("CudnnRNNV2", "CudnnRNNV3"):
            patch.setattr(tf.raw_ops, name, self._make(name))

    def _make(self, name):
        def call(**arguments):
            self.calls.append({"name": name, **arguments})
            return run(**arguments)

        return call


def run(
    input, input_h, input_c, params, rnn_mode, is_training, sequence_lengths=None, time_major=True
):  # fmt: skip
    """One layer, as cuDNN documents it: its order of gates, matrices `[hidden, input]`, two biases."""
    assert time_major
    (steps, batch, size), hidden, gates = input.shape, input_h.shape[2], GATES[rnn_mode]
    lengths = tf.fill([batch], steps) if sequence_lengths is None else sequence_lengths
    w, r, b = tf.split(params, [gates * hidden * size, gates * hidden * hidden, 2 * gates * hidden])
    w, r = tf.reshape(w, [gates, hidden, size]), tf.reshape(r, [gates, hidden, hidden])
    b_w, b_r = tf.unstack(tf.reshape(b, [2, gates, hidden]))
    state = (input_h[0], input_c[0]) if rnn_mode == "lstm" else (input_h[0],)
    outputs = []
    for t in range(steps):
        p = [tf.matmul(input[t], w[gate], transpose_b=True) + b_w[gate] for gate in range(gates)]
        q = [tf.matmul(state[0], r[gate], transpose_b=True) + b_r[gate] for gate in range(gates)]
        runs = (t < lengths)[:, tf.newaxis]
        state = tuple(tf.where(runs, new, old) for new, old in zip(_step(rnn_mode, p, q, state), state, strict=True))
        outputs.append(tf.where(runs, state[0], tf.zeros_like(state[0])))
    results = [tf.stack(outputs), *(array[tf.newaxis] for array in state)]
    if not is_training:  # there is no reserve space for a gradient
        results = [tf.stop_gradient(result) for result in results]
    return types.SimpleNamespace(**dict(zip(("output", "output_h", "output_c"), results, strict=False)))


def _step(rnn_mode, p, q, state):
    if rnn_mode == "rnn_tanh":
        return (tf.tanh(p[0] + q[0]),)
    if rnn_mode == "gru":  # 0 reset, 1 update, 2 new
        reset, update = tf.sigmoid(p[0] + q[0]), tf.sigmoid(p[1] + q[1])
        return ((1 - update) * tf.tanh(p[2] + reset * q[2]) + update * state[0],)
    i, f, g, o = tf.sigmoid(p[0] + q[0]), tf.sigmoid(p[1] + q[1]), tf.tanh(p[2] + q[2]), tf.sigmoid(p[3] + q[3])
    c = f * state[1] + i * g
    return o * tf.tanh(c), c
