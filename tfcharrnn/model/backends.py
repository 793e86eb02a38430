"""The backends that run a recurrent layer, as `--implementation` names them: custom, keras and cudnn.

All use the same variables. `Backend.run_layer` takes a cell, its inputs (symbols, or vectors `[time, batch, input]`),
the state before the first step, the recurrent kernel, from which dropout may have removed weights (None if the cell has
none), and for rows of different lengths a mask, bool `[time, batch]`: true for the first steps of a row, false for
those to skip after them. It returns the outputs, `[time, batch, hidden]`, and the state after the last step; outputs of
skipped steps are undefined.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfcharrnn import cell_registry
from tfcharrnn.errors import UserError, first_line
from tfcharrnn.model import derived_step, recurrence
from tfcharrnn.model.cells import Cell, State, get_cell_class
from tfcharrnn.model.input_projection import SymbolInput

if TYPE_CHECKING:
    from tfcharrnn.config import ModelConfig

RunLayer = Callable[
    [Cell, "SymbolInput | tf.Tensor", State, "tf.Tensor | None", "tf.Tensor | None"], tuple[tf.Tensor, State]
]
# the cells that Keras and cuDNN have as well
LIBRARY_CELLS = ("rnn", "lstm", "gru")


@dataclasses.dataclass(frozen=True)
class Backend:
    """Code that runs a recurrent layer.

    Attributes:
        name: its name in `--implementation`.
        run_layer: runs a layer over a sequence.
        infer_layer: does the same where nothing is differentiated.
        jit_compile: XLA may compile a whole training step that uses it. Keras's loops are faster without XLA, and
            cuDNN's calls are compiled already.
        halves_batch: two halves of a batch side by side take less time than the whole, as measured on a CPU with two
            cores.
        note: why `auto` did not choose cuDNN on a machine with a GPU, else "".
    """

    name: str
    run_layer: RunLayer
    infer_layer: RunLayer
    jit_compile: bool
    halves_batch: bool = False
    note: str = ""


def check_backend(config: ModelConfig, dtype: tf.DType = tf.float32) -> None:
    """Checks that the backend of a configuration is available and supports its precision and gate activation.

    Raises:
        UserError: it is not, or it does not.
        CellError: the step of a cell that is not built in fails.
    """
    cell_class = get_cell_class(config.cell)
    if config.implementation in ("keras", "cudnn") and config.cell not in LIBRARY_CELLS:
        raise UserError(
            f"--implementation={config.implementation} has no --cell={config.cell}, only {', '.join(LIBRARY_CELLS)}; "
            "use auto or custom"
        )
    if config.weight_drop and not cell_class.num_recurrent_gates:
        raise UserError(f"--weight_drop: --cell={config.cell} has no recurrent kernel whose weights could be dropped")
    if config.cell not in cell_registry.BUILT_IN:
        derived_step.check_step(cell_class, config.hidden_size)
    obstacle = _find_cudnn_obstacle(config, dtype)
    if config.implementation == "cudnn" and obstacle:
        raise UserError(f"--implementation=cudnn is unavailable: {obstacle}; use auto or custom")
    if config.implementation == "keras" and (obstacle := _find_keras_obstacle()):
        raise UserError(f"--implementation=keras is unavailable: {obstacle}; or use auto or custom")
    if config.implementation == "keras" and config.precision == "bfloat16":
        raise UserError(f"--implementation=keras does not support --precision={config.precision}; use auto or custom")


def choose_backend(config: ModelConfig, dtype: tf.DType = tf.float32) -> Backend:
    """Returns the backend of a configuration; `auto` is cuDNN where it is available and applies, else custom.

    Raises:
        UserError: see `check_backend`.
    """
    check_backend(config, dtype)
    name, note = config.implementation, ""
    has_gpu = bool(tf.config.list_logical_devices("GPU"))
    if name == "auto":
        obstacle = _find_cudnn_obstacle(config, dtype)
        name = "custom" if obstacle else "cudnn"
        note = f"not using cuDNN: {obstacle}" if obstacle and has_gpu else ""
    backend = _BACKENDS[name]
    if name == "custom" and config.unroll > 1:
        run_layer = functools.partial(run_custom, unroll=config.unroll)
        backend = dataclasses.replace(backend, run_layer=run_layer, infer_layer=run_layer)
    return dataclasses.replace(backend, halves_batch=name == "custom" and not has_gpu, note=note)


def _find_cudnn_obstacle(config: ModelConfig, dtype: tf.DType) -> str:
    """Returns the reason why cuDNN cannot run a configuration, or "" if it can."""
    if not is_cudnn_available():
        from tfcharrnn import gpu_diagnosis  # only without a GPU is there anything to find

        return gpu_diagnosis.find_obstacle() or "TensorFlow found no NVIDIA GPU"
    if config.cell not in LIBRARY_CELLS:
        return f"it has no --cell={config.cell}"
    if config.precision != "float32" or dtype != tf.float32:
        return "it runs in float32 only"
    if config.recurrent_activation != "sigmoid":
        return f"it does not support --recurrent_activation={config.recurrent_activation}"
    return ""


def _to_vectors(cell: Cell, inputs: SymbolInput | tf.Tensor) -> tf.Tensor:
    """Returns the inputs as vectors, `[time, batch, input]`, for backends that accept nothing else."""
    return inputs.to_vectors(cell.kernel.dtype) if isinstance(inputs, SymbolInput) else inputs


def run_custom(
    cell: Cell,
    inputs: SymbolInput | tf.Tensor,
    state: State,
    kernel: tf.Tensor | None,
    mask: tf.Tensor | None = None,
    *,
    unroll: int = 1,
) -> tuple[tf.Tensor, State]:
    """Runs a layer step by step, `unroll` steps a turn, or all at once if the cell is linear in its state."""
    if cell.is_linear:
        from tfcharrnn.model import linear_recurrence  # few models need it

        if linear_recurrence.is_loop_faster(cell, inputs):
            return recurrence.run_layer(cell, inputs, state, None, mask, unroll)
        return linear_recurrence.run_linear_layer(cell, inputs, state, mask)
    return recurrence.run_layer(cell, inputs, state, kernel, mask, unroll)


# Keras


def _find_keras_obstacle() -> str:
    """Returns the reason why Keras's layers cannot run in TensorFlow, with the remedy, or ""."""
    remedy = "unset KERAS_BACKEND, or set backend to tensorflow in keras.json"
    try:
        import keras
    except ImportError as error:  # of another backend that is not installed
        return f"Keras cannot be imported ({first_line(error)}); {remedy}"
    backend = keras.config.backend()
    return "" if backend == "tensorflow" else f"Keras computes with {backend}; {remedy}"


def run_keras(
    cell: Cell, inputs: SymbolInput | tf.Tensor, state: State, kernel: tf.Tensor, mask: tf.Tensor | None = None
) -> tuple[tf.Tensor, State]:
    """Runs a layer with Keras's `SimpleRNN`, `LSTM` or `GRU` on the cell's variables."""
    x = _to_vectors(cell, inputs)
    layer = _build_keras_layer(type(cell), cell.input_size, cell.hidden_size, cell.kernel.dtype.name)
    weights = [tf.convert_to_tensor(v) for v in (cell.kernel, kernel, cell.bias)]
    (outputs, *last), _ = layer.stateless_call(
        weights,
        layer.non_trainable_variables,
        tf.transpose(x, [1, 0, 2]),
        initial_state=list(state),
        mask=None if mask is None else tf.transpose(mask),
    )
    return tf.transpose(outputs, [1, 0, 2]), tuple(last)


@functools.lru_cache(maxsize=64)
def _build_keras_layer(cell_class: type[Cell], input_size: int, hidden_size: int, dtype: str) -> Any:
    """Builds a Keras layer; its own weights are never used, since each call passes it the cell's."""
    import keras  # slow to import, and only this backend needs it

    with tf.init_scope():
        settings = {"return_sequences": True, "return_state": True, "dtype": dtype}
        if cell_class.library_name == "rnn":
            layer = keras.layers.SimpleRNN(hidden_size, **settings)
        else:
            layer_class = keras.layers.LSTM if cell_class.library_name == "lstm" else keras.layers.GRU
            activation = _get_keras_activation(cell_class.gate.name)
            layer = layer_class(hidden_size, recurrent_activation=activation, **settings)
        layer.build((None, None, input_size))
    return layer


def _get_keras_activation(name: str) -> Any:
    """Returns Keras's name of a gate activation, or a function for the one that Keras no longer has."""
    import keras

    if name == "hard_sigmoid":
        return lambda a: keras.ops.clip(0.2 * a + 0.5, 0.0, 1.0)
    return {"sigmoid": "sigmoid", "hard_sigmoid_6": "hard_sigmoid"}[name]


# cuDNN

_CUDNN_MODES = {"rnn": "rnn_tanh", "lstm": "lstm", "gru": "gru"}
# CudnnRNNV2 tries cuDNN's algorithms, also the persistent one, and keeps the fastest; V3, which rows of different
# lengths need, has the standard one. They are not measured yet, hence False.
_TRIES_ALGORITHMS = False
# for each of cuDNN's gates in its order the index of ours
_CUDNN_GATES: dict[str, tuple[int, ...]] = {"rnn": (0,), "lstm": (0, 1, 2, 3), "gru": (1, 0, 2)}


def is_cudnn_available() -> bool:
    """Whether TensorFlow computes on an NVIDIA GPU, which cuDNN runs on."""
    return bool(tf.config.list_logical_devices("GPU")) and tf.test.is_built_with_cuda()


def run_cudnn(
    cell: Cell,
    inputs: SymbolInput | tf.Tensor,
    state: State,
    kernel: tf.Tensor,
    mask: tf.Tensor | None = None,
    *,
    is_training: bool = True,
    tries_algorithms: bool = _TRIES_ALGORITHMS,
) -> tuple[tf.Tensor, State]:
    """Runs a layer with cuDNN on the cell's variables, in one call; the gradients are cuDNN's own.

    Args:
        cell: the cell, like the following arguments as the module says.
        inputs: symbols, or vectors `[time, batch, input]`.
        state: the state before the first step.
        kernel: the recurrent kernel.
        mask: false for the steps to skip after those of a row; None: all rows have the same length.
        is_training: keep what the gradient needs.
        tries_algorithms: without a mask, let cuDNN run the fastest of its algorithms.
    """
    x, input_kernel = _make_cudnn_input(cell, inputs)
    time, batch, _ = x.shape
    is_lstm = cell.library_name == "lstm"
    arguments = {
        "input": x,
        "input_h": state[0][tf.newaxis],
        "input_c": state[1][tf.newaxis] if is_lstm else tf.zeros([], x.dtype),
        "params": flatten_weights(cell, kernel, input_kernel),
        "rnn_mode": _CUDNN_MODES[cell.library_name],
        "is_training": is_training,
    }
    from tfcharrnn import devices  # only cuDNN needs it

    if mask is None and tries_algorithms and not devices.is_deterministic():
        result = tf.raw_ops.CudnnRNNV2(**arguments)
    else:
        lengths = tf.fill([batch], time) if mask is None else tf.reduce_sum(tf.cast(mask, tf.int32), 0)
        result = tf.raw_ops.CudnnRNNV3(**arguments, sequence_lengths=lengths, time_major=True)
    last = (result.output_h[0], result.output_c[0]) if is_lstm else (result.output_h[0],)
    return result.output, last


def _make_cudnn_input(cell: Cell, inputs: SymbolInput | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the vectors that cuDNN reads, `[time, batch, input]`, and the kernel W that it multiplies them by.

    One-hot vectors of a large vocabulary would take more memory and time than their products with W. Then x is the row
    of W, looked up, and W the unit matrix, which gives the same x W.
    """
    kernel = tf.convert_to_tensor(cell.kernel)
    is_one_hot = isinstance(inputs, SymbolInput) and inputs.embedding is None
    if not is_one_hot or inputs.vocabulary_size <= kernel.shape[1]:
        return _to_vectors(cell, inputs), kernel
    rows = dataclasses.replace(inputs, embedding=kernel).to_vectors(kernel.dtype)
    return rows, tf.eye(kernel.shape[1], dtype=kernel.dtype)


def flatten_weights(cell: Cell, kernel: tf.Tensor, input_kernel: tf.Tensor) -> tf.Tensor:
    """Returns the weights of a cell, with these two kernels, as the one vector that cuDNN takes.

    It consists of the matrices, all those of the input before all those of the state, each `[hidden, input]` where
    ours are `[input, hidden]`; then the biases in the same order. The gates are in the order i, f, c, o as ours, but
    for the GRU in the order r, z, h (cuDNN developer guide, `cudnnGetRNNWeightParams`). cuDNN has two biases, b and b';
    for a cell with only one, the second is zero.

    Returns:
        A vector of `gates * hidden * (input + hidden + 2)` numbers.
    """
    order = _CUDNN_GATES[cell.library_name]
    parts = []
    for matrix in (input_kernel, kernel):
        gates = tf.split(tf.transpose(matrix), cell.num_gates, axis=0)
        parts += [tf.reshape(gates[index], [-1]) for index in order]
    second_bias = tf.zeros_like(cell.input_bias) if cell.recurrent_bias is None else cell.recurrent_bias
    for bias in (cell.input_bias, second_bias):
        gates = tf.split(bias, cell.num_gates)
        parts += [gates[index] for index in order]
    return tf.concat(parts, axis=0)


_BACKENDS = {
    "custom": Backend("custom", run_custom, run_custom, jit_compile=True),
    "keras": Backend("keras", run_keras, run_keras, jit_compile=False),
    "cudnn": Backend("cudnn", run_cudnn, functools.partial(run_cudnn, is_training=False), jit_compile=False),
}
