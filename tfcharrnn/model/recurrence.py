"""Running a cell over a sequence, with a backward pass of its own.

Backpropagation through time (Werbos 1990) of any cell is one idea. The forward loop keeps each step's states. The
backward loop walks them in reverse and makes only the gradients of the two sums that enter a step, x W + b and h U.
The gradient of U is then one large product over all steps, instead of a small one at every step, and so is that of W
outside. `tf.GradientTape` sees the whole sequence as a single operation.

Time comes first in every tensor here, `[time, batch, ...]`, so that a step reads one contiguous block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfcharrnn.model.cells import Cell, State
from tfcharrnn.model.cells.base import product
from tfcharrnn.model.input_projection import Rows, lookup_gradient

Step = Callable[[tf.Tensor, State], tuple[State, State]]


def scan(
    step: Step, carry: State, length: int, shapes: Sequence[tf.TensorShape], reverse: bool = False
) -> tuple[State, State]:
    """Runs `step(t, carry) -> (carry, outputs)` for every t in one loop and stacks the outputs.

    Args:
        step: one step.
        carry: what goes from step to step.
        length: how many steps.
        shapes: of each output of one step.
        reverse: from the last t to the first.

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


def run_cell(
    cell: Cell, inputs: Rows | tf.Tensor, state: State, mask: tf.Tensor | None = None
) -> tuple[tf.Tensor, State]:
    """Runs a cell over a sequence; gradients come by the backward pass written here.

    Args:
        cell: the cell.
        inputs: x W + b of every step, `[time, batch, gates * hidden]`, or rows to look up.
        state: before the first step, each `[batch, hidden]`.
        mask: bool `[time, batch]`; where it is false, the state is carried on unchanged.

    Returns:
        The outputs, `[time, batch, hidden]`, and the state after the last step.
    """
    source, ids = (inputs.table, inputs.ids) if isinstance(inputs, Rows) else (inputs, None)
    kernel = tf.convert_to_tensor(cell.recurrent_kernel)
    bias = cell.recurrent_bias
    biases = () if bias is None else (bias,)  # the tape wants tensors, not None

    @tf.custom_gradient
    def run(
        source: tf.Tensor, kernel: tf.Tensor, *rest: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, ...], Callable[..., tuple[tf.Tensor, ...]]]:
        bias, state = (rest[0] if biases else None), rest[len(biases) :]
        last, states, saved = _loop(_forward_loop, cell)(source, ids, kernel, bias, state, mask)

        def gradient(d_outputs: tf.Tensor, *d_last: tf.Tensor) -> tuple[tf.Tensor, ...]:
            before = tuple(tf.concat([s[tf.newaxis], rest[:-1]], 0) for s, rest in zip(state, states, strict=True))
            d_state, d_sums = _loop(_backward_loop, cell)(kernel, before, states, saved, mask, d_outputs, d_last)
            d_rows = tf.reshape(d_sums[-1], [-1, kernel.shape[1]])
            d_kernel = cell.product(tf.reshape(before[0], [-1, kernel.shape[0]]), d_rows, transpose_a=True)
            d_bias = (tf.reduce_sum(d_rows, 0),) if biases else ()
            d_source = d_sums[0] if ids is None else lookup_gradient(d_sums[0], ids, source.shape[0])
            return (d_source, d_kernel, *d_bias, *d_state)

        return (states[0], *last), gradient

    outputs, *last = run(source, kernel, *biases, *state)
    return outputs, tuple(last)


def run_cell_by_tape(
    cell: Cell, inputs: Rows | tf.Tensor, state: State, mask: tf.Tensor | None = None
) -> tuple[tf.Tensor, State]:
    """The same as `run_cell`, but differentiated by `tf.GradientTape` step by step: slower, and a check on it."""
    projected = inputs.dense() if isinstance(inputs, Rows) else inputs
    kernel = tf.convert_to_tensor(cell.recurrent_kernel)
    last, states, _ = _forward_loop(
        type(cell), cell.compute_dtype, projected, None, kernel, cell.recurrent_bias, state, mask
    )
    return states[0], last


def step_cell(cell: Cell, projected: tf.Tensor, state: State) -> State:
    """One step of a cell: its state after `projected`, x W + b, `[batch, gates * hidden]`."""
    kernel = tf.convert_to_tensor(cell.recurrent_kernel)
    return _step(type(cell), cell.compute_dtype, projected, kernel, cell.recurrent_bias, state)[0]


def _loop(loop: Callable[..., Any], cell: Cell) -> Callable[..., Any]:
    """A loop for a cell's kind and precision; within a graph it is a program of its own, compiled by XLA.

    XLA makes one kernel of a step's arithmetic, so a loop is several times faster with it, even where it does not
    compile the graph around it. On a CPU it had better not: there TensorFlow gives the large products outside the
    loops to oneDNN, which is faster at them.
    """
    if tf.inside_function():
        return _compiled_loop(loop, type(cell), cell.compute_dtype)
    return functools.partial(loop, type(cell), cell.compute_dtype)


@functools.cache
def _compiled_loop(loop: Callable[..., Any], kind: type[Cell], compute_dtype: tf.DType) -> Callable[..., Any]:
    """One function for all layers and models, so that equal shapes are compiled once."""
    return tf.function(functools.partial(loop, kind, compute_dtype), jit_compile=True, autograph=False)


def _step(
    kind: type[Cell],
    compute_dtype: tf.DType,
    projected: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    state: State,
) -> tuple[State, State]:
    """Returns the state after a step, and what the step saved."""
    recurrent = product(state[0], kernel, compute_dtype)
    return kind.forward(projected, recurrent if bias is None else recurrent + bias, state)


def _keep(mask: tf.Tensor | None, t: tf.Tensor, new: State, old: State) -> State:
    """`new` where the mask of step t is true, `old` elsewhere."""
    if mask is None:
        return new
    real = mask[t][:, tf.newaxis]
    return tuple(tf.where(real, n, o) for n, o in zip(new, old, strict=True))


def _forward_loop(
    kind: type[Cell],
    compute_dtype: tf.DType,
    source: tf.Tensor,
    ids: tf.Tensor | None,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    state: State,
    mask: tf.Tensor | None,
) -> tuple[State, State, State]:
    """Returns the last state, every step's state and what every step saved, each `[time, ...]`.

    x W + b of a step is `source[t]`, or with ids the rows `source[ids[t]]`.
    """

    def step(t: tf.Tensor, state: State) -> tuple[State, State]:
        projected = source[t] if ids is None else tf.gather(source, ids[t])
        new, saved = _step(kind, compute_dtype, projected, kernel, bias, state)
        state = _keep(mask, t, new, state)
        return state, (*state, *saved)

    length = source.shape[0] if ids is None else ids.shape[0]
    last, outputs = scan(step, state, length, [state[0].shape] * (kind.state_count + kind.saved_count))
    return last, outputs[: kind.state_count], outputs[kind.state_count :]


def _backward_loop(
    kind: type[Cell],
    compute_dtype: tf.DType,
    kernel: tf.Tensor,
    before: State,
    states: State,
    saved: State,
    mask: tf.Tensor | None,
    d_outputs: tf.Tensor,
    d_last: State,
) -> tuple[State, State]:
    """Returns the gradients by the first state, and by the sums of every step: x W + b, and h U + b' if it differs."""
    transposed = tf.transpose(kernel)

    def step(t: tf.Tensor, d_state: State) -> tuple[State, State]:
        d_state = (d_state[0] + d_outputs[t], *d_state[1:])
        zeros = tuple(tf.zeros_like(d) for d in d_state)
        d_projected, d_recurrent, d_before = kind.backward(
            tuple(array[t] for array in saved),
            tuple(array[t] for array in before),
            tuple(array[t] for array in states),
            _keep(mask, t, d_state, zeros),
        )
        d_before = (d_before[0] + product(d_recurrent, transposed, compute_dtype), *d_before[1:])
        if mask is not None:  # a step that was skipped hands its gradient on as it is
            skipped = _keep(mask, t, zeros, d_state)
            d_before = tuple(d + s for d, s in zip(d_before, skipped, strict=True))
        return d_before, (d_projected, d_recurrent) if kind.two_sums else (d_projected,)

    shape = tf.TensorShape([d_outputs.shape[1], kernel.shape[1]])
    return scan(step, tuple(d_last), d_outputs.shape[0], [shape] * (1 + kind.two_sums), reverse=True)
