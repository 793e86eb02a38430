"""Runs a recurrent layer over a sequence, with its own backward pass.

Backpropagation through time (Werbos 1990), the same for every cell. The forward loop stores the states of each step.
The backward loop visits the steps in reverse and computes only the gradients of the two sums of each step,
p = x W + b and q = h U (+ b'). The gradient of U is then one large product over all steps instead of a small one per
step, and so is that of W. `tf.GradientTape` sees the whole sequence as a single operation.

Time comes first in every tensor, `[time, batch, ...]`, so that each step reads one contiguous block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfcharrnn.model.cells import Cell, State
from tfcharrnn.model.cells.base import matmul
from tfcharrnn.model.input_projection import SymbolInput, project_inputs, sum_row_gradients


def run_layer(
    cell: Cell,
    inputs: SymbolInput | tf.Tensor,
    state: State,
    kernel: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
) -> tuple[tf.Tensor, State]:
    """Runs a layer over a sequence.

    Args:
        cell: the cell.
        inputs: symbols, or vectors `[time, batch, input]`.
        state: the state before the first step, tensors `[batch, hidden]`.
        kernel: the recurrent kernel, such as one with dropped weights; None: the cell's.
        mask: bool `[time, batch]`; where it is false, the step is skipped and the state stays the same.

    Returns:
        The outputs, `[time, batch, hidden]`, and the state after the last step.
    """
    source, ids = project_inputs(cell, inputs)
    kernel = tf.convert_to_tensor(cell.recurrent_kernel if kernel is None else kernel)
    bias = cell.recurrent_bias
    biases = () if bias is None else (bias,)  # `tf.custom_gradient` takes tensors, not None

    @tf.custom_gradient
    def run(
        source: tf.Tensor, kernel: tf.Tensor, *rest: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, ...], Callable[..., tuple[tf.Tensor, ...]]]:
        bias, state = (rest[0] if biases else None), rest[len(biases) :]
        last, states, saved = _forward_loop(type(cell), cell.compute_dtype, source, ids, kernel, bias, state, mask)

        def gradient(d_outputs: tf.Tensor, *d_last: tf.Tensor) -> tuple[tf.Tensor, ...]:
            before = tuple(tf.concat([s[tf.newaxis], steps[:-1]], 0) for s, steps in zip(state, states, strict=True))
            d_state, d_sums = _backward_loop(
                type(cell), cell.compute_dtype, kernel, before, states, saved, mask, d_outputs, d_last
            )
            d_p, d_q = d_sums[0], tf.reshape(d_sums[-1], [-1, kernel.shape[1]])
            d_kernel = cell.matmul(tf.reshape(before[0], [-1, kernel.shape[0]]), d_q, transpose_a=True)
            d_bias = (tf.reduce_sum(d_q, 0),) if biases else ()
            d_source = d_p if ids is None else sum_row_gradients(d_p, ids, source.shape[0])
            return (d_source, d_kernel, *d_bias, *d_state)

        return (states[0], *last), gradient

    outputs, *last = run(source, kernel, *biases, *state)
    return outputs, tuple(last)


def _compile_in_graphs(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a loop a program of its own, compiled by XLA, wherever it is part of a graph.

    XLA fuses the arithmetic of a step into one kernel, so a loop is several times faster with it, even where XLA does
    not compile the surrounding graph. On a CPU it should not: there TensorFlow leaves the large products outside the
    loops to oneDNN, which is faster at them.

    There is one compiled function for each cell class and dtype, which all layers and models share, so that equal
    shapes are compiled once.
    """

    @functools.cache
    def compile_loop(cell_class: type[Cell], compute_dtype: tf.DType) -> Callable[..., Any]:
        return tf.function(functools.partial(loop, cell_class, compute_dtype), jit_compile=True, autograph=False)

    @functools.wraps(loop)
    def call(cell_class: type[Cell], compute_dtype: tf.DType, *args: Any) -> Any:
        if tf.inside_function():
            return compile_loop(cell_class, compute_dtype)(*args)
        return loop(cell_class, compute_dtype, *args)

    return call


@_compile_in_graphs
def _forward_loop(
    cell_class: type[Cell],
    compute_dtype: tf.DType,
    source: tf.Tensor,
    ids: tf.Tensor | None,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    state: State,
    mask: tf.Tensor | None,
) -> tuple[State, State, State]:
    """Runs the steps of a sequence in order.

    Args:
        cell_class: computes a step, `Cell.forward`.
        compute_dtype: dtype of the matrix products.
        source: x W + b, `[time, batch, gates * hidden]`, or with `ids` a table `[symbols, gates * hidden]`.
        ids: `[time, batch]`, the row of the table for each step; None: no table.
        kernel: U, `[hidden, gates * hidden]`.
        bias: b', `[gates * hidden]`, or None.
        state: the state before the first step, tensors `[batch, hidden]`.
        mask: bool `[time, batch]`, false for steps to skip; None: none.

    Returns:
        The state after the last step, the states after each step and what each step saved, tensors
        `[time, batch, hidden]`.
    """

    def step(t: tf.Tensor, state: State) -> tuple[State, State]:
        p = source[t] if ids is None else tf.gather(source, ids[t])  # [batch, gates * hidden]
        q = matmul(state[0], kernel, compute_dtype)  # [batch, gates * hidden]
        after, saved = cell_class.forward(p, q if bias is None else q + bias, state)
        if mask is not None:
            after = _select(mask[t], after, state)
        return after, (*after, *saved)

    length = source.shape[0] if ids is None else ids.shape[0]
    num_states = cell_class.num_state_tensors
    last, outputs = scan(step, state, length, [state[0].shape] * (num_states + cell_class.num_saved_tensors))
    return last, outputs[:num_states], outputs[num_states:]


@_compile_in_graphs
def _backward_loop(
    cell_class: type[Cell],
    compute_dtype: tf.DType,
    kernel: tf.Tensor,
    before: State,
    after: State,
    saved: State,
    mask: tf.Tensor | None,
    d_outputs: tf.Tensor,
    d_last: State,
) -> tuple[State, State]:
    """Visits the steps of a sequence in reverse, the derivative of `_forward_loop`.

    Args:
        cell_class: computes the derivative of a step, `Cell.backward`.
        compute_dtype: dtype of the matrix products.
        kernel: U, `[hidden, gates * hidden]`.
        before: the states before each step, tensors `[time, batch, hidden]`.
        after: the states after each step.
        saved: what each step saved.
        mask: bool `[time, batch]`, false for skipped steps; None: none.
        d_outputs: the loss's gradient by the outputs, `[time, batch, hidden]`.
        d_last: the loss's gradient by the state after the last step, tensors `[batch, hidden]`.

    Returns:
        The gradients by the state before the first step, `[batch, hidden]`, and by p and q of every step,
        `[time, batch, gates * hidden]`; where the two are equal, only one.
    """
    transposed = tf.transpose(kernel)

    def step(t: tf.Tensor, d_state: State) -> tuple[State, State]:
        d_after = (d_state[0] + d_outputs[t], *d_state[1:])  # [batch, hidden]
        zeros = tuple(tf.zeros_like(d) for d in d_after)
        d_p, d_q, d_before = cell_class.backward(
            tuple(array[t] for array in saved),
            tuple(array[t] for array in before),
            tuple(array[t] for array in after),
            d_after if mask is None else _select(mask[t], d_after, zeros),
        )
        d_before = (d_before[0] + matmul(d_q, transposed, compute_dtype), *d_before[1:])
        if mask is not None:  # a skipped step passes its gradient on unchanged
            skipped = _select(mask[t], zeros, d_after)
            d_before = tuple(d + s for d, s in zip(d_before, skipped, strict=True))
        return d_before, (d_p, d_q) if cell_class.has_separate_sums else (d_p,)

    num_sums = 1 + cell_class.has_separate_sums
    shape = tf.TensorShape([d_outputs.shape[1], kernel.shape[1]])
    return scan(step, tuple(d_last), d_outputs.shape[0], [shape] * num_sums, reverse=True)


def _select(mask: tf.Tensor, new: State, old: State) -> State:
    """Returns the rows of `new` where the mask `[batch]` is true, and of `old` elsewhere."""
    return tuple(tf.where(mask[:, tf.newaxis], n, o) for n, o in zip(new, old, strict=True))


def scan(
    step: Callable[[tf.Tensor, State], tuple[State, State]],
    carry: State,
    length: int,
    shapes: Sequence[tf.TensorShape],
    reverse: bool = False,
) -> tuple[State, State]:
    """Runs `step(t, carry) -> (carry, outputs)` for every t in one `tf.while_loop` and stacks the outputs.

    Args:
        step: one step.
        carry: the tensors that each step passes to the next.
        length: number of steps.
        shapes: the shapes of the outputs of one step.
        reverse: run from the last t to the first.

    Returns:
        The last carry, and the outputs, each `[length, ...]` in the order of t.
    """
    arrays = tuple(tf.TensorArray(carry[0].dtype, length, element_shape=shape) for shape in shapes)

    def body(
        count: tf.Tensor, carry: State, arrays: tuple[tf.TensorArray, ...]
    ) -> tuple[tf.Tensor, State, tuple[tf.TensorArray, ...]]:
        t = length - 1 - count if reverse else count
        carry, outputs = step(t, carry)
        return count + 1, carry, tuple(array.write(t, output) for array, output in zip(arrays, outputs, strict=True))

    _, carry, arrays = tf.while_loop(
        lambda count, *_: count < length, body, (tf.constant(0), carry, arrays), maximum_iterations=length
    )
    return carry, tuple(array.stack() for array in arrays)
