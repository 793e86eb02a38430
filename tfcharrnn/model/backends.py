"""The code that runs one recurrent layer, chosen by `--implementation`; all use the same variables.

Each takes a cell, its inputs (symbols, or vectors `[time, batch, input]`) and the state before the first step, and
returns the outputs, `[time, batch, hidden]`, and the state after the last step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfcharrnn.errors import UserError
from tfcharrnn.model import cudnn, input_projection, recurrence
from tfcharrnn.model.cells import Cell, LSTMCell, RNNCell, State
from tfcharrnn.model.input_projection import Symbols

RunLayer = Callable[[Cell, "Symbols | tf.Tensor", State], tuple[tf.Tensor, State]]


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A way to run layers.

    Attributes:
        name: as `--implementation` takes it.
        run_layer: runs one layer.
        jit_compile: XLA may compile a whole step that uses it. Keras's loops are quicker as TensorFlow runs them, and
            cuDNN's calls are compiled already.
        halves_batch: two halves of a batch, side by side, take less time than the whole; so it is on a CPU of two
            cores, where it was measured.
        note: why `auto` did not take cuDNN though there is a GPU, or "".
    """

    name: str
    run_layer: RunLayer
    jit_compile: bool
    halves_batch: bool = False
    note: str = ""


def run_custom(cell: Cell, inputs: Symbols | tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
    """Runs a layer by the code of this project."""
    return recurrence.run_cell(cell, input_projection.project(cell, inputs), state)


def run_keras(cell: Cell, inputs: Symbols | tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
    """Runs a layer by Keras's `SimpleRNN`, `LSTM` or `GRU` on the cell's variables."""
    x = _vectors(cell, inputs)
    layer = _keras_layer(type(cell), cell.input_size, cell.hidden_size, cell.kernel.dtype.name)
    weights = [tf.convert_to_tensor(v) for v in (cell.kernel, cell.recurrent_kernel, cell.bias)]
    (outputs, *last), _ = layer.stateless_call(
        weights, layer.non_trainable_variables, tf.transpose(x, [1, 0, 2]), initial_state=list(state)
    )
    return tf.transpose(outputs, [1, 0, 2]), tuple(last)


def run_cudnn(cell: Cell, inputs: Symbols | tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
    """Runs a layer by cuDNN on the cell's variables; needs an NVIDIA GPU."""
    return cudnn.run_layer(cell, _vectors(cell, inputs), state)


_ALL = {
    "custom": Implementation("custom", run_custom, jit_compile=True),
    "keras": Implementation("keras", run_keras, jit_compile=False),
    "cudnn": Implementation("cudnn", run_cudnn, jit_compile=False),
}


def choose(
    name: str, precision: str = "float32", dtype: tf.DType = tf.float32, recurrent_activation: str = "sigmoid"
) -> Implementation:
    """The implementation of a name; `auto` is cuDNN where it applies, and this project's own code elsewhere.

    Args:
        name: what `--implementation` says.
        precision: what `--precision` says.
        dtype: of the variables.
        recurrent_activation: what `--recurrent_activation` says.

    Raises:
        UserError: an implementation is asked for by name that cannot be had, or not at this precision or activation.
    """
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    reason = ""
    if not cudnn.available():
        reason = "TensorFlow sees no NVIDIA GPU"
    elif precision != "float32" or dtype != tf.float32:
        reason = "it is used in float32 only"
    elif recurrent_activation != "sigmoid":
        reason = f"it has no --recurrent_activation={recurrent_activation}"
    if name == "cudnn" and reason:
        raise UserError(f"--implementation=cudnn: cannot be had, since {reason}; take auto or custom")
    if name == "keras" and precision != "float32":
        raise UserError(f"--implementation=keras: has no --precision={precision}; take auto or custom")
    note = f"cuDNN does not apply, since {reason}" if name == "auto" and reason and on_gpu else ""
    if name == "auto":
        name = "custom" if reason else "cudnn"
    return dataclasses.replace(_ALL[name], halves_batch=name == "custom" and not on_gpu, note=note)


def _vectors(cell: Cell, inputs: Symbols | tf.Tensor) -> tf.Tensor:
    """The inputs as vectors, for code that can take nothing else."""
    return inputs.dense(cell.kernel.dtype) if isinstance(inputs, Symbols) else inputs


@functools.lru_cache(maxsize=64)
def _keras_layer(kind: type[Cell], input_size: int, hidden_size: int, dtype: str) -> Any:
    """A Keras layer whose own weights are never used: each call is handed the cell's."""
    import keras  # slow to import, and only this implementation needs it

    with tf.init_scope():
        settings = {"return_sequences": True, "return_state": True, "dtype": dtype}
        if issubclass(kind, RNNCell):
            layer = keras.layers.SimpleRNN(hidden_size, **settings)
        else:
            layer_type = keras.layers.LSTM if issubclass(kind, LSTMCell) else keras.layers.GRU
            layer = layer_type(hidden_size, recurrent_activation=_keras_activation(kind.gate.name), **settings)
        layer.build((None, None, input_size))
    return layer


def _keras_activation(name: str) -> Any:
    """What Keras calls an activation of gates, or for one that it no longer has, the function."""
    import keras

    if name == "hard_sigmoid":
        return lambda a: keras.ops.clip(0.2 * a + 0.5, 0.0, 1.0)
    return {"sigmoid": "sigmoid", "hard_sigmoid_6": "hard_sigmoid"}[name]
