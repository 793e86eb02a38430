"""Converts the layers of a Keras model file into a network of this library."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.errors import UserError, shorten
from tfcharrnn.serving import keras_reader
from tfcharrnn.serving.keras_reader import KerasFile, KerasLayer
from tfcharrnn.serving.run_writer import CELL_ARRAYS, NUM_GATES, reorder_symbols
from tfcharrnn.untrusted_files import Array
from tfcharrnn.verification import numpy_reference

CELL_OF_LAYER = {"SimpleRNN": "rnn", "LSTM": "lstm", "GRU": "gru"}
# Characters that a prediction sees, if the file does not say.
DEFAULT_SEQ_LENGTH = 40
# as Keras's `fit` trains, for runs that start with an imported model
TRAINING = TrainingConfig(clip_norm=0.0, drop_remainder=False)
# Size of the random batch on which the file and the imported model are compared, and the largest difference allowed
# between their logits in float64.
_BATCH, _TIME = 4, 40
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class ImportedModel:
    """A Keras model as a network of this library; its symbols are still in Keras's order.

    Attributes:
        config: the network.
        variables: by their names in `tfcharrnn.verification.numpy_reference.variables`.
        seq_length: characters that a prediction sees, or None if the file does not say.
        notes: training settings that are ignored or changed.
    """

    config: ModelConfig
    variables: dict[str, Array]
    seq_length: int | None
    notes: tuple[str, ...]

    @property
    def vocabulary_size(self) -> int:
        """Number of symbols."""
        return len(self.variables["output_bias"])


class _Parts(NamedTuple):
    """The layers of a character model that have weights."""

    embedding: KerasLayer | None
    recurrent: list[KerasLayer]
    dense: KerasLayer


class _Dropout(NamedTuple):
    """Dropout rates between the recurrent layers and after the last, and notes on what differs in Keras."""

    between: float
    after: float
    notes: tuple[str, ...]


def convert_model(source: KerasFile) -> ImportedModel:
    """Converts a chain of Keras layers.

    Raises:
        UserError: a layer, setting or shape is not supported; the message names it.
    """
    try:
        return _convert_layers(source)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None


def _convert_layers(source: KerasFile) -> ImportedModel:
    embedding, recurrent, dense = _find_parts(source)
    first = recurrent[0]
    cell, units = CELL_OF_LAYER[first.kind], _get_size(first, "units")
    gate = _find_gate_activation(source, first)
    variables: dict[str, Array] = {}
    symbols = input_size = _get_size(dense, "units")
    if embedding is not None:
        if embedding.settings.get("mask_zero", False):
            raise UserError(f"{embedding}: mask_zero=True is not supported")
        input_size = _get_size(embedding, "output_dim")
        (variables["embedding"],) = _get_weights(embedding, (symbols, input_size))
    columns = NUM_GATES[cell] * units
    for index, layer in enumerate(recurrent):
        gates_differ = _find_gate_activation(source, layer) != gate
        if layer.kind != first.kind or _get_size(layer, "units") != units or gates_differ:
            raise UserError(f"{layer}: its kind, size or activations differ from those of {first}; they must be equal")
        _check_recurrent(source, layer, is_last=layer is recurrent[-1])
        bias = (2, columns) if cell == "gru" else (columns,)
        arrays = _get_weights(layer, (input_size, columns), (units, columns), bias)
        variables |= {f"cells/{index}/{name}": array for name, array in zip(CELL_ARRAYS, arrays, strict=True)}
        input_size = units
    variables["output_kernel"], variables["output_bias"] = _get_weights(dense, (units, symbols), (symbols,))
    dropout = _find_dropout(source, recurrent)
    config = ModelConfig(
        cell=cell,
        recurrent_activation=gate,
        hidden_size=units,
        num_layers=len(recurrent),
        embedding_size=0 if embedding is None else variables["embedding"].shape[1],
        dropout=dropout.between,
        output_dropout=dropout.after,
    )
    return ImportedModel(config, variables, _find_input_length(source, embedding is None), dropout.notes)


def _find_parts(source: KerasFile) -> _Parts:
    """Finds the Embedding if there is one, the recurrent layers and the Dense layer, and checks their order."""
    order = ("InputLayer", "Embedding", "recurrent", "Dense", "Activation")
    layers: dict[str, list[KerasLayer]] = {kind: [] for kind in order}
    position = 0
    for layer in source.layers:
        if layer.kind == "Dropout":
            continue
        kind = "recurrent" if layer.kind in keras_reader.RECURRENT else layer.kind
        if order.index(kind) < position or (layers[kind] and kind != "recurrent"):
            raise UserError(f"{layer}: is out of place; the order must be {', '.join(order)}")
        position = order.index(kind)
        layers[kind].append(layer)
    for kind in ("recurrent", "Dense"):
        if not layers[kind]:
            raise UserError(f"has no {kind} layer; only character models with recurrent and Dense layers are supported")
    (dense,) = layers["Dense"]
    last = [dense, *layers["Activation"]]
    activations = [_get_name(layer, "activation", "linear") for layer in last]
    if [name for name in activations if name != "linear"] not in (["softmax"], []):
        names = _shorten(" and ".join(activations))
        raise UserError(f"{last[-1]}: activation={names} is not supported; only one softmax is")
    return _Parts(layers["Embedding"][0] if layers["Embedding"] else None, layers["recurrent"], dense)


def _check_recurrent(source: KerasFile, layer: KerasLayer, *, is_last: bool) -> None:
    """Checks that a recurrent layer computes the same function as its cell here."""
    if _get_name(layer, "activation", "tanh") != "tanh":
        raise UserError(f"{layer}: activation={shorten(layer.settings['activation'])} is not supported; only tanh is")
    for name in ("go_backwards", "return_state", "time_major"):
        if layer.settings.get(name, False):
            raise UserError(f"{layer}: {name}=True is not supported")
    if layer.kind == "GRU" and not layer.settings.get("reset_after", source.release >= (3, 0)):
        raise UserError(f"{layer}: reset_after=False is not supported; only reset_after=True is")
    if not is_last and not layer.settings.get("return_sequences", False):
        raise UserError(f"{layer}: return_sequences=False is supported only in the last recurrent layer")


def _find_gate_activation(source: KerasFile, layer: KerasLayer) -> str:
    """Returns the activation of a layer's gates as a value of `--recurrent_activation`.

    Keras 3 gave the name hard_sigmoid to another function. Before 2.3 it was also the default, which files still name.
    """
    if layer.kind == "SimpleRNN":
        return "sigmoid"
    if "recurrent_activation" not in layer.settings and source.version.startswith("2.2.4-tf"):
        raise UserError(f"{layer}: does not name its recurrent_activation, and this version of Keras had two defaults")
    name = _get_name(layer, "recurrent_activation", "sigmoid" if source.release >= (2, 3) else "hard_sigmoid")
    if name == "hard_sigmoid":
        return "hard_sigmoid" if source.release < (3, 0) else "hard_sigmoid_6"
    if name != "sigmoid":
        raise UserError(
            f"{layer}: recurrent_activation={shorten(name)} is not supported; only sigmoid and hard_sigmoid are"
        )
    return "sigmoid"


def _get_weights(layer: KerasLayer, *shapes: tuple[int, ...]) -> list[Array]:
    """Returns a layer's arrays after checking their shapes; the last is the bias, zero if the layer has none."""
    arrays = list(layer.weights)
    if len(shapes) > 1 and not layer.settings.get("use_bias", True):
        arrays.append(np.zeros(shapes[-1], np.float32))
    actual = [list(array.shape) for array in arrays]
    if actual != [list(shape) for shape in shapes]:
        expected = ", ".join(str(list(shape)) for shape in shapes)
        raise UserError(
            f"{layer}: its weights should have the shapes {expected}, but are "
            f"{_shorten(str(actual)[1:-1]) or 'missing'}; the file is damaged or of another model"
        )
    return arrays


def _find_dropout(source: KerasFile, recurrent: list[KerasLayer]) -> _Dropout:
    rates: dict[int, list[float]] = {}  # by the number of recurrent layers before
    layers_before = 0
    for layer in source.layers:
        layers_before += layer.kind in keras_reader.RECURRENT
        if layer.kind == "Dropout":
            rate = layer.settings.get("rate", 0.0)
            if type(rate) not in (int, float) or not 0.0 <= rate < 1.0:
                raise UserError(f"{layer}: rate={shorten(rate)} is not supported; it must be from 0 to below 1")
            rates.setdefault(layers_before, []).append(float(rate))
    notes = []
    if any(len(same_place) > 1 for same_place in rates.values()):
        notes.append("of several consecutive Dropout layers, only the first is used")
    if rates.get(0):
        notes.append("the Dropout layer before the recurrent layers is ignored")
    between = [rates.get(index, [0.0])[0] for index in range(1, len(recurrent))]
    if len(set(between)) > 1:
        notes.append(f"--dropout is the largest of the rates between layers, {', '.join(map(str, between))}")
    for layer in recurrent:
        for name in ("dropout", "recurrent_dropout"):
            if layer.settings.get(name, 0.0):
                notes.append(f"{layer}: {name}={shorten(layer.settings[name])} is ignored")
    return _Dropout(max(between, default=0.0), rates.get(len(recurrent), [0.0])[0], tuple(notes))


def _find_input_length(source: KerasFile, is_one_hot: bool) -> int | None:
    """Returns the number of characters the model reads, from its declared input shape, or None."""
    settings = source.layers[0].settings
    shape = settings.get("batch_shape") or settings.get("batch_input_shape")
    dimensions = 3 if is_one_hot else 2
    if isinstance(shape, list) and len(shape) == dimensions and type(shape[1]) is int and shape[1] > 1:
        return shape[1]
    return None  # a length of 1 is that of a stateful model, which reads any number


def _get_name(layer: KerasLayer, name: str, default: str) -> str:
    """Returns a setting that should be a name; anything else as its JSON value, which equals no known name."""
    value = layer.settings.get(name, default)
    return value if isinstance(value, str) else repr(value)


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def _get_size(layer: KerasLayer, name: str) -> int:
    value = layer.settings.get(name)
    if type(value) is not int or not 1 <= value <= 65_536:
        raise UserError(f"{layer}: {name}={shorten(value)} is not supported; it must be from 1 to 65536")
    return value


def compute_logits(source: KerasFile, ids: npt.NDArray[np.integer[Any]]) -> Array:
    """Runs the layers of a file in NumPy and float64.

    Args:
        source: a file that `convert_model` supports.
        ids: symbols in Keras's order, `[batch, time]`.

    Returns:
        The input of the softmax after each symbol, `[batch, time, vocabulary]`.
    """
    x: Array | None = None
    for layer in source.layers:
        weights = [array.astype(np.float64) for array in layer.weights]
        has_bias = bool(layer.settings.get("use_bias", True))
        if layer.kind == "Embedding":
            x = weights[0][ids]
        elif layer.kind in CELL_OF_LAYER:
            if x is None:
                x = np.eye(len(weights[0]))[ids]
            cell = CELL_OF_LAYER[layer.kind]
            units, columns = weights[1].shape
            arrays = dict(zip(CELL_ARRAYS, weights, strict=has_bias))
            arrays.setdefault("bias", np.zeros((2, columns) if cell == "gru" else columns))
            state = (np.zeros((len(ids), units)),) * (2 if cell == "lstm" else 1)
            outputs, _, _ = numpy_reference.layer_forward(
                cell, np.swapaxes(x, 0, 1), state, arrays, gate=_find_gate_activation(source, layer)
            )
            x = np.swapaxes(outputs, 0, 1)
        elif layer.kind == "Dense":
            assert x is not None
            x = x @ weights[0] + (weights[1] if has_bias else 0.0)
    assert x is not None
    return x


def find_largest_difference(source: KerasFile, imported: ImportedModel, order: Sequence[int]) -> float:
    """Compares the file's layers, run in NumPy, with the imported model, both in float64 on random symbols.

    Args:
        source: the file.
        imported: its conversion.
        order: for each id of the run, the id in Keras.

    Returns:
        The largest difference between two logits.
    """
    import tensorflow as tf

    from tfcharrnn.model.char_rnn import CharRNN

    model = CharRNN(imported.config, len(order), dtype=tf.float64)
    arrays = reorder_symbols(imported.variables, order)
    for name, variable in numpy_reference.variables(model).items():
        variable.assign(arrays[name])
    ids = np.random.default_rng(0).integers(0, len(order), (_BATCH, _TIME))
    logits, _ = model(tf.constant(np.argsort(order)[ids], tf.int32))
    return float(np.abs(logits.numpy() - compute_logits(source, ids)[..., list(order)]).max())


def check_logits(source: KerasFile, imported: ImportedModel, order: Sequence[int]) -> float:
    """Checks that an imported model computes the file's logits.

    Returns:
        The largest difference, as `find_largest_difference` computes it.

    Raises:
        UserError: the difference is larger than rounding explains.
    """
    difference = find_largest_difference(source, imported, order)
    if not difference <= _TOLERANCE:
        raise UserError(
            f"{source.path}: the imported model's logits differ from the file's by {difference:.1e}; "
            "report this as a bug"
        )
    return difference


def make_data_config(
    imported: ImportedModel, characters: Sequence[str], *, seq_length: int = 0, stride: int = 3
) -> DataConfig:
    """Chooses how texts are read for an imported model.

    Args:
        imported: the model.
        characters: its symbols; if none is a capital, texts are converted to lower case.
        seq_length: characters that a prediction sees; 0: as the model says, or 40.
        stride: characters from one training window to the next, for fine-tuning.
    """
    return DataConfig(
        layout="windows",
        seq_length=seq_length or imported.seq_length or DEFAULT_SEQ_LENGTH,
        stride=stride,
        lowercase=all(character == character.lower() for character in characters),
        val_fraction=0.0,
    )
