"""Runs a layer whose state enters linearly, c' = a c + b, for all steps of a sequence at once.

The steps of a chunk combine to one step of the same form: first (a1, b1), then (a2, b2) is (a2 a1, a2 b1 + b2). So the
sequence is cut into chunks; all chunks run side by side, once to combine their steps, and once more from the states
before them, which are a recurrence over chunks: the same problem, shorter (Blelloch 1990, "Prefix sums and their
applications"; Martin & Cundy 2018 for recurrent networks). With chunks of two steps its depth is logarithmic in the
length, with one chunk it is a plain loop. Nothing is divided and no logarithm taken, so with |a| <= 1 neither large nor
vanishing products do harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfcharrnn.model.cells.base import Cell, State, matmul
from tfcharrnn.model.cells.linear import LinearCell
from tfcharrnn.model.compiled_loops import compile_in_graphs, scan
from tfcharrnn.model.input_projection import SymbolInput, project_inputs, sum_row_gradients

# Steps in a chunk. A GPU does all chunks at once, so the fewest steps one after another are best; a CPU is busy with a
# single step of a batch, and does least work in a plain loop.
_CHUNK_LENGTH = {"GPU": 2, "CPU": 1_000_000_000}
# On a CPU a layer with more numbers in p of all steps than this is run step by step, since they leave the caches.
_MAX_SUMS_AT_ONCE = 2**24
# up to this many steps a loop is written out
_MAX_UNROLLED = 4


def is_loop_faster(cell: Cell, inputs: SymbolInput | tf.Tensor) -> bool:
    """Whether `recurrence.run_layer` is faster than `run_linear_layer`: for large layers on a CPU.

    Args:
        cell: the cell.
        inputs: symbols, or vectors `[time, batch, input]`.
    """
    if tf.config.list_logical_devices("GPU"):
        return False
    time, batch = (inputs.ids if isinstance(inputs, SymbolInput) else inputs).shape[:2]
    return time * batch * cell.num_gates * cell.hidden_size > _MAX_SUMS_AT_ONCE


def run_linear_layer(
    cell: Cell, inputs: SymbolInput | tf.Tensor, state: State, mask: tf.Tensor | None = None, chunk_length: int = 0
) -> tuple[tf.Tensor, State]:
    """Runs a layer of a `LinearCell` over a sequence.

    Args:
        cell: the cell.
        inputs: symbols, or vectors `[time, batch, input]`.
        state: the state before the first step, tensors `[batch, hidden]`.
        mask: bool `[time, batch]`; where it is false, the step is skipped and the state stays the same.
        chunk_length: steps in a chunk, at least 2; 0: chosen by the device.

    Returns:
        The outputs, `[time, batch, hidden]`, and the state after the last step.
    """
    source, ids = project_inputs(cell, inputs)
    extras, cell_class, compute_dtype = cell.extras, type(cell), cell.compute_dtype
    chunk_length = chunk_length or _CHUNK_LENGTH["GPU" if tf.config.list_logical_devices("GPU") else "CPU"]

    @tf.custom_gradient
    def run(source: tf.Tensor, *rest: tf.Tensor) -> tuple[State, Callable[..., State]]:
        extras_and_state = rest[: len(extras)], rest[len(extras) :]
        states = _forward(cell_class, compute_dtype, source, ids, *extras_and_state, mask, chunk_length)

        def gradient(d_outputs: tf.Tensor, *d_last: tf.Tensor) -> State:
            d_source, d_extras, d_state = _backward(
                cell_class, compute_dtype, source, ids, *extras_and_state, mask, chunk_length, states[-1],
                d_outputs, d_last,
            )  # fmt: skip
            if ids is not None:
                d_source = sum_row_gradients(d_source, ids, source.shape[0])
            return (d_source, *d_extras, *d_state)

        return (states[0], *(array[-1] for array in states)), gradient

    outputs, *last = run(source, *extras, *state)
    return outputs, tuple(last)


def _run_steps(
    cell_class: type[LinearCell],
    compute_dtype: tf.DType,
    p: tf.Tensor,
    extras: State,
    state: State,
    mask: tf.Tensor | None,
    chunk_length: int,
    known: tf.Tensor | None = None,
) -> State:
    """Returns the states after each step, tensors `[time, batch, hidden]`, the output first.

    Args:
        cell_class: the cell.
        compute_dtype: dtype of the products with extra matrices.
        p: x W + b, `[time, batch, gates * hidden]`.
        extras: the values of the extra weights.
        state: the state before the first step.
        mask: bool `[time, batch]`, false for steps to skip; None: none.
        chunk_length: steps in a chunk.
        known: c after each step, where it has been computed before.
    """

    def multiply(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        rows = matmul(tf.reshape(x, [-1, x.shape[-1]]), matrix, compute_dtype)
        return tf.reshape(rows, [*x.shape[:-1], matrix.shape[1]])

    weights: dict[str, Any] = cell_class.bind_extras(extras, multiply)
    a, b = cell_class.run_coefficients(p, weights)
    keep = None if mask is None else tf.cast(mask, p.dtype)[..., tf.newaxis]
    if keep is not None:  # a skipped step is c' = 1 c + 0
        a, b = 1.0 + keep * (a - 1.0), keep * b
    c = scan_linear(a, b, state[-1], chunk_length, known)
    if cell_class.num_state_tensors == 1:
        return (c,)
    h = cell_class.run_output(p, c, weights)
    if keep is not None:  # the output of a skipped step is that of the step before
        h = scan_linear(1.0 - keep + tf.zeros_like(h), keep * h, state[0], chunk_length)
    return h, c


@compile_in_graphs
def _forward(
    cell_class: type[LinearCell],
    compute_dtype: tf.DType,
    source: tf.Tensor,
    ids: tf.Tensor | None,
    extras: State,
    state: State,
    mask: tf.Tensor | None,
    chunk_length: int,
) -> State:
    """Runs the steps; `source` and `ids` are those of `input_projection.Projection`."""
    p = source if ids is None else tf.gather(source, ids)
    return _run_steps(cell_class, compute_dtype, p, extras, state, mask, chunk_length)


@compile_in_graphs
def _backward(
    cell_class: type[LinearCell],
    compute_dtype: tf.DType,
    source: tf.Tensor,
    ids: tf.Tensor | None,
    extras: State,
    state: State,
    mask: tf.Tensor | None,
    chunk_length: int,
    c: tf.Tensor,
    d_outputs: tf.Tensor,
    d_last: State,
) -> tuple[tf.Tensor, State, State]:
    """Computes the derivative of `_forward`: the gradients by p of every step, the extra weights and the state."""
    p = source if ids is None else tf.gather(source, ids)
    with tf.GradientTape() as tape:
        tape.watch((p, extras, state))
        states = _run_steps(cell_class, compute_dtype, p, extras, state, mask, chunk_length, known=c)
        targets = (states[0], *(array[-1] for array in states))
    zero = tf.UnconnectedGradients.ZERO
    return tape.gradient(targets, (p, extras, state), (d_outputs, *d_last), unconnected_gradients=zero)


def scan_linear(
    a: tf.Tensor, b: tf.Tensor, first: tf.Tensor, chunk_length: int, known: tf.Tensor | None = None
) -> tf.Tensor:
    """Returns c of c[t] = a[t] c[t - 1] + b[t] for every t, `[time, ...]`.

    Args:
        a: `[time, ...]`.
        b: `[time, ...]`.
        first: c before the first step, `[...]`.
        chunk_length: steps in a chunk, at least 2.
        known: the result, where it has been computed before; then only its gradient is of interest.
    """

    @tf.custom_gradient
    def run(a: tf.Tensor, b: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, Callable[..., State]]:
        c = _scan_chunks(a, b, first, chunk_length) if known is None else tf.identity(known)

        def gradient(d_c: tf.Tensor) -> State:
            """The gradient by c[t] reaches it directly and through c[t + 1]: the same recurrence, backward in time."""
            following = tf.concat([a[1:], tf.zeros_like(a[:1])], 0)
            d_b = _scan_chunks(following[::-1], d_c[::-1], tf.zeros_like(first), chunk_length)[::-1]
            before = tf.concat([first[tf.newaxis], c[:-1]], 0)
            return d_b * before, d_b, a[0] * d_b[0]

        return c, gradient

    return run(a, b, first)


def _scan_chunks(a: tf.Tensor, b: tf.Tensor, first: tf.Tensor, chunk_length: int) -> tf.Tensor:
    """Computes `scan_linear`, without a gradient."""
    time = a.shape[0]
    if time <= chunk_length:
        return _run_in_order(a, b, first)[1]
    num_chunks = -(-time // chunk_length)
    padding = [[0, num_chunks * chunk_length - time]] + [[0, 0]] * (len(a.shape) - 1)
    shape = [num_chunks, chunk_length, *a.shape[1:]]
    # [chunk_length, chunks, ...]: step t of every chunk
    a, b = (tf.transpose(tf.reshape(tf.pad(x, padding), shape), [1, 0, *range(2, len(shape))]) for x in (a, b))
    product, total = _combine(a, b)
    ends = _scan_chunks(product, total, first, chunk_length)  # the states after each chunk
    starts = tf.concat([first[tf.newaxis], ends[:-1]], 0)
    c = tf.transpose(_run_in_order(a, b, starts)[1], [1, 0, *range(2, len(shape))])
    return tf.reshape(c, [num_chunks * chunk_length, *first.shape])[:time]


def _run_in_order(a: tf.Tensor, b: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs c' = a c + b step by step; returns the last c and all, `[time, ...]`."""
    if a.shape[0] <= _MAX_UNROLLED:
        c, steps = first, []
        for t in range(a.shape[0]):
            c = a[t] * c + b[t]
            steps.append(c)
        return c, tf.stack(steps)

    def step(t: tf.Tensor, carry: State) -> tuple[State, State]:
        c = a[t] * carry[0] + b[t]
        return (c,), (c,)

    (c,), (steps,) = scan(step, (first,), a.shape[0], [first.shape])
    return c, steps


def _combine(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Combines steps `[time, ...]` to one step of the same form."""

    def step(t: tf.Tensor, carry: State) -> tuple[State, State]:
        product, total = carry
        return (a[t] * product, a[t] * total + b[t]), ()

    if a.shape[0] <= _MAX_UNROLLED:
        product, total = a[0], b[0]
        for t in range(1, a.shape[0]):
            (product, total), _ = step(t, (product, total))
        return product, total
    (product, total), _ = scan(step, (tf.ones_like(a[0]), tf.zeros_like(b[0])), a.shape[0], [])
    return product, total
