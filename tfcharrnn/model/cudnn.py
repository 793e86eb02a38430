"""NVIDIA's cuDNN, which runs a whole layer in one call, on the same variables as every other implementation.

cuDNN takes all weights of a layer as one flat vector: first the matrices, each stored `[hidden, input]` where ours
are `[input, hidden]`, all that meet the input before all that meet the state; then the biases in the same order. Its
gates stand in the order i, f, c, o as ours, but for the GRU in the order r, z, h (cuDNN developer guide,
`cudnnGetRNNWeightParams`).
"""

from __future__ import annotations

import tensorflow as tf

from tfcharrnn.model.cells import Cell, GRUCell, LSTMCell, RNNCell, State

_MODES: dict[type[Cell], str] = {RNNCell: "rnn_tanh", LSTMCell: "lstm", GRUCell: "gru"}
# which of our gates stands at each place of cuDNN's
_GATE_ORDER: dict[type[Cell], tuple[int, ...]] = {RNNCell: (0,), LSTMCell: (0, 1, 2, 3), GRUCell: (1, 0, 2)}


def available() -> bool:
    """Whether TensorFlow sees an NVIDIA GPU to run cuDNN on."""
    return bool(tf.config.list_physical_devices("GPU")) and tf.test.is_built_with_cuda()


def flat_weights(cell: Cell) -> tf.Tensor:
    """The cell's variables as the one vector that cuDNN takes.

    Args:
        cell: an RNN, LSTM or GRU cell.

    Returns:
        A vector of `gates * hidden * (input + hidden + 2)` numbers. cuDNN has two biases, beside x W and beside h U;
        for a cell that has only one, the second is zero.
    """
    order = _GATE_ORDER[type(cell)]
    biases = [
        cell.input_bias,
        cell.recurrent_bias if cell.recurrent_bias is not None else tf.zeros_like(cell.input_bias),
    ]
    parts = []
    for matrix in (cell.kernel, cell.recurrent_kernel):
        gates = tf.split(tf.transpose(matrix), cell.gates, axis=0)
        parts += [tf.reshape(gates[gate], [-1]) for gate in order]
    for bias in biases:
        gates = tf.split(bias, cell.gates)
        parts += [gates[gate] for gate in order]
    return tf.concat(parts, axis=0)


def run_layer(cell: Cell, x: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
    """Runs a layer on the GPU; gradients are cuDNN's own.

    Args:
        cell: the cell.
        x: vectors, `[time, batch, input]`.
        state: before the first step, each `[batch, hidden]`.

    Returns:
        The outputs, `[time, batch, hidden]`, and the state after the last step.
    """
    time, batch, _ = x.shape
    has_memory = isinstance(cell, LSTMCell)
    result = tf.raw_ops.CudnnRNNV3(
        input=x,
        input_h=state[0][tf.newaxis],
        input_c=state[1][tf.newaxis] if has_memory else tf.zeros([], x.dtype),
        params=flat_weights(cell),
        sequence_lengths=tf.fill([batch], time),
        rnn_mode=_MODES[type(cell)],
        is_training=True,
        time_major=True,
    )
    last = (result.output_h[0], result.output_c[0]) if has_memory else (result.output_h[0],)
    return result.output, last
