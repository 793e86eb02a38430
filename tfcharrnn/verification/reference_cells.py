"""One step of each cell in plain NumPy, forward and backward by hand, for `numpy_reference`.

Letters are arrays: x the input, h the output, c the memory, W the kernel, U the recurrent kernel, b the bias; `d_y` is
the gradient of the loss by y. Three rules give every backward step:

    y = f(a)      ->  d_a = d_y f'(a)                              (sigmoid' = s (1 - s), tanh' = 1 - tanh^2)
    a = x W + b   ->  d_x = d_a W^T,  d_W = x^T d_a,  d_b = sum of d_a over the batch
    y = LN(a)     ->  d_a = (d_y - mean(d_y) - y mean(d_y y)) / sqrt(variance(a) + 1e-5)
"""

from __future__ import annotations

from collections.abc import Callable

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


def normalise(a: Array) -> tuple[Array, Array]:
    """Ba et al. (2016): LN(a) = (a - mean) / sqrt(variance + 1e-5) over the last axis.

    Returns:
        LN(a), `[..., size]`, and the divisor, `[..., 1]`.
    """
    divisor = np.sqrt(a.var(axis=-1, keepdims=True) + 1e-5)
    return (a - a.mean(axis=-1, keepdims=True)) / divisor, divisor


def normalise_backward(d_y: Array, y: Array, divisor: Array) -> Array:
    """Returns the gradient by a of y = LN(a); the mean and the variance depend on every entry of a."""
    return (d_y - d_y.mean(axis=-1, keepdims=True) - y * (d_y * y).mean(axis=-1, keepdims=True)) / divisor


# One step of each cell; `gate` is the activation of the gates, which only the LSTM and the GRU leave open.
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


def update_memory(a: Array, c: Array, gate: str = "sigmoid") -> tuple[Array, Cache]:
    """Gers et al. (2000): c' = f c + i g, where a has the columns of i, f, g, o; returns c' and c, i, f, g, o."""
    a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
    i, f, g, o = GATES[gate](a_i), GATES[gate](a_f), np.tanh(a_g), GATES[gate](a_o)
    return f * c + i * g, (c, i, f, g, o)


def update_memory_backward(d_o: Array, d_c: Array, cache: Cache, gate: str = "sigmoid") -> tuple[Array, Array]:
    """Returns the gradients by a and by c, from those by o and by c'."""
    c, i, f, g, o = cache
    slope = SLOPES[gate]
    d_gates = [d_c * g * slope(i), d_c * c * slope(f), d_c * i * (1.0 - g**2), d_o * slope(o)]
    return np.hstack(d_gates), d_c * f


def lstm_forward(x: Array, state: State, w: Parameters, gate: str = "sigmoid") -> tuple[State, Cache]:
    """Gers et al. (2000): c' = f c + i g, h' = o tanh(c'); the columns of W, U and b are in the order i, f, g, o."""
    h, c = state
    c_after, cache = update_memory(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], c, gate)
    return (cache[-1] * np.tanh(c_after), c_after), (x, h, c_after, *cache)


def lstm_backward(
    d_after: State, cache: Cache, w: Parameters, gate: str = "sigmoid"
) -> tuple[Array, State, Parameters]:
    """Computes the derivative of `lstm_forward`; c' affects h' and the next step."""
    x, h, c_after, *gates = cache
    d_h, d_c = d_after
    d_c = d_c + d_h * gates[-1] * (1.0 - np.tanh(c_after) ** 2)
    d_a, d_c = update_memory_backward(d_h * np.tanh(c_after), d_c, tuple(gates), gate)
    gradients = {"kernel": x.T @ d_a, "recurrent_kernel": h.T @ d_a, "bias": d_a.sum(axis=0)}
    return d_a @ w["kernel"].T, (d_a @ w["recurrent_kernel"].T, d_c), gradients


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


def lnlstm_forward(x: Array, state: State, w: Parameters, gate: str = "sigmoid") -> tuple[State, Cache]:
    """Ba et al. (2016), eq. 20 to 22: an LSTM with LN(x W) and LN(h U) in its gates and LN(c') in its output."""
    h, c = state
    y_x, divisor_x = normalise(x @ w["kernel"])
    y_h, divisor_h = normalise(h @ w["recurrent_kernel"])
    a = w["input_gain"] * y_x + w["recurrent_gain"] * y_h + w["shift"]
    c_after, cache = update_memory(a, c)
    y_c, divisor_c = normalise(c_after)
    s = np.tanh(w["cell_gain"] * y_c + w["cell_shift"])
    return (cache[-1] * s, c_after), (x, h, y_x, divisor_x, y_h, divisor_h, y_c, divisor_c, s, *cache)


def lnlstm_backward(
    d_after: State, cache: Cache, w: Parameters, gate: str = "sigmoid"
) -> tuple[Array, State, Parameters]:
    """Computes the derivative of `lnlstm_forward`."""
    x, h, y_x, divisor_x, y_h, divisor_h, y_c, divisor_c, s, *gates = cache
    d_h, d_c = d_after
    d_s = d_h * gates[-1] * (1.0 - s**2)
    d_c = d_c + normalise_backward(d_s * w["cell_gain"], y_c, divisor_c)
    d_a, d_c = update_memory_backward(d_h * s, d_c, tuple(gates))
    d_p = normalise_backward(d_a * w["input_gain"], y_x, divisor_x)
    d_q = normalise_backward(d_a * w["recurrent_gain"], y_h, divisor_h)
    gradients = {
        "kernel": x.T @ d_p,
        "recurrent_kernel": h.T @ d_q,
        "input_gain": (d_a * y_x).sum(axis=0),
        "recurrent_gain": (d_a * y_h).sum(axis=0),
        "shift": d_a.sum(axis=0),
        "cell_gain": (d_s * y_c).sum(axis=0),
        "cell_shift": d_s.sum(axis=0),
    }
    return d_p @ w["kernel"].T, (d_q @ w["recurrent_kernel"].T, d_c), gradients


def mlstm_forward(x: Array, state: State, w: Parameters, gate: str = "sigmoid") -> tuple[State, Cache]:
    """Krause et al. (2017): an LSTM in whose gates m = (x W + b)_m * (h U) stands for h; V multiplies it.

    The first block of columns of W and b is that of m, the others are in the order i, f, g, o.
    """
    h, c = state
    p_m, p_a = np.split(x @ w["kernel"] + w["bias"], [h.shape[1]], axis=1)
    q = h @ w["recurrent_kernel"]
    m = p_m * q
    c_after, cache = update_memory(p_a + m @ w["gate_kernel"], c)
    return (cache[-1] * np.tanh(c_after), c_after), (x, h, p_m, q, m, c_after, *cache)


def mlstm_backward(
    d_after: State, cache: Cache, w: Parameters, gate: str = "sigmoid"
) -> tuple[Array, State, Parameters]:
    """Computes the derivative of `mlstm_forward`."""
    x, h, p_m, q, m, c_after, *gates = cache
    d_h, d_c = d_after
    d_c = d_c + d_h * gates[-1] * (1.0 - np.tanh(c_after) ** 2)
    d_a, d_c = update_memory_backward(d_h * np.tanh(c_after), d_c, tuple(gates))
    d_m = d_a @ w["gate_kernel"].T
    d_p, d_q = np.hstack([d_m * q, d_a]), d_m * p_m
    gradients = {
        "kernel": x.T @ d_p,
        "recurrent_kernel": h.T @ d_q,
        "bias": d_p.sum(axis=0),
        "gate_kernel": m.T @ d_a,
    }
    return d_p @ w["kernel"].T, (d_q @ w["recurrent_kernel"].T, d_c), gradients


def mingru_forward(x: Array, state: State, w: Parameters, gate: str = "sigmoid") -> tuple[State, Cache]:
    """Feng et al. (2024), section 3.1: h' = (1 - z) h + z n; the columns of W and b are in the order z, n."""
    (h,) = state
    p_z, n = np.split(x @ w["kernel"] + w["bias"], 2, axis=1)
    z = sigmoid(p_z)
    return ((1.0 - z) * h + z * n,), (x, h, z, n)


def mingru_backward(
    d_after: State, cache: Cache, w: Parameters, gate: str = "sigmoid"
) -> tuple[Array, State, Parameters]:
    """Computes the derivative of `mingru_forward`."""
    x, h, z, n = cache
    (d_h,) = d_after
    d_p = np.hstack([d_h * (n - h) * z * (1.0 - z), d_h * z])
    return d_p @ w["kernel"].T, (d_h * (1.0 - z),), {"kernel": x.T @ d_p, "bias": d_p.sum(axis=0)}


def minlstm_forward(x: Array, state: State, w: Parameters, gate: str = "sigmoid") -> tuple[State, Cache]:
    """Feng et al. (2024), section 3.2: h' = f / (f + i) h + i / (f + i) n; the columns are in the order i, f, n."""
    (h,) = state
    p_i, p_f, n = np.split(x @ w["kernel"] + w["bias"], 3, axis=1)
    i, f = sigmoid(p_i), sigmoid(p_f)
    return ((f * h + i * n) / (f + i),), (x, h, i, f, n)


def minlstm_backward(
    d_after: State, cache: Cache, w: Parameters, gate: str = "sigmoid"
) -> tuple[Array, State, Parameters]:
    """Computes the derivative of `minlstm_forward`: d(f / (f + i)) = (i d_f - f d_i) / (f + i)^2."""
    x, h, i, f, n = cache
    (d_h,) = d_after
    d_share = d_h * (h - n) / (f + i) ** 2
    d_p = np.hstack([-d_share * f * i * (1.0 - i), d_share * i * f * (1.0 - f), d_h * i / (f + i)])
    return d_p @ w["kernel"].T, (d_h * f / (f + i),), {"kernel": x.T @ d_p, "bias": d_p.sum(axis=0)}


def sru_forward(x: Array, state: State, w: Parameters, gate: str = "sigmoid") -> tuple[State, Cache]:
    """Lei et al. (2018), version 1: c' = f c + (1 - f) u, h' = r tanh(c') + (1 - r) v; columns: u, f, r, v."""
    _, c = state
    u, p_f, p_r, v = np.split(x @ w["kernel"] + w["bias"], 4, axis=1)
    f, r = sigmoid(p_f), sigmoid(p_r)
    c_after = f * c + (1.0 - f) * u
    return (r * np.tanh(c_after) + (1.0 - r) * v, c_after), (x, c, u, f, r, v, c_after)


def sru_backward(d_after: State, cache: Cache, w: Parameters, gate: str = "sigmoid") -> tuple[Array, State, Parameters]:
    """Computes the derivative of `sru_forward`; the output h is not read by the next step."""
    x, c, u, f, r, v, c_after = cache
    d_h, d_c = d_after
    s = np.tanh(c_after)
    d_c = d_c + d_h * r * (1.0 - s**2)
    d_p = np.hstack([d_c * (1.0 - f), d_c * (c - u) * f * (1.0 - f), d_h * (s - v) * r * (1.0 - r), d_h * (1.0 - r)])
    return d_p @ w["kernel"].T, (np.zeros_like(d_h), d_c * f), {"kernel": x.T @ d_p, "bias": d_p.sum(axis=0)}


FORWARD = {
    "rnn": rnn_forward,
    "lstm": lstm_forward,
    "gru": gru_forward,
    "lnlstm": lnlstm_forward,
    "mlstm": mlstm_forward,
    "mingru": mingru_forward,
    "minlstm": minlstm_forward,
    "sru": sru_forward,
}
BACKWARD = {
    "rnn": rnn_backward,
    "lstm": lstm_backward,
    "gru": gru_backward,
    "lnlstm": lnlstm_backward,
    "mlstm": mlstm_backward,
    "mingru": mingru_backward,
    "minlstm": minlstm_backward,
    "sru": sru_backward,
}
# tensors in a state, (h,) or (h, c)
STATE_TENSORS = {"rnn": 1, "lstm": 2, "gru": 1, "lnlstm": 2, "mlstm": 2, "mingru": 1, "minlstm": 1, "sru": 2}
