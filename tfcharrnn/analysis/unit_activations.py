"""What a model does with a text: the activation of every unit at every character, and what it expected there."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.analysis import text_features
from tfcharrnn.analysis.text_features import Feature
from tfcharrnn.data.chunking import Part
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.layouts import END, START
from tfcharrnn.model import recurrence
from tfcharrnn.model.cells import State
from tfcharrnn.model.char_rnn import CharRNN

Floats = npt.NDArray[np.float32]

# characters whose logits are in memory together
_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Plane:
    """One kind of activation of one layer's units.

    Attributes:
        layer: which layer, from 0.
        part: `h`, the output; or `c`, an LSTM's memory.
        values: after reading each character, `[time, hidden]`; NaN where the model does not read on.
    """

    layer: int
    part: str
    values: Floats


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text as a model read it.

    Attributes:
        symbols: the characters, and for lines the `</S>` after each, `[time]`.
        planes: the activations.
        losses: -log of the probability that each symbol had, in nats, `[time]`; NaN where it was not predicted.
        guesses: the likeliest symbols in its place, best first, `[time, guesses]`; -1 where it was not predicted.
        probabilities: theirs, `[time, guesses]`.
    """

    symbols: tuple[str, ...]
    planes: tuple[Plane, ...]
    losses: Floats
    guesses: npt.NDArray[np.int32]
    probabilities: Floats

    @property
    def text(self) -> str:
        """One character for each symbol: the end of a line is a newline."""
        return "".join("\n" if symbol == END else symbol for symbol in self.symbols)

    def first(self, count: int) -> Reading:
        """The beginning of it."""
        planes = tuple(dataclasses.replace(plane, values=plane.values[:count]) for plane in self.planes)
        return Reading(
            self.symbols[:count], planes, self.losses[:count], self.guesses[:count], self.probabilities[:count]
        )


@dataclasses.dataclass(frozen=True)
class _Order:
    """What a model reads, and where the symbols that are shown stand in it.

    Attributes:
        ids: what is read, one after another, `[steps]`.
        begins: where it begins anew, from the initial state, bool `[steps]`.
        shown: the ids of the symbols that are shown, `[time]`.
        read: the step that reads each of them; -1: none.
        predicted: the step after which each is predicted; -1: none.
    """

    ids: npt.NDArray[np.int32]
    begins: npt.NDArray[np.bool_]
    shown: npt.NDArray[np.int32]
    read: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]


def read(model: CharRNN, vocabulary: Vocabulary, part: Part, *, num_guesses: int = 5, name: str = "text") -> Reading:
    """Reads a text as the model's layout has it.

    Lines are read each from the initial state, `<S>` first. Any other text is read on and on from the initial state,
    with `<S>` before it if the model has that.

    Args:
        model: the model.
        vocabulary: its symbols.
        part: the text; for a layout of lines its lines.
        num_guesses: how many of the likeliest symbols to keep.
        name: of the text, for errors.

    Raises:
        UserError: characters outside the vocabulary.
    """
    order = _order(part, vocabulary, name)
    states = _run(model, order) if len(order.ids) else _nothing(model)
    num_guesses = min(num_guesses, len(vocabulary))
    losses, guesses, probabilities = _predictions(model, states[-1][0], order, num_guesses)
    planes = tuple(
        Plane(layer, part_name, _where(order.read, values))
        for layer, state in enumerate(states)
        for part_name, values in zip("hc", state, strict=False)
    )
    return Reading(tuple(vocabulary.symbols[i] for i in order.shown), planes, losses, guesses, probabilities)


def correlations(values: npt.NDArray[np.floating], targets: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pearson's r of every unit with every feature; 0 where one of them never changes.

    Args:
        values: activations, `[time, hidden]`; times with NaN are left out.
        targets: the features, `[features, time]`.

    Returns:
        `[features, hidden]`.
    """
    real = np.isfinite(values).all(axis=1)
    x, y = values[real].astype(np.float64), targets[:, real]
    if not len(x):
        return np.zeros((len(targets), values.shape[1]))
    x -= x.mean(axis=0)
    y = y - y.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(y, axis=1)[:, np.newaxis] * np.linalg.norm(x, axis=0)
    return np.divide(y @ x, norms, out=np.zeros_like(norms), where=norms > 1e-9)


def interpret(reading: Reading) -> tuple[tuple[Feature, ...], list[npt.NDArray[np.float64]]]:
    """How far each unit tracks each feature of the text.

    Returns:
        The features that the text has, and for each plane the correlations, `[features, hidden]`.
    """
    found = text_features.measured(reading.text)
    targets = np.array(list(found.values())).reshape(len(found), len(reading.symbols))
    return tuple(found), [correlations(plane.values, targets) for plane in reading.planes]


def _order(part: Part, vocabulary: Vocabulary, name: str) -> _Order:
    if isinstance(part, list):
        return _order_of_lines(part, vocabulary, name)
    ids = vocabulary.encode(part, name)
    starts = int(START in vocabulary.symbols[: vocabulary.num_special])
    given = np.concatenate([np.full(starts, vocabulary.start_id if starts else 0, np.int32), ids])
    read_at = np.arange(len(ids), dtype=np.int64) + starts
    return _Order(given, np.arange(len(given)) == 0, ids, read_at, read_at - 1)


def _order_of_lines(lines: list[str], vocabulary: Vocabulary, name: str) -> _Order:
    """Each line's `</S>` is shown and predicted, but never read."""
    encoded = [vocabulary.encode(line, name) for line in lines]
    ids, begins, shown, read_at, predicted = ([np.zeros(0, kind)] for kind in (np.int32, bool, np.int32, int, int))
    step = 0
    for line in encoded:
        steps = step + np.arange(len(line) + 1)
        ids.append(np.concatenate([[vocabulary.start_id], line]))
        begins.append(steps == step)
        shown.append(np.concatenate([line, [vocabulary.end_id]]))
        read_at.append(np.concatenate([steps[1:], [-1]]))
        predicted.append(steps)
        step += len(steps)
    return _Order(
        np.concatenate(ids).astype(np.int32),
        np.concatenate(begins),
        np.concatenate(shown).astype(np.int32),
        np.concatenate(read_at),
        np.concatenate(predicted),
    )


def _run(model: CharRNN, order: _Order) -> list[list[Floats]]:
    """The state after each step: for each layer its tensors, `[steps, hidden]`."""
    ends = list(itertools.accumulate(cell.state_count for cell in model.cells))

    def unflatten(flat: State) -> tuple[State, ...]:
        return tuple(flat[end - cell.state_count : end] for cell, end in zip(model.cells, ends, strict=True))

    @tf.function
    def run(ids: tf.Tensor, begins: tf.Tensor) -> State:
        advance, _ = model.stepper()
        initial = tuple(tf.nest.flatten(model.initial_state(1)))

        def step(t: tf.Tensor, carry: State) -> tuple[State, State]:
            before = tuple(tf.where(begins[t], *pair) for pair in zip(initial, carry, strict=True))
            after = tuple(tf.nest.flatten(advance(ids[t][tf.newaxis], unflatten(before))))
            return after, after

        return recurrence.scan(step, initial, len(order.ids), [value.shape for value in initial])[1]

    flat = run(tf.constant(order.ids), tf.constant(order.begins))
    return [[value.numpy()[:, 0] for value in state] for state in unflatten(flat)]


def _nothing(model: CharRNN) -> list[list[Floats]]:
    return [[np.zeros((0, cell.hidden_size), np.float32)] * cell.state_count for cell in model.cells]


def _predictions(
    model: CharRNN, outputs: Floats, order: _Order, num_guesses: int
) -> tuple[Floats, npt.NDArray[np.int32], Floats]:
    """Losses `[time]`, guesses and their probabilities `[time, num_guesses]`, from the last layer's outputs."""
    _, logits = model.stepper()
    losses = np.full(len(order.shown), np.nan, np.float32)
    guesses = np.full((len(losses), num_guesses), -1, np.int32)
    probabilities = np.zeros(guesses.shape, np.float32)
    for start in range(0, len(losses), _BLOCK):
        block = start + np.flatnonzero(order.predicted[start : start + _BLOCK] >= 0)
        if not len(block):
            continue
        hidden = tf.constant(outputs[order.predicted[block]])
        scores = tf.nn.log_softmax(tf.cast(logits([(hidden,)]), tf.float64))
        losses[block] = -tf.gather(scores, order.shown[block], batch_dims=1).numpy()
        best, guesses[block] = (array.numpy() for array in tf.math.top_k(scores, num_guesses))
        probabilities[block] = np.exp(best)
    return losses, guesses, probabilities


def _where(steps: npt.NDArray[np.int64], values: Floats) -> Floats:
    """The rows of certain steps; NaN for step -1."""
    if not len(steps):
        return values[:0]
    return np.where((steps >= 0)[:, np.newaxis], values[steps], np.float32("nan"))
