"""Records what a model computes at each symbol of a text: states, logits, embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.model import compiled_loops
from tfcharrnn.model.cells import State
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.model.stepper import make_stepper

# float32, or float64 of a model with `--precision=float64`
Floats = npt.NDArray[np.floating[Any]]
# for each layer its state tensors, `[time, hidden]`
LayerStates = tuple[tuple[Floats, ...], ...]


class Activations(NamedTuple):
    """What a model computed at each symbol of a text that it read in one piece.

    Attributes:
        ids: the symbols read, int32 `[time]`: `<S>` if the layout has it, then those of the text.
        logits: of the symbol after each, `[time, vocabulary]`; `logits[t]` predicts `ids[t + 1]`, the last row what
            comes after the text. Symbols such as `<S>`, which are never predicted, have logits, too.
        states: for each layer its state tensors after each symbol, `[time, hidden]`: `states[layer][0]` is the output
            h, and of an LSTM `states[layer][1]` the memory c.
        embeddings: what enters the first layer, `[time, embedding]`; None: one-hot input, of which `ids` says all.
    """

    ids: npt.NDArray[np.int32]
    logits: Floats
    states: LayerStates
    embeddings: Floats | None


def compute_activations(model: CharRNN, ids: npt.NDArray[np.int32]) -> Activations:
    """Reads symbols `[time]`, at least one, from the initial state."""
    states = compute_states(model, ids, np.arange(len(ids)) == 0)
    embeddings = None
    if model.embedding is not None:
        embeddings = model.embedding.numpy()[ids]
        if model.config.zero_start:
            embeddings[ids == model.layout.start_id] = 0.0
    return Activations(ids, compute_logits(model, states), states, embeddings)


def compute_states(model: CharRNN, ids: npt.NDArray[np.int32], resets: npt.NDArray[np.bool_]) -> LayerStates:
    """Computes the state after each symbol.

    Args:
        model: the model.
        ids: the symbols, `[time]`, at least one.
        resets: before which symbols the state is reset to the initial state, `[time]`.
    """
    ends = list(itertools.accumulate(cell.num_state_tensors for cell in model.cells))

    def unflatten(flat: State) -> tuple[State, ...]:
        return tuple(flat[end - cell.num_state_tensors : end] for cell, end in zip(model.cells, ends, strict=True))

    @tf.function(autograph=False)
    def run(ids: tf.Tensor, resets: tf.Tensor) -> State:
        advance, _ = make_stepper(model)
        initial = tuple(tf.nest.flatten(model.initial_state(1)))

        def step(t: tf.Tensor, carry: State) -> tuple[State, State]:
            before = tuple(tf.where(resets[t], *pair) for pair in zip(initial, carry, strict=True))
            after = tuple(tf.nest.flatten(advance(ids[t][tf.newaxis], unflatten(before))))
            return after, after

        return compiled_loops.scan(step, initial, ids.shape[0], [value.shape for value in initial])[1]

    flat = run(tf.constant(ids), tf.constant(resets))
    return tuple(tuple(value.numpy()[:, 0] for value in state) for state in unflatten(flat))


def compute_logits(model: CharRNN, states: Sequence[Sequence[Floats]]) -> Floats:
    """Computes the logits of the next symbol, `[time, vocabulary]`, from the states of all layers."""
    _, logits = make_stepper(model)
    return logits([tuple(map(tf.constant, state)) for state in states]).numpy()
