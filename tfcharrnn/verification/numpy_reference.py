"""Reference implementation of the language model in plain NumPy, forward and backward, one step at a time.

The tests check the fast code against it. It follows the formulas of the papers, in float64 and without regard to speed,
and shares no code with the TensorFlow modules. The steps of the cells are in `reference_cells`.

Parameters are a dict of arrays named as in a checkpoint: `embedding` `[vocabulary, embedding]` (absent for one-hot
input), for each layer `cells/0/kernel` and the other weights of the cell, for layer normalisation `norms/0/gain` and
`norms/0/shift`, `output_kernel` `[hidden, vocabulary]` and `output_bias` `[vocabulary]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfcharrnn.verification.reference_cells import (
    BACKWARD,
    FORWARD,
    STATE_TENSORS,
    Array,
    Cache,
    Parameters,
    State,
    normalise,
    normalise_backward,
)


def layer_forward(
    cell: str,
    x: Array,
    state: State,
    w: Parameters,
    mask: npt.NDArray[np.bool_] | None = None,
    gate: str = "sigmoid",
) -> tuple[Array, State, list[Cache]]:
    """Runs a cell over a sequence.

    Args:
        cell: its name, a key of `FORWARD`.
        x: `[time, batch, input]`.
        state: the state before the first step, arrays `[batch, hidden]`: (h,) or (h, c).
        w: `kernel` and the other weights of the cell.
        mask: bool `[time, batch]`; where it is false, the step is skipped and the state stays the same.
        gate: activation of the gates, a key of `GATES`.

    Returns:
        The outputs h, `[time, batch, hidden]`, the state after the last step, and the cache of each step.
    """
    outputs, caches = [], []
    for t in range(len(x)):
        after, cache = FORWARD[cell](x[t], state, w, gate)
        if mask is not None:
            after = tuple(np.where(mask[t][:, None], new, old) for new, old in zip(after, state, strict=True))
        state = after
        outputs.append(state[0])
        caches.append(cache)
    return np.stack(outputs), state, caches


def layer_backward(
    cell: str,
    d_outputs: Array,
    d_state: State,
    caches: Sequence[Cache],
    w: Parameters,
    mask: npt.NDArray[np.bool_] | None = None,
    gate: str = "sigmoid",
) -> tuple[Array, State, Parameters]:
    """Computes the derivative of `layer_forward`, by backpropagation through time (Werbos 1990).

    Args:
        cell: its name, a key of `FORWARD`.
        d_outputs: the gradient by the outputs, `[time, batch, hidden]`.
        d_state: the gradient by the state after the last step.
        caches: the caches that `layer_forward` returned.
        w: `kernel` and the other weights of the cell.
        mask: bool `[time, batch]`, false for skipped steps.
        gate: activation of the gates, a key of `GATES`.

    Returns:
        The gradients by x, by the state before the first step, and by the weights.
    """
    d_x = []
    gradients = {name: np.zeros_like(value) for name, value in w.items()}
    for t in reversed(range(len(caches))):
        d_after = (d_state[0] + d_outputs[t], *d_state[1:])
        runs = (np.ones(len(d_after[0]), bool) if mask is None else mask[t])[:, None]
        d_input, d_before, d_weights = BACKWARD[cell](
            tuple(np.where(runs, d, 0.0) for d in d_after), caches[t], w, gate
        )
        d_x.append(d_input)
        d_state = tuple(before + np.where(runs, 0.0, after) for before, after in zip(d_before, d_after, strict=True))
        for name in gradients:
            gradients[name] += d_weights[name]
    return np.stack(d_x[::-1]), d_state, gradients


def cross_entropy(logits: Array, targets: npt.NDArray[np.integer[Any]]) -> tuple[Array, Array]:
    """Returns the losses -log softmax(logits)[target], `[...]`, and the gradients by the logits, softmax - one-hot."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    one_hot = np.eye(logits.shape[-1])[targets]
    return -(log_softmax * one_hot).sum(axis=-1), np.exp(log_softmax) - one_hot


@dataclasses.dataclass(frozen=True)
class Result:
    """Results of `run_model`.

    Attributes:
        loss: the loss in nats a character.
        logits: `[time, batch, vocabulary]`.
        state: the state after the last step, for each layer a tuple of arrays `[batch, hidden]`.
        gradients: the gradients of the loss by the parameters.
        state_gradients: the gradients by the initial state.
    """

    loss: float
    logits: Array
    state: tuple[State, ...]
    gradients: Parameters
    state_gradients: tuple[State, ...]


def run_model(
    cell: str,
    parameters: Parameters,
    inputs: npt.NDArray[np.integer[Any]],
    targets: npt.NDArray[np.integer[Any]],
    *,
    state: Sequence[State] | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    dropout: Sequence[Array] | None = None,
    weights: Array | None = None,
    gate: str = "sigmoid",
    residual: bool = False,
) -> Result:
    """Runs the whole model over a batch of texts, forward and backward.

    What enters a layer from the second on, and the output layer, is the output of the layer below; with `residual` the
    sum of the outputs of all layers below; and if there are parameters `norms/...`, that normalised.

    Args:
        cell: its name, a key of `FORWARD`.
        parameters: named as the module says.
        inputs: symbols, `[time, batch]`.
        targets: the symbols that follow them, `[time, batch]`.
        state: the initial state, for each layer a tuple of arrays `[batch, hidden]`; None: zeros.
        mask: bool `[time, batch]`; where it is false, every layer skips the step.
        dropout: for each layer but the first, the factors on its input, `[time, batch, hidden]`; None: all 1.
        weights: weights of the characters in the mean that is the loss, `[time, batch]`; None: all 1.
        gate: activation of the gates, a key of `GATES`.
        residual: add up the outputs of the layers.
    """
    layers: list[Parameters] = []
    while f"cells/{len(layers)}/kernel" in parameters:
        prefix = f"cells/{len(layers)}/"
        layers.append({name.removeprefix(prefix): w for name, w in parameters.items() if name.startswith(prefix)})
    if state is None:
        zeros = np.zeros((inputs.shape[1], len(parameters["output_kernel"])))
        state = [(zeros,) * STATE_TENSORS[cell]] * len(layers)
    factors: list[Array | float] = [1.0] * len(layers) if dropout is None else [*dropout, 1.0]

    one_hot = np.eye(len(parameters.get("embedding", layers[0]["kernel"])))[inputs]
    x = one_hot @ parameters["embedding"] if "embedding" in parameters else one_hot
    total: Array | float = 0.0
    last, caches, normalised = [], [], []
    for layer, w in enumerate(layers):
        output, layer_state, layer_caches = layer_forward(cell, x, state[layer], w, mask, gate)
        total = total + output if residual else output
        x, y, divisor = _normalise_between(parameters, layer, total)
        x = x * factors[layer]
        last.append(layer_state)
        caches.append(layer_caches)
        normalised.append((y, divisor))
    logits = x @ parameters["output_kernel"] + parameters["output_bias"]
    losses, d_losses = cross_entropy(logits, targets)
    share = np.ones(losses.shape) if weights is None else weights
    share = share / share.sum()

    d_logits = d_losses * share[..., None]
    gradients = {"output_kernel": np.einsum("tbh,tbv->hv", x, d_logits), "output_bias": d_logits.sum(axis=(0, 1))}
    d_x = d_logits @ parameters["output_kernel"].T
    d_state: list[State] = []
    d_total: Array | float = 0.0  # with `residual`, the sum that enters the layers above contains this layer's output
    for layer in reversed(range(len(layers))):
        d_output, d_norm = _normalise_between_backward(parameters, layer, d_x * factors[layer], *normalised[layer])
        d_total = d_total + d_output if residual else d_output
        d_last = tuple(np.zeros_like(array) for array in last[layer])
        d_x, d_first, d_weights = layer_backward(cell, d_total, d_last, caches[layer], layers[layer], mask, gate)
        d_state.insert(0, d_first)
        gradients |= {f"cells/{layer}/{name}": gradient for name, gradient in d_weights.items()} | d_norm
    if "embedding" in parameters:
        gradients["embedding"] = np.einsum("tbv,tbe->ve", one_hot, d_x)
    return Result(float((losses * share).sum()), logits, tuple(last), gradients, tuple(d_state))


def _normalise_between(parameters: Parameters, layer: int, x: Array) -> tuple[Array, Array, Array]:
    """Applies the normalisation after a layer, if there is one: gain LN(x) + shift; returns it and that of LN."""
    if f"norms/{layer}/gain" not in parameters:
        return x, x, np.ones(())
    y, divisor = normalise(x)
    return parameters[f"norms/{layer}/gain"] * y + parameters[f"norms/{layer}/shift"], y, divisor


def _normalise_between_backward(
    parameters: Parameters, layer: int, d: Array, y: Array, divisor: Array
) -> tuple[Array, Parameters]:
    """Computes the derivative of `_normalise_between`: by x, and by gain and shift."""
    if f"norms/{layer}/gain" not in parameters:
        return d, {}
    gradients = {f"norms/{layer}/gain": (d * y).sum(axis=(0, 1)), f"norms/{layer}/shift": d.sum(axis=(0, 1))}
    return normalise_backward(d * parameters[f"norms/{layer}/gain"], y, divisor), gradients


def variables(model: Any) -> dict[str, Any]:
    """Returns the variables of a `CharRNN` that are parameters of `run_model`, all but the initial states, by name."""
    return {name: value for name, value in model.named_variables.items() if not name.startswith("initial_states")}


def central_differences(function: Callable[[], float], array: Array, step: float = 1e-4) -> Array:
    """Returns the gradient of a function f by an array a that it reads, by differences of the fourth order.

    f'(a) = (8 (f(a + step) - f(a - step)) - (f(a + 2 step) - f(a - 2 step))) / (12 step) + O(step^4).

    Args:
        function: reads `array`, whose entries are changed one by one and restored.
        array: `[...]`.
        step: the error of the formula grows as step^4, the rounding error as 1e-16 / step.
    """
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        value, total = array[index], 0.0
        for distance, factor in ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0)):
            array[index] = value + distance * step
            total += factor * function()
        gradient[index] = total / (12.0 * step)
        array[index] = value
    return gradient


def relative_error(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """|a - b| / max(1e-6, |a| + |b|) in the Euclidean norm: 0 for equal arrays, near 1 for unrelated ones."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(1e-6, np.linalg.norm(a) + np.linalg.norm(b)))
