"""JAX: `lax.scan` over the steps, the whole update in one `jit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfcharrnn.verification.workloads import Preparation, Training, Work, text


def _cell(kind: str, x: Any, h: Any, state: Any, weights: Any) -> Any:
    """One step: x is x W + b; returns the new state, the output first."""
    u = weights["u"]
    if kind == "rnn":
        return (jnp.tanh(x + h @ u),)
    if kind == "lstm":
        i, f, g, o = jnp.split(x + h @ u, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c
    q = h @ u + weights["b2"]
    (xz, xr, xh), (qz, qr, qh) = jnp.split(x, 3, axis=-1), jnp.split(q, 3, axis=-1)
    z, r = jax.nn.sigmoid(xz + qz), jax.nn.sigmoid(xr + qr)
    return (z * h + (1 - z) * jnp.tanh(xh + r * qh),)


def make(work: Work, parts: int = 1) -> tuple[Callable[[], object], int] | None:
    """Returns a function that does the work, and the number of steps per call.

    Args:
        work: what to do.
        parts: a training step runs so many parts of the batch, each in loops of its own.
    """
    if isinstance(work, Preparation) or (parts > 1 and not (isinstance(work, Training) and work.batch % parts == 0)):
        return None
    gates = {"rnn": 1, "lstm": 4, "gru": 3}[work.cell]
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return jnp.asarray(rng.normal(0, 0.05, shape), jnp.float32)

    layers = []
    for layer in range(work.layers):
        size, columns = (work.hidden if layer else work.symbols), gates * work.hidden
        layers.append(
            {"w": draw(size, columns), "u": draw(work.hidden, columns), "b": draw(columns), "b2": draw(columns)}
        )
    weights = {"layers": layers, "v": draw(work.hidden, work.symbols), "c": draw(work.symbols)}

    def start(batch: int) -> Any:
        return ((jnp.zeros((batch, work.hidden)),) * (2 if work.cell == "lstm" else 1),) * work.layers

    if not isinstance(work, Training):

        @jax.jit
        def generate(weights: Any, key: Any) -> Any:
            def step(carry: Any, key: Any) -> Any:
                x, states = carry
                after, hidden = [], None
                for layer, state in zip(weights["layers"], states, strict=True):
                    product = layer["w"][x] if hidden is None else hidden @ layer["w"]
                    after.append(_cell(work.cell, product + layer["b"], state[0], state, layer))
                    hidden = after[-1][0]
                x = jax.random.categorical(key, hidden @ weights["v"] + weights["c"])
                return (x, tuple(after)), x

            first = (jnp.zeros((work.streams,), jnp.int32), start(work.streams))
            return jax.lax.scan(step, first, jax.random.split(key, work.length))[1]

        return lambda: np.asarray(generate(weights, jax.random.key(0))), 1

    def loss_of_part(weights: Any, ids: Any) -> Any:
        hidden = None
        for layer, state in zip(weights["layers"], start(work.batch // parts), strict=True):
            x = (layer["w"][ids[:-1]] if hidden is None else hidden @ layer["w"]) + layer["b"]

            def step(state: Any, x: Any, layer: Any = layer) -> Any:
                state = _cell(work.cell, x, state[0], state, layer)
                return state, state[0]

            _, hidden = jax.lax.scan(step, state, x)
        logp = jax.nn.log_softmax(hidden @ weights["v"] + weights["c"])
        return -jnp.mean(jnp.take_along_axis(logp, ids[1:][..., None], axis=-1))

    def loss_of(weights: Any, ids: Any) -> Any:
        return sum(loss_of_part(weights, part) for part in jnp.split(ids, parts, axis=1)) / parts

    @jax.jit
    def update(weights: Any, slots: Any, ids: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(weights, ids)
        tree_map = jax.tree_util.tree_map
        m, v = slots
        if work.optimizer == "adam":
            m = tree_map(lambda m, g: 0.9 * m + 0.1 * g, m, gradients)
            v = tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradients)
            weights = tree_map(lambda w, m, v: w - 1e-3 * m / (jnp.sqrt(v) + 1e-7), weights, m, v)
        elif work.optimizer == "adagrad":
            v = tree_map(lambda v, g: v + g * g, v, gradients)
            weights = tree_map(lambda w, g, v: w - 1e-3 * g / (jnp.sqrt(v) + 1e-8), weights, gradients, v)
        else:
            weights = tree_map(lambda w, g: w - 1e-3 * g, weights, gradients)
        return weights, (m, v), loss

    ids = jnp.asarray(text(work, 1)[0].T)
    zeros = jax.tree_util.tree_map(jnp.zeros_like, weights)
    state = [weights, (zeros, zeros)]

    def train() -> object:
        state[0], state[1], loss = update(state[0], state[1], ids)
        return float(loss)

    return train, 1
