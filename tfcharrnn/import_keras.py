"""Turns a Keras character model into a run folder for `generate`, `evaluate`, and `train --init_from` to fine-tune.

python -m tfcharrnn.import_keras --model=model.h5 --characters=chars.json --run_dir=runs/imported

The model: one-hot characters or an Embedding, recurrent layers of one kind and size with Dropout around them, and a
Dense layer with softmax. What has been read is checked by running it twice, as the file says in NumPy, and as a model
of this library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import flags

from tfcharrnn import cli
from tfcharrnn.config import DataConfig, ModelConfig
from tfcharrnn.errors import ConfigError, UserError, short
from tfcharrnn.preparation import corpora
from tfcharrnn.serving import keras_reader
from tfcharrnn.serving.keras_reader import Array, KerasModel, Layer
from tfcharrnn.serving.run_writer import GATES, read_characters, reordered, symbol_order, write_run
from tfcharrnn.verification import numpy_reference

_FLAGS = flags.FLAGS
_CELLS = {"SimpleRNN": "rnn", "LSTM": "lstm", "GRU": "gru"}
_NAMES = ("kernel", "recurrent_kernel", "bias")
# Between the file's model and the imported one, both in float64.
_TOLERANCE = 1e-6
# The texts that are run to compare them.
_TEXTS, _TIME = 4, 40
# What a model of this kind reads where the file does not say.
_SEQ_LENGTH = 40


@dataclasses.dataclass(frozen=True)
class Imported:
    """A Keras model in this library's terms; its symbols still stand in Keras's order.

    Attributes:
        config: the network.
        variables: as `tfcharrnn.verification.numpy_reference.variables` names them.
        seq_length: characters that the model reads, or None where it does not say.
        notes: what of its training settings has no counterpart.
    """

    config: ModelConfig
    variables: dict[str, Array]
    seq_length: int | None
    notes: tuple[str, ...]

    @property
    def vocabulary_size(self) -> int:
        """Symbols."""
        return len(self.variables["output_bias"])


def convert(source: KerasModel) -> Imported:
    """Finds the network in a chain of layers.

    Raises:
        UserError: a layer, a setting or a shape that has no counterpart; the message names it.
    """
    try:
        return _convert(source)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None


def _convert(source: KerasModel) -> Imported:
    embedding, recurrent, dense = _parts(source)
    first = recurrent[0]
    cell, units = _CELLS[first.kind], _integer(first, "units")
    gate = _gate(source, first)
    variables: dict[str, Array] = {}
    symbols = _integer(dense, "units")
    size = symbols
    if embedding is not None:
        if embedding.settings.get("mask_zero", False):
            raise UserError(f"{embedding}: mask_zero=True is not supported")
        size = _integer(embedding, "output_dim")
        (variables["embedding"],) = _weights(embedding, (symbols, size))
    columns = GATES[cell] * units
    for index, layer in enumerate(recurrent):
        if layer.kind != first.kind or _integer(layer, "units") != units or _gate(source, layer) != gate:
            raise UserError(f"{layer}: is not of the kind, size and activations of {first}; all must be alike")
        _check_recurrent(source, layer, last=layer is recurrent[-1])
        bias = (2, columns) if cell == "gru" else (columns,)
        arrays = _weights(layer, (size, columns), (units, columns), bias)
        variables |= {f"cells/{index}/{name}": array for name, array in zip(_NAMES, arrays, strict=True)}
        size = units
    variables["output_kernel"], variables["output_bias"] = _weights(dense, (units, symbols), (symbols,))
    between, after, notes = _dropout(source, recurrent)
    config = ModelConfig(
        cell=cell,
        recurrent_activation=gate,
        hidden_size=units,
        num_layers=len(recurrent),
        embedding_size=0 if embedding is None else variables["embedding"].shape[1],
        dropout=between,
        output_dropout=after,
    )
    return Imported(config, variables, _input_length(source, embedding is None), tuple(notes))


def _parts(source: KerasModel) -> tuple[Layer | None, list[Layer], Layer]:
    """The Embedding, if there is one, the recurrent layers and the Dense layer, found in just this order."""
    order = ("InputLayer", "Embedding", "recurrent", "Dense", "Activation")
    found: dict[str, list[Layer]] = {kind: [] for kind in order}
    place = 0
    for layer in source.layers:
        if layer.kind == "Dropout":
            continue
        kind = "recurrent" if layer.kind in keras_reader.RECURRENT else layer.kind
        if order.index(kind) < place or (found[kind] and kind != "recurrent"):
            raise UserError(f"{layer}: stands where it is not supported; the order must be {', '.join(order)}")
        place = order.index(kind)
        found[kind].append(layer)
    for kind in ("recurrent", "Dense"):
        if not found[kind]:
            raise UserError(f"has no {kind} layer, so it is no character model of the kind that is supported")
    (dense,) = found["Dense"]
    ends = [dense, *found["Activation"]]
    activations = [_setting(layer, "activation", "linear") for layer in ends]
    if [name for name in activations if name != "linear"] not in (["softmax"], []):
        raise UserError(f"{ends[-1]}: activation={_cut(' and '.join(activations))} is not supported; one softmax is")
    return found["Embedding"][0] if found["Embedding"] else None, found["recurrent"], dense


def _check_recurrent(source: KerasModel, layer: Layer, *, last: bool) -> None:
    """Refuses what would make a recurrent layer another function than its cell."""
    if _setting(layer, "activation", "tanh") != "tanh":
        raise UserError(f"{layer}: activation={short(layer.settings['activation'])} is not supported; only tanh is")
    for name in ("go_backwards", "return_state", "time_major"):
        if layer.settings.get(name, False):
            raise UserError(f"{layer}: {name}=True is not supported")
    if layer.kind == "GRU" and not layer.settings.get("reset_after", source.release >= (3, 0)):
        raise UserError(f"{layer}: reset_after=False is not supported; only the other GRU is")
    if not last and not layer.settings.get("return_sequences", False):
        raise UserError(f"{layer}: return_sequences=False is supported only in the last recurrent layer")


def _gate(source: KerasModel, layer: Layer) -> str:
    """The activation of a layer's gates as `--recurrent_activation` takes it.

    Keras 3 gave the name hard_sigmoid to another function. Up to version 2.2 it was also the default, and files name it
    all the same.
    """
    if layer.kind == "SimpleRNN":
        return "sigmoid"
    if "recurrent_activation" not in layer.settings and source.version.startswith("2.2.4-tf"):
        raise UserError(f"{layer}: does not name its recurrent_activation, and this version had two defaults")
    name = _setting(layer, "recurrent_activation", "sigmoid" if source.release >= (2, 3) else "hard_sigmoid")
    if name == "hard_sigmoid":
        return "hard_sigmoid" if source.release < (3, 0) else "hard_sigmoid_6"
    if name != "sigmoid":
        raise UserError(f"{layer}: recurrent_activation={short(name)} is not supported; sigmoid and hard_sigmoid are")
    return "sigmoid"


def _weights(layer: Layer, *shapes: tuple[int, ...]) -> list[Array]:
    """A layer's arrays, which must be of these shapes; the last is the bias, zero if the layer has none."""
    arrays = list(layer.weights)
    if len(shapes) > 1 and not layer.settings.get("use_bias", True):
        arrays.append(np.zeros(shapes[-1], np.float32))
    got = [list(array.shape) for array in arrays]
    if got != [list(shape) for shape in shapes]:
        wanted = ", ".join(str(list(shape)) for shape in shapes)
        raise UserError(
            f"{layer}: its weights should be of shapes {wanted}, and are {_cut(str(got)[1:-1]) or 'missing'}"
        )
    return arrays


def _dropout(source: KerasModel, recurrent: list[Layer]) -> tuple[float, float, list[str]]:
    """The rates between the recurrent layers and after them, and notes on what training will not do as before."""
    rates: dict[int, list[float]] = {}  # by the number of recurrent layers before
    passed = 0
    for layer in source.layers:
        passed += layer.kind in keras_reader.RECURRENT
        if layer.kind == "Dropout":
            rate = layer.settings.get("rate", 0.0)
            if type(rate) not in (int, float) or not 0.0 <= rate < 1.0:
                raise UserError(f"{layer}: rate={short(rate)} is not supported; it must be from 0 to below 1")
            rates.setdefault(passed, []).append(float(rate))
    notes = []
    if any(len(some) > 1 for some in rates.values()):
        notes.append("of several Dropout layers in one place only the first is kept")
    if rates.get(0):
        notes.append("the Dropout layer before the recurrent ones is left out")
    between = [rates.get(place, [0.0])[0] for place in range(1, len(recurrent))]
    if len(set(between)) > 1:
        notes.append(f"one --dropout stands for the rates {', '.join(map(str, between))} between layers: the largest")
    for layer in recurrent:
        for name in ("dropout", "recurrent_dropout"):
            if layer.settings.get(name, 0.0):
                notes.append(f"{layer}: {name}={short(layer.settings[name])} is left out")
    return max(between, default=0.0), rates.get(len(recurrent), [0.0])[0], notes


def _input_length(source: KerasModel, one_hot: bool) -> int | None:
    """How many characters the model reads, from the shape that its first layer declares, or None."""
    settings = source.layers[0].settings
    shape = settings.get("batch_shape") or settings.get("batch_input_shape")
    dimensions = 3 if one_hot else 2
    if isinstance(shape, list) and len(shape) == dimensions and type(shape[1]) is int and shape[1] > 1:
        return shape[1]
    return None  # also for one character at a time, as a stateful model reads


def _setting(layer: Layer, name: str, default: str) -> str:
    """A setting that is a name; one that is something else is given as JSON has it, which is no known name."""
    value = layer.settings.get(name, default)
    return value if isinstance(value, str) else repr(value)


def _cut(text: str) -> str:
    """A text from the file, cut for a message."""
    return text if len(text) <= 200 else f"{text[:197]}..."


def _integer(layer: Layer, name: str) -> int:
    value = layer.settings.get(name)
    if type(value) is not int or not 1 <= value <= 65_536:
        raise UserError(f"{layer}: {name}={short(value)} is not supported; it must be from 1 to 65536")
    return value


def numpy_logits(source: KerasModel, ids: npt.NDArray[np.integer[Any]]) -> Array:
    """Runs the layers of a file as they stand in it, in NumPy and float64.

    Args:
        source: a model that `convert` took.
        ids: characters in Keras's order, `[batch, time]`.

    Returns:
        What goes into the softmax after each character, `[batch, time, vocabulary]`.
    """
    x: Array | None = None
    for layer in source.layers:
        weights = [array.astype(np.float64) for array in layer.weights]
        bias = bool(layer.settings.get("use_bias", True))
        if layer.kind == "Embedding":
            x = weights[0][ids]
        elif layer.kind in _CELLS:
            if x is None:
                x = np.eye(len(weights[0]))[ids]
            cell, units = _CELLS[layer.kind], weights[1].shape[0]
            columns = weights[1].shape[1]
            named = dict(zip(_NAMES, weights, strict=bias))
            named.setdefault("bias", np.zeros((2, columns) if cell == "gru" else columns))
            state = (np.zeros((len(ids), units)),) * (2 if cell == "lstm" else 1)
            outputs, _, _ = numpy_reference.layer_forward(
                cell, np.swapaxes(x, 0, 1), state, named, gate=_gate(source, layer)
            )
            x = np.swapaxes(outputs, 0, 1)
        elif layer.kind == "Dense":
            assert x is not None
            x = x @ weights[0] + (weights[1] if bias else 0.0)
    assert x is not None
    return x


def largest_difference(source: KerasModel, imported: Imported, order: Sequence[int]) -> float:
    """Runs random texts through the file's layers in NumPy and through this library's model, both in float64.

    Args:
        source: the file.
        imported: made of it.
        order: for each id of the run its id in Keras.

    Returns:
        The largest difference between two logits.
    """
    import tensorflow as tf

    from tfcharrnn.model.char_rnn import CharRNN

    model = CharRNN(imported.config, len(order), dtype=tf.float64)
    arrays = reordered(imported.variables, order)
    for name, variable in numpy_reference.variables(model).items():
        variable.assign(arrays[name])
    ids = np.random.default_rng(0).integers(0, len(order), (_TEXTS, _TIME))
    logits, _ = model(tf.constant(np.argsort(order)[ids], tf.int32))
    return float(np.abs(logits.numpy() - numpy_logits(source, ids)[..., list(order)]).max())


def data_config(imported: Imported, characters: Sequence[str], *, seq_length: int = 0, stride: int = 3) -> DataConfig:
    """How a text is to be read for an imported model.

    Args:
        imported: the model.
        characters: those it knows; if there are no capitals, a text is turned to lower case.
        seq_length: characters that a prediction sees; 0: as many as the model says, or 40.
        stride: from one training window to the next, for fine-tuning.
    """
    return DataConfig(
        layout="windows",
        seq_length=seq_length or imported.seq_length or _SEQ_LENGTH,
        stride=stride,
        lowercase=all(character == character.lower() for character in characters),
    )


def main() -> None:
    """Reads the flags, imports the model, checks it and writes the run folder."""
    for name in ("model", "run_dir"):
        if not _FLAGS[name].value:
            raise ConfigError(f"--{name} is missing")
    if bool(_FLAGS.characters) == bool(_FLAGS.text):
        raise ConfigError("--characters or --text must name the model's characters, one of the two")
    DataConfig(layout="windows", seq_length=_FLAGS.seq_length or _SEQ_LENGTH, stride=_FLAGS.stride)  # checks them
    if Path(_FLAGS.run_dir).exists():
        raise UserError(f"{_FLAGS.run_dir}: exists already; choose another --run_dir")
    source = keras_reader.read_guarded(_FLAGS.model)  # no thread runs yet that a fork could harm
    imported = convert(source)
    if _FLAGS.characters:
        characters = read_characters(Path(_FLAGS.characters))
    else:
        text = corpora.load(DataConfig(input=(_FLAGS.text,), lowercase=_FLAGS.lowercase, encoding=_FLAGS.encoding)).text
        characters = sorted(set(text))
    if len(characters) != imported.vocabulary_size:
        raise UserError(
            f"{_FLAGS.characters or _FLAGS.text}: gives {len(characters)} characters, and {source.path} has "
            f"{imported.vocabulary_size}; give the list that it was trained with"
        )
    cli.load_tensorflow()
    for note in imported.notes:
        cli.say(f"note       {note}")
    if _FLAGS.verify:
        difference = largest_difference(source, imported, symbol_order(characters))
        if not difference <= _TOLERANCE:
            raise UserError(f"{source.path}: imported, its logits differ by {difference:.1e} from the file's layers")
        cli.say(f"checked    logits differ by at most {difference:.1e} from those of the file in NumPy")
    data = data_config(imported, characters, seq_length=_FLAGS.seq_length, stride=_FLAGS.stride)
    write_run(imported.config, imported.variables, characters, data, Path(_FLAGS.run_dir))
    print(_FLAGS.run_dir)


if __name__ == "__main__":
    flags.DEFINE_string("model", "", "The model file: .h5 of Keras 2 or 3, or .keras.")
    flags.DEFINE_string("characters", "", "The model's characters: a JSON list in id order, or an object of their ids.")
    flags.DEFINE_string("text", "", "Instead: the text it was trained on, whose sorted characters are its symbols.")
    flags.DEFINE_bool("lowercase", True, "Turn --text to lower case first.")
    flags.DEFINE_string("encoding", "utf-8", "Encoding of --text.")
    flags.DEFINE_string("run_dir", "", "The run folder to make.")
    flags.DEFINE_integer("seq_length", 0, "Characters that a prediction sees; 0: as many as the model says, or 40.")
    flags.DEFINE_integer("stride", 3, "For fine-tuning: characters from one window to the next.")
    flags.DEFINE_bool("verify", True, "Check the imported model against the file's layers in NumPy.")
    cli.run(main)
