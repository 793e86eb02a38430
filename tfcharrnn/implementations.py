"""The code that runs one recurrent layer, chosen by `--implementation`; all use the same variables."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfcharrnn import projection, recurrence
from tfcharrnn.cells import Cell, State
from tfcharrnn.projection import Symbols

RunLayer = Callable[[Cell, "Symbols | tf.Tensor", State], tuple[tf.Tensor, State]]


def choose(name: str) -> tuple[str, RunLayer]:
    """The implementation of a name, and the name again with `auto` made definite."""
    if name == "auto":
        name = "custom"
    return name, {"custom": run_custom, "keras": run_keras}[name]


def run_custom(cell: Cell, inputs: Symbols | tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
    """Runs a layer by the code of this project.

    Args:
        cell: the cell.
        inputs: symbols, or vectors `[time, batch, input]`.
        state: before the first step.

    Returns:
        The outputs, `[time, batch, hidden]`, and the state after the last step.
    """
    return recurrence.run_cell(cell, projection.project(cell, inputs), state)


def run_keras(cell: Cell, inputs: Symbols | tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
    """Runs a layer by Keras's `SimpleRNN`, `LSTM` or `GRU` on the cell's variables; otherwise as `run_custom`.

    Keras takes vectors only, so one-hot vectors are made here.
    """
    x = inputs.dense(cell.kernel.dtype) if isinstance(inputs, Symbols) else inputs
    layer = _keras_layer(type(cell).__name__, cell.input_size, cell.hidden_size, cell.kernel.dtype.name)
    weights = [tf.convert_to_tensor(v) for v in (cell.kernel, cell.recurrent_kernel, cell.bias)]
    (outputs, *last), _ = layer.stateless_call(
        weights, layer.non_trainable_variables, tf.transpose(x, [1, 0, 2]), initial_state=list(state)
    )
    return tf.transpose(outputs, [1, 0, 2]), tuple(last)


@functools.lru_cache(maxsize=64)
def _keras_layer(cell_name: str, input_size: int, hidden_size: int, dtype: str) -> Any:
    """A Keras layer whose own weights are never used: each call is handed the cell's."""
    import keras  # slow to import, and only this implementation needs it

    with tf.init_scope():
        classes = {"RNNCell": keras.layers.SimpleRNN, "LSTMCell": keras.layers.LSTM, "GRUCell": keras.layers.GRU}
        layer = classes[cell_name](hidden_size, return_sequences=True, return_state=True, dtype=dtype)
        layer.build((None, None, input_size))
    return layer
