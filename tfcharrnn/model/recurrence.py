"""Runs a recurrent layer over a sequence, with its own backward pass.

Backpropagation through time (Werbos 1990), the same for every cell. The forward loop stores the states of each step.
The backward loop visits the steps in reverse and computes only the gradients of the two sums of each step,
p = x W + b and q = h U (+ b'). The gradient of U is then one large product over all steps instead of a small one per
step, and so is that of W. `tf.GradientTape` sees the whole sequence as a single operation.

Time comes first in every tensor, `[time, batch, ...]`, so that each step reads one contiguous block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import tensorflow as tf

from tfcharrnn.model.cells import Cell, State
from tfcharrnn.model.cells.base import matmul
from tfcharrnn.model.compiled_loops import compile_in_graphs, scan
from tfcharrnn.model.derived_step import (
    StepGradients,
    StepWeights,
    differentiate_step,
    list_kept_shapes,
    run_step,
)
from tfcharrnn.model.input_projection import SymbolInput, project_inputs, sum_row_gradients


def run_layer(
    cell: Cell,
    inputs: SymbolInput | tf.Tensor,
    state: State,
    kernel: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
    unroll: int = 1,
) -> tuple[tf.Tensor, State]:
    """Runs a layer over a sequence.

    Args:
        cell: the cell.
        inputs: symbols, or vectors `[time, batch, input]`.
        state: the state before the first step, tensors `[batch, hidden]`.
        kernel: the recurrent kernel, such as one with dropped weights; None: the cell's.
        mask: bool `[time, batch]`; where it is false, the step is skipped and the state stays the same.
        unroll: steps in a turn of the compiled loops.

    Returns:
        The outputs, `[time, batch, hidden]`, and the state after the last step.
    """
    source, ids = project_inputs(cell, inputs)
    kernel, bias, extras = cell.recurrent_kernel if kernel is None else kernel, cell.recurrent_bias, cell.extras
    # `tf.custom_gradient` takes tensors, not None
    given = tuple(tf.convert_to_tensor(weight) for weight in (kernel, bias, *extras) if weight is not None)

    @tf.custom_gradient
    def run(source: tf.Tensor, *rest: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., tuple[tf.Tensor, ...]]]:
        values, state = list(rest[: len(given)]), rest[len(given) :]
        weights = StepWeights(
            None if kernel is None else values.pop(0), None if bias is None else values.pop(0), tuple(values)
        )
        last, states, kept = _forward_loop(type(cell), cell.compute_dtype, source, ids, weights, state, mask, unroll)

        def gradient(d_outputs: tf.Tensor, *d_last: tf.Tensor) -> tuple[tf.Tensor, ...]:
            before = tuple(tf.concat([s[tf.newaxis], steps[:-1]], 0) for s, steps in zip(state, states, strict=True))
            has_own_backward = cell.has_own_backward()
            d_state, d_vectors, d = _backward_loop(
                type(cell),
                cell.compute_dtype,
                None if has_own_backward else source,
                None if has_own_backward else ids,
                weights,
                before,
                states if has_own_backward else None,
                kept,
                mask,
                d_outputs,
                d_last,
                unroll,
            )
            d_source = d.p if ids is None else sum_row_gradients(d.p, ids, source.shape[0])
            d_weights: list[tf.Tensor] = []
            if weights.kernel is not None:
                d_q = tf.reshape(d.p if d.q is None else d.q, [-1, weights.kernel.shape[1]])
                d_weights.append(_sum_outer_products(cell, before[0], d_q))
                if weights.bias is not None:
                    d_weights.append(tf.reduce_sum(d_q, 0))
            vectors, products = iter(d_vectors), iter(d.products)
            for weight in weights.extras:
                d_weights.append(
                    next(vectors) if weight.shape.rank == 1 else _sum_outer_products(cell, *next(products))
                )
            return (d_source, *d_weights, *d_state)

        return (states[0], *last), gradient

    outputs, *last = run(source, *given, *state)
    return outputs, tuple(last)


def _sum_outer_products(cell: Cell, x: tf.Tensor, d_product: tf.Tensor) -> tf.Tensor:
    """Returns the gradient of a matrix that multiplied x in every step: the sum of x^T d_product.

    Args:
        cell: computes the product.
        x: `[time, batch, rows]`.
        d_product: the gradient by the products, `[time, batch, columns]` or `[time * batch, columns]`.
    """
    x, d_product = tf.reshape(x, [-1, x.shape[-1]]), tf.reshape(d_product, [-1, d_product.shape[-1]])
    return cell.matmul(x, d_product, transpose_a=True)


@compile_in_graphs
def _forward_loop(
    cell_class: type[Cell],
    compute_dtype: tf.DType,
    source: tf.Tensor,
    ids: tf.Tensor | None,
    weights: StepWeights,
    state: State,
    mask: tf.Tensor | None,
    unroll: int,
) -> tuple[State, State, State]:
    """Runs the steps of a sequence in order.

    Args:
        cell_class: computes a step, `Cell.forward`.
        compute_dtype: dtype of the matrix products.
        source: x W + b, `[time, batch, gates * hidden]`, or with `ids` a table `[symbols, gates * hidden]`.
        ids: `[time, batch]`, the row of the table for each step; None: no table.
        weights: what each step uses.
        state: the state before the first step, tensors `[batch, hidden]`.
        mask: bool `[time, batch]`, false for steps to skip; None: none.
        unroll: steps in a turn of the loop.

    Returns:
        The state after the last step, the states after each step and what each step kept for the backward loop,
        tensors `[time, batch, ...]`.
    """
    length = source.shape[0] if ids is None else ids.shape[0]

    def step(t: tf.Tensor, carry: State) -> tuple[State, State]:
        *state, p = carry
        after, kept = run_step(cell_class, compute_dtype, p, tuple(state), weights)
        if mask is not None:
            after = _select(mask[t], after, tuple(state))
        # p of the next step: read in the step itself, it would be part of the arithmetic's inner loop, which the
        # compiler then cannot vectorise
        return (*after, _get_input_sum(source, ids, tf.minimum(t + 1, length - 1))), (*after, *kept)

    shapes = [tensor.shape for tensor in state] + list_kept_shapes(cell_class, state, weights)
    carry, outputs = scan(step, (*state, _get_input_sum(source, ids, tf.constant(0))), length, shapes, unroll=unroll)
    return carry[:-1], outputs[: len(state)], outputs[len(state) :]


def _get_input_sum(source: tf.Tensor, ids: tf.Tensor | None, t: tf.Tensor) -> tf.Tensor:
    """Returns p = x W + b of step t, `[batch, gates * hidden]`."""
    return source[t] if ids is None else tf.gather(source, ids[t])


@compile_in_graphs
def _backward_loop(
    cell_class: type[Cell],
    compute_dtype: tf.DType,
    source: tf.Tensor | None,
    ids: tf.Tensor | None,
    weights: StepWeights,
    before: State,
    after: State | None,
    kept: State,
    mask: tf.Tensor | None,
    d_outputs: tf.Tensor,
    d_last: State,
    unroll: int,
) -> tuple[State, State, StepGradients]:
    """Visits the steps of a sequence in reverse, the derivative of `_forward_loop`.

    Args:
        cell_class: computes the derivative of a step, `Cell.backward`, or has it derived.
        compute_dtype: dtype of the matrix products.
        source: as in `_forward_loop`; None if the cell has its own `backward`.
        ids: likewise.
        weights: what each step used.
        before: the states before each step, tensors `[time, batch, hidden]`.
        after: the states after each step; None if the derivative is derived.
        kept: what each step kept.
        mask: bool `[time, batch]`, false for skipped steps; None: none.
        d_outputs: the loss's gradient by the outputs, `[time, batch, hidden]`.
        d_last: the loss's gradient by the state after the last step, tensors `[batch, hidden]`.
        unroll: steps in a turn of the loop.

    Returns:
        The gradients by the state before the first step, `[batch, hidden]`, by the extra vectors, and by what each
        step read, tensors `[time, batch, ...]`; where those by p and q are equal, the latter is None.
    """
    transposed = None if weights.kernel is None else tf.transpose(weights.kernel)
    transposes = tuple(map(tf.transpose, weights.matrices))
    num_states = cell_class.num_state_tensors

    def differentiate(t: tf.Tensor, d_after: State) -> StepGradients:
        kept_in_step, state = tuple(array[t] for array in kept), tuple(array[t] for array in before)
        if after is None:
            p = _get_input_sum(source, ids, t)
            return differentiate_step(cell_class, compute_dtype, p, kept_in_step, state, d_after, weights, transposes)
        d_p, d_q, d_before = cell_class.backward(kept_in_step, state, tuple(array[t] for array in after), d_after)
        return StepGradients(d_p, d_q, d_before, (), ())

    def step(t: tf.Tensor, carry: State) -> tuple[State, State]:
        d_state, d_vectors = carry[:num_states], carry[num_states:]
        d_after = (d_state[0] + d_outputs[t], *d_state[1:])  # [batch, hidden]
        zeros = tuple(tf.zeros_like(d) for d in d_after)
        d = differentiate(t, d_after if mask is None else _select(mask[t], d_after, zeros))
        d_before = d.before
        if transposed is not None:
            d_before = (d_before[0] + matmul(d.q, transposed, compute_dtype), *d_before[1:])
        if mask is not None:  # a skipped step passes its gradient on unchanged
            skipped = _select(mask[t], zeros, d_after)
            d_before = tuple(a + b for a, b in zip(d_before, skipped, strict=True))
        d_vectors = tuple(a + b for a, b in zip(d_vectors, d.vectors, strict=True))
        sums = (d.p, d.q) if has_two_sums else (d.p,)
        return (*d_before, *d_vectors), (*sums, *itertools.chain(*d.products))

    length, batch = d_outputs.shape[:2]
    columns = [cell_class.num_gates * d_outputs.shape[2]]
    # the two gradients of a cell without separate sums are equal
    has_two_sums = weights.kernel is not None and (cell_class.has_separate_sums or after is None)
    if has_two_sums:
        columns.append(cell_class.num_recurrent_gates * d_outputs.shape[2])
    columns += itertools.chain(*(matrix.shape for matrix in weights.matrices))
    carry = (*d_last, *(tf.zeros_like(vector) for vector in weights.vectors))
    shapes = [tf.TensorShape([batch, size]) for size in columns]
    carry, outputs = scan(step, carry, length, shapes, reverse=True, unroll=unroll)
    d_p, *rest = outputs
    d_q = rest.pop(0) if has_two_sums else None
    products = tuple(zip(rest[::2], rest[1::2], strict=True))
    return carry[:num_states], carry[num_states:], StepGradients(d_p, d_q, (), (), products)


def _select(mask: tf.Tensor, new: State, old: State) -> State:
    """Returns the rows of `new` where the mask `[batch]` is true, and of `old` elsewhere."""
    return tuple(tf.where(mask[:, tf.newaxis], n, o) for n, o in zip(new, old, strict=True))
