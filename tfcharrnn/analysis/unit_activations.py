"""Records what a model does with a text: the activation of each unit at each character, and its predictions."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.analysis import text_features
from tfcharrnn.analysis.text_features import Feature
from tfcharrnn.data.chunking import Part
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.inference import activations
from tfcharrnn.inference.activations import Floats, LayerStates
from tfcharrnn.layouts import END, START
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.symbols import group_characters

# number of characters whose logits are computed at once
_LOGITS_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class LayerActivations:
    """One state tensor of a layer at each character.

    Attributes:
        layer: index of the layer.
        part: `h`, the output; `c`, the memory, such as that of an LSTM; or `s2`, `s3`, ... for what else a cell keeps.
        values: activations after reading each character, `[time, hidden]`; NaN where the model does not read it.
    """

    layer: int
    part: str
    values: Floats


@dataclasses.dataclass(frozen=True)
class Trace:
    """Activations and predictions of a model at each symbol of a text.

    Attributes:
        symbols: the characters, and `</S>` after each line in the layout `lines`, `[time]`.
        layers: the activations.
        losses: negative log-probability of each symbol in nats, `[time]`; NaN where it is not predicted.
        guesses: ids of the most probable symbols at each position, best first, `[time, guesses]`; -1 where there is no
            prediction.
        probabilities: their probabilities, `[time, guesses]`.
        of_bytes: whether the characters are bytes.
    """

    symbols: tuple[str, ...]
    layers: tuple[LayerActivations, ...]
    losses: Floats
    guesses: npt.NDArray[np.int32]
    probabilities: Floats
    of_bytes: bool = False

    @property
    def text(self) -> str:
        """The text with one character for each symbol: a newline for the end of a line."""
        return "".join("\n" if symbol == END else symbol for symbol in self.symbols)

    def truncate(self, length: int) -> Trace:
        """Returns the trace of the first `length` symbols."""
        layers = tuple(dataclasses.replace(layer, values=layer.values[:length]) for layer in self.layers)
        return Trace(
            self.symbols[:length],
            layers,
            self.losses[:length],
            self.guesses[:length],
            self.probabilities[:length],
            self.of_bytes,
        )


@dataclasses.dataclass(frozen=True)
class _InputSequence:
    """The input of the model, and where the symbols of the text are read and predicted.

    Attributes:
        ids: input id of each step, `[steps]`.
        resets: whether the state is reset to the initial state before a step, bool `[steps]`.
        shown: ids of the symbols of the text, `[time]`.
        read_steps: the step that reads each symbol, `[time]`; -1: none.
        prediction_steps: the step that predicts each symbol, `[time]`; -1: none.
    """

    ids: npt.NDArray[np.int32]
    resets: npt.NDArray[np.bool_]
    shown: npt.NDArray[np.int32]
    read_steps: npt.NDArray[np.int64]
    prediction_steps: npt.NDArray[np.int64]


def trace_text(
    model: CharRNN, vocabulary: Vocabulary, part: Part, *, num_guesses: int = 5, name: str = "text"
) -> Trace:
    """Runs a model over a text in the way of its layout.

    Each line is read from the initial state and starts with `<S>`. Other text is read in one piece from the initial
    state, after an `<S>` if the vocabulary has one.

    Args:
        model: the model.
        vocabulary: its symbols.
        part: the text, or its lines in the layout `lines`.
        num_guesses: number of most probable symbols to record.
        name: name of the text in errors.

    Raises:
        UserError: the text has characters outside the vocabulary.
    """
    inputs = _arrange_inputs(part, vocabulary, name)
    states = activations.compute_states(model, inputs.ids, inputs.resets) if len(inputs.ids) else _make_empty(model)
    num_guesses = min(num_guesses, len(vocabulary))
    losses, guesses, probabilities = _compute_predictions(model, states, inputs, num_guesses)
    layers = tuple(
        LayerActivations(index, "hc"[part : part + 1] or f"s{part}", _select_steps(values, inputs.read_steps))
        for index, state in enumerate(states)
        for part, values in enumerate(state)
    )
    symbols = tuple(vocabulary.symbols[i] for i in inputs.shown)
    return Trace(symbols, layers, losses, guesses, probabilities, vocabulary.of_bytes)


def correlate(values: npt.NDArray[np.floating], targets: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Computes Pearson's r of each unit with each feature; 0 if one of them is constant.

    Args:
        values: activations, `[time, hidden]`; rows with NaN are ignored.
        targets: features, `[features, time]`.

    Returns:
        `[features, hidden]`.
    """
    is_finite = np.isfinite(values).all(axis=1)
    x, y = values[is_finite].astype(np.float64), targets[:, is_finite]
    if not len(x):
        return np.zeros((len(targets), values.shape[1]))
    x -= x.mean(axis=0)
    y = y - y.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(y, axis=1)[:, np.newaxis] * np.linalg.norm(x, axis=0)
    return np.divide(y @ x, norms, out=np.zeros_like(norms), where=norms > 1e-9)


def correlate_with_features(trace: Trace) -> tuple[tuple[Feature, ...], list[npt.NDArray[np.float64]]]:
    """Computes how closely each unit tracks each feature of the text; a byte has the features of its character.

    Returns:
        The features that occur often enough, and for each of `trace.layers` the correlations, `[features, hidden]`.
    """
    text, sizes = group_characters(trace.text, trace.of_bytes)
    values = text_features.measure_features(text)
    targets = np.repeat(np.array(list(values.values())).reshape(len(values), len(text)), sizes, axis=1)
    return tuple(values), [correlate(layer.values, targets) for layer in trace.layers]


def _arrange_inputs(part: Part, vocabulary: Vocabulary, name: str) -> _InputSequence:
    if isinstance(part, list):
        return _arrange_lines(part, vocabulary, name)
    ids = vocabulary.encode(part, name)
    num_starts = int(START in vocabulary.symbols[: vocabulary.num_special])
    inputs = np.concatenate([np.full(num_starts, vocabulary.start_id if num_starts else 0, np.int32), ids])
    read_steps = np.arange(len(ids), dtype=np.int64) + num_starts
    return _InputSequence(inputs, np.arange(len(inputs)) == 0, ids, read_steps, read_steps - 1)


def _arrange_lines(lines: list[str], vocabulary: Vocabulary, name: str) -> _InputSequence:
    """Arranges lines one after another; the `</S>` of each is shown and predicted, but never read."""
    encoded = [vocabulary.encode(line, name) for line in lines]
    ids, resets, shown, read_steps, prediction_steps = (
        [np.zeros(0, kind)] for kind in (np.int32, bool, np.int32, int, int)
    )
    step = 0
    for line in encoded:
        steps = step + np.arange(len(line) + 1)
        ids.append(np.concatenate([[vocabulary.start_id], line]))
        resets.append(steps == step)
        shown.append(np.concatenate([line, [vocabulary.end_id]]))
        read_steps.append(np.concatenate([steps[1:], [-1]]))
        prediction_steps.append(steps)
        step += len(steps)
    return _InputSequence(
        np.concatenate(ids).astype(np.int32),
        np.concatenate(resets),
        np.concatenate(shown).astype(np.int32),
        np.concatenate(read_steps),
        np.concatenate(prediction_steps),
    )


def _make_empty(model: CharRNN) -> LayerStates:
    """Returns the states of a text without a symbol."""
    return tuple((np.zeros((0, cell.hidden_size), np.float32),) * cell.num_state_tensors for cell in model.cells)


def _compute_predictions(
    model: CharRNN, states: LayerStates, inputs: _InputSequence, num_guesses: int
) -> tuple[Floats, npt.NDArray[np.int32], Floats]:
    """Computes predictions from the states of all layers.

    Returns:
        Losses, `[time]`; guesses and their probabilities, `[time, num_guesses]`.
    """
    losses = np.full(len(inputs.shown), np.nan, np.float32)
    guesses = np.full((len(losses), num_guesses), -1, np.int32)
    probabilities = np.zeros(guesses.shape, np.float32)
    for start in range(0, len(losses), _LOGITS_BLOCK):
        block = start + np.flatnonzero(inputs.prediction_steps[start : start + _LOGITS_BLOCK] >= 0)
        if not len(block):
            continue
        steps = inputs.prediction_steps[block]
        logits = activations.compute_logits(model, [[values[steps] for values in state] for state in states])
        log_probabilities = tf.nn.log_softmax(tf.cast(logits, tf.float64))
        losses[block] = -tf.gather(log_probabilities, inputs.shown[block], batch_dims=1).numpy()
        best, guesses[block] = (array.numpy() for array in tf.math.top_k(log_probabilities, num_guesses))
        probabilities[block] = np.exp(best)
    return losses, guesses, probabilities


def _select_steps(values: Floats, steps: npt.NDArray[np.int64]) -> Floats:
    """Selects the rows of some steps; NaN for step -1."""
    if not len(steps):
        return values[:0]
    return np.where((steps >= 0)[:, np.newaxis], values[steps], np.float32("nan"))
