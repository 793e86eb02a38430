"""Reference implementation of the language model in plain NumPy, forward and backward, one step at a time.

The tests check the fast code against it. It follows the formulas of the papers, in float64 and without regard to speed,
and shares no code with the TensorFlow modules. Letters are arrays: x the input, h the output, W the kernel, U the
recurrent kernel, b the bias; `d_y` is the gradient of the loss by y. Two rules give every backward step:

    y = f(a)      ->  d_a = d_y * f'(a)                            (sigmoid' = s (1 - s), tanh' = 1 - tanh^2)
    a = x W + b   ->  d_x = d_a W^T,  d_W = x^T d_a,  d_b = sum of d_a over the batch

Parameters are a dict of arrays named as in a checkpoint: `embedding` `[vocabulary, embedding]` (absent for one-hot
input), for each layer `cells/0/kernel`, `cells/0/recurrent_kernel` and `cells/0/bias`, `output_kernel`
`[hidden, vocabulary]` and `output_bias` `[vocabulary]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Parameters = dict[str, Array]
State = tuple[Array, ...]
Cache = tuple[Array, ...]


def sigmoid(a: npt.ArrayLike) -> Array:
    """1 / (1 + exp(-a)), in a form that cannot overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(a, np.float64)))


def hard_sigmoid(a: npt.ArrayLike) -> Array:
    """clip(0.2 a + 0.5, 0, 1), named hard_sigmoid in Keras 1 and 2."""
    return np.minimum(np.maximum(0.2 * np.asarray(a, np.float64) + 0.5, 0.0), 1.0)


def hard_sigmoid_6(a: npt.ArrayLike) -> Array:
    """relu6(a + 3) / 6, named hard_sigmoid in Keras 3."""
    return np.minimum(np.maximum(np.asarray(a, np.float64) + 3.0, 0.0), 6.0) / 6.0


# Gate activations s = f(a), and their slopes f'(a) as functions of s.
GATES: dict[str, Callable[[npt.ArrayLike], Array]] = {
    "sigmoid": sigmoid,
    "hard_sigmoid": hard_sigmoid,
    "hard_sigmoid_6": hard_sigmoid_6,
}
SLOPES: dict[str, Callable[[Array], Array]] = {
    "sigmoid": lambda s: s * (1.0 - s),
    "hard_sigmoid": lambda s: np.where((s > 0.0) & (s < 1.0), 0.2, 0.0),
    "hard_sigmoid_6": lambda s: np.where((s > 0.0) & (s < 1.0), 1.0 / 6.0, 0.0),
}

# One step of each cell; `gate` is the activation of the gates, unused by the Elman network.
#   forward:  x [batch, input], state before, weights        ->  state after, cache for the backward step
#   backward: gradient by the state after, cache, weights    ->  gradients by x, by the state before, by the weights


def rnn_forward(x: Array, state: State, w: Parameters, gate: str = "sigmoid") -> tuple[State, Cache]:
    """Elman (1990): h' = tanh(x W + h U + b)."""
    (h,) = state
    after = np.tanh(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"])
    return (after,), (x, h, after)


def rnn_backward(d_after: State, cache: Cache, w: Parameters, gate: str = "sigmoid") -> tuple[Array, State, Parameters]:
    """Computes the derivative of `rnn_forward`."""
    x, h, after = cache
    d_a = d_after[0] * (1.0 - after**2)
    gradients = {"kernel": x.T @ d_a, "recurrent_kernel": h.T @ d_a, "bias": d_a.sum(axis=0)}
    return d_a @ w["kernel"].T, (d_a @ w["recurrent_kernel"].T,), gradients


def lstm_forward(x: Array, state: State, w: Parameters, gate: str = "sigmoid") -> tuple[State, Cache]:
    """Gers et al. (2000): c' = f c + i g, h' = o tanh(c'); the columns of W, U and b are in the order i, f, g, o."""
    h, c = state
    a_i, a_f, a_g, a_o = np.split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 4, axis=1)
    i, f, g, o = GATES[gate](a_i), GATES[gate](a_f), np.tanh(a_g), GATES[gate](a_o)
    c_after = f * c + i * g
    return (o * np.tanh(c_after), c_after), (x, h, c, i, f, g, o, c_after)


def lstm_backward(
    d_after: State, cache: Cache, w: Parameters, gate: str = "sigmoid"
) -> tuple[Array, State, Parameters]:
    """Computes the derivative of `lstm_forward`; c' affects h' and the next step."""
    x, h, c, i, f, g, o, c_after = cache
    d_h, d_c = d_after
    d_o = d_h * np.tanh(c_after)
    d_c = d_c + d_h * o * (1.0 - np.tanh(c_after) ** 2)
    d_i, d_f, d_g = d_c * g, d_c * c, d_c * i
    slope = SLOPES[gate]
    d_a = np.hstack([d_i * slope(i), d_f * slope(f), d_g * (1.0 - g**2), d_o * slope(o)])
    gradients = {"kernel": x.T @ d_a, "recurrent_kernel": h.T @ d_a, "bias": d_a.sum(axis=0)}
    return d_a @ w["kernel"].T, (d_a @ w["recurrent_kernel"].T, d_c * f), gradients


def gru_forward(x: Array, state: State, w: Parameters, gate: str = "sigmoid") -> tuple[State, Cache]:
    """Cho et al. (2014), as cuDNN computes it: h' = z h + (1 - z) n with n = tanh(p_n + r q_n).

    Here p = x W + b[0] and q = h U + b[1], with columns in the order z, r, n; the reset gate is applied after h U.
    """
    (h,) = state
    p_z, p_r, p_n = np.split(x @ w["kernel"] + w["bias"][0], 3, axis=1)
    q_z, q_r, q_n = np.split(h @ w["recurrent_kernel"] + w["bias"][1], 3, axis=1)
    z, r = GATES[gate](p_z + q_z), GATES[gate](p_r + q_r)
    n = np.tanh(p_n + r * q_n)
    return (z * h + (1.0 - z) * n,), (x, h, z, r, n, q_n)


def gru_backward(d_after: State, cache: Cache, w: Parameters, gate: str = "sigmoid") -> tuple[Array, State, Parameters]:
    """Computes the derivative of `gru_forward`; h affects h' directly and through U."""
    x, h, z, r, n, q_n = cache
    (d_h,) = d_after
    d_z, d_n = d_h * (h - n), d_h * (1.0 - z)
    d_p_n = d_n * (1.0 - n**2)
    d_r, d_q_n = d_p_n * q_n, d_p_n * r
    d_gates = [d_z * SLOPES[gate](z), d_r * SLOPES[gate](r)]  # equal for p and q, which enter as a sum
    d_p, d_q = np.hstack([*d_gates, d_p_n]), np.hstack([*d_gates, d_q_n])
    gradients = {
        "kernel": x.T @ d_p,
        "recurrent_kernel": h.T @ d_q,
        "bias": np.stack([d_p.sum(axis=0), d_q.sum(axis=0)]),
    }
    return d_p @ w["kernel"].T, (d_h * z + d_q @ w["recurrent_kernel"].T,), gradients


FORWARD = {"rnn": rnn_forward, "lstm": lstm_forward, "gru": gru_forward}
BACKWARD = {"rnn": rnn_backward, "lstm": lstm_backward, "gru": gru_backward}


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
        cell: `rnn`, `lstm` or `gru`.
        x: `[time, batch, input]`.
        state: the state before the first step, arrays `[batch, hidden]`: (h,), for the LSTM (h, c).
        w: `kernel`, `recurrent_kernel` and `bias`.
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
        cell: `rnn`, `lstm` or `gru`.
        d_outputs: the gradient by the outputs, `[time, batch, hidden]`.
        d_state: the gradient by the state after the last step.
        caches: the caches that `layer_forward` returned.
        w: `kernel`, `recurrent_kernel` and `bias`.
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
) -> Result:
    """Runs the whole model over a batch of texts, forward and backward.

    Args:
        cell: `rnn`, `lstm` or `gru`.
        parameters: named as the module says.
        inputs: symbols, `[time, batch]`.
        targets: the symbols that follow them, `[time, batch]`.
        state: the initial state, for each layer a tuple of arrays `[batch, hidden]`; None: zeros.
        mask: bool `[time, batch]`; where it is false, every layer skips the step.
        dropout: for each layer but the first, the factors on its input, `[time, batch, hidden]`; None: all 1.
        weights: weights of the characters in the mean that is the loss, `[time, batch]`; None: all 1.
        gate: activation of the gates, a key of `GATES`.
    """
    layers: list[Parameters] = []
    while f"cells/{len(layers)}/kernel" in parameters:
        names = ("kernel", "recurrent_kernel", "bias")
        layers.append({name: parameters[f"cells/{len(layers)}/{name}"] for name in names})
    if state is None:
        zeros = np.zeros((inputs.shape[1], len(parameters["output_kernel"])))
        state = [(zeros, zeros) if cell == "lstm" else (zeros,)] * len(layers)

    one_hot = np.eye(len(parameters.get("embedding", layers[0]["kernel"])))[inputs]
    x = one_hot @ parameters["embedding"] if "embedding" in parameters else one_hot
    last, caches = [], []
    for layer, w in enumerate(layers):
        if layer and dropout is not None:
            x = x * dropout[layer - 1]
        x, layer_state, layer_caches = layer_forward(cell, x, state[layer], w, mask, gate)
        last.append(layer_state)
        caches.append(layer_caches)
    logits = x @ parameters["output_kernel"] + parameters["output_bias"]
    losses, d_losses = cross_entropy(logits, targets)
    share = np.ones(losses.shape) if weights is None else weights
    share = share / share.sum()

    d_logits = d_losses * share[..., None]
    gradients = {"output_kernel": np.einsum("tbh,tbv->hv", x, d_logits), "output_bias": d_logits.sum(axis=(0, 1))}
    d_x = d_logits @ parameters["output_kernel"].T
    d_state: list[State] = []
    for layer in reversed(range(len(layers))):
        d_last = tuple(np.zeros_like(array) for array in last[layer])
        d_x, d_first, d_weights = layer_backward(cell, d_x, d_last, caches[layer], layers[layer], mask, gate)
        d_state.insert(0, d_first)
        gradients |= {f"cells/{layer}/{name}": gradient for name, gradient in d_weights.items()}
        if layer and dropout is not None:
            d_x = d_x * dropout[layer - 1]
    if "embedding" in parameters:
        gradients["embedding"] = np.einsum("tbv,tbe->ve", one_hot, d_x)
    return Result(float((losses * share).sum()), logits, tuple(last), gradients, tuple(d_state))


def variables(model: Any) -> dict[str, Any]:
    """Returns the variables of a `CharRNN` that are parameters of `run_model`, all but the initial states, by name."""
    return {name: value for name, value in model.named_variables.items() if not name.startswith("initial_states")}


def central_differences(function: Callable[[], float], array: Array, step: float = 1e-5) -> Array:
    """Returns the gradient of a function by an array that it reads, (f(a + step) - f(a - step)) / (2 step).

    Args:
        function: reads `array`, whose entries are changed one by one and restored.
        array: `[...]`.
        step: the error of the formula grows as step^2, the rounding error as 1e-16 / step.
    """
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = function()
        array[index] = value - step
        gradient[index] = (above - function()) / (2.0 * step)
        array[index] = value
    return gradient


def relative_error(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """|a - b| / max(1e-6, |a| + |b|) in the Euclidean norm: 0 for equal arrays, near 1 for unrelated ones."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(1e-6, np.linalg.norm(a) + np.linalg.norm(b)))
