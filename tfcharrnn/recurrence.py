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

from tfcharrnn.cells import Cell, State
from tfcharrnn.projection import Rows, lookup_gradient

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


def _compiled(loop: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a loop; within a graph as a program of its own, compiled by XLA, even where the graph around it is not.

    XLA makes one kernel of a step's arithmetic, so a loop is several times faster with it. The large products outside
    the loops are faster without it on a CPU, where TensorFlow gives them to oneDNN.
    """
    if not tf.inside_function():
        return loop(*arguments)
    return tf.function(loop, jit_compile=True, autograph=False)(*arguments)


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
        loop = functools.partial(_forward_loop, cell, ids=ids, mask=mask)
        last, states, saved = _compiled(loop, source, kernel, bias, state)

        def gradient(d_outputs: tf.Tensor, *d_last: tf.Tensor) -> tuple[tf.Tensor, ...]:
            d_projected, *d_rest = _backward_loop(cell, kernel, state, states, saved, mask, d_outputs, d_last)
            d_source = d_projected if ids is None else lookup_gradient(d_projected, ids, source.shape[0])
            return (d_source, *d_rest)

        return (states[0], *last), gradient

    outputs, *last = run(source, kernel, *biases, *state)
    return outputs, tuple(last)


def run_cell_by_tape(
    cell: Cell, inputs: Rows | tf.Tensor, state: State, mask: tf.Tensor | None = None
) -> tuple[tf.Tensor, State]:
    """The same as `run_cell`, but differentiated by `tf.GradientTape` step by step: slower, and a check on it."""
    projected = inputs.dense() if isinstance(inputs, Rows) else inputs
    kernel = tf.convert_to_tensor(cell.recurrent_kernel)
    last, states, _ = _forward_loop(cell, projected, kernel, cell.recurrent_bias, state, ids=None, mask=mask)
    return states[0], last


def step_cell(cell: Cell, projected: tf.Tensor, state: State) -> State:
    """One step of a cell: its state after `projected`, x W + b, `[batch, gates * hidden]`."""
    return _step(cell, projected, tf.convert_to_tensor(cell.recurrent_kernel), cell.recurrent_bias, state)[0]


def _step(
    cell: Cell, projected: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None, state: State
) -> tuple[State, State]:
    """Returns the state after a step, and what the step saved."""
    recurrent = cell.product(state[0], kernel)
    return cell.forward(projected, recurrent if bias is None else recurrent + bias, state)


def _keep(mask: tf.Tensor | None, t: tf.Tensor, new: State, old: State) -> State:
    """`new` where the mask of step t is true, `old` elsewhere."""
    if mask is None:
        return new
    real = mask[t][:, tf.newaxis]
    return tuple(tf.where(real, n, o) for n, o in zip(new, old, strict=True))


def _forward_loop(
    cell: Cell,
    source: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    state: State,
    *,
    ids: tf.Tensor | None,
    mask: tf.Tensor | None,
) -> tuple[State, State, State]:
    """Returns the last state, every step's state and what every step saved, each `[time, ...]`."""

    def step(t: tf.Tensor, state: State) -> tuple[State, State]:
        projected = source[t] if ids is None else tf.gather(source, ids[t])
        new, saved = _step(cell, projected, kernel, bias, state)
        state = _keep(mask, t, new, state)
        return state, (*state, *saved)

    length = source.shape[0] if ids is None else ids.shape[0]
    last, outputs = scan(step, state, length, [state[0].shape] * (cell.state_count + cell.saved_count))
    return last, outputs[: cell.state_count], outputs[cell.state_count :]


def _backward_loop(
    cell: Cell,
    kernel: tf.Tensor,
    state: State,
    states: State,
    saved: State,
    mask: tf.Tensor | None,
    d_outputs: tf.Tensor,
    d_last: State,
) -> tuple[tf.Tensor, ...]:
    """Returns the gradients by x W + b, the kernel, the recurrent bias if the cell has one, and the first state."""
    length, batch, hidden = states[0].shape
    before = tuple(tf.concat([first[tf.newaxis], rest[:-1]], 0) for first, rest in zip(state, states, strict=True))
    transposed = tf.transpose(kernel)

    def step(t: tf.Tensor, d_state: State) -> tuple[State, State]:
        d_state = (d_state[0] + d_outputs[t], *d_state[1:])
        zeros = tuple(tf.zeros_like(d) for d in d_state)
        d_projected, d_recurrent, d_before = cell.backward(
            tuple(array[t] for array in saved),
            tuple(array[t] for array in before),
            tuple(array[t] for array in states),
            _keep(mask, t, d_state, zeros),
        )
        d_before = (d_before[0] + cell.product(d_recurrent, transposed), *d_before[1:])
        if mask is not None:  # a step that was skipped hands its gradient on as it is
            skipped = _keep(mask, t, zeros, d_state)
            d_before = tuple(d + s for d, s in zip(d_before, skipped, strict=True))
        return d_before, (d_projected, d_recurrent) if cell.two_sums else (d_projected,)

    shape = tf.TensorShape([batch, kernel.shape[1]])
    loop = functools.partial(scan, step, length=length, shapes=[shape] * (1 + cell.two_sums), reverse=True)
    d_state, d_sums = _compiled(loop, d_last)
    d_rows = tf.reshape(d_sums[-1], [-1, kernel.shape[1]])
    d_kernel = cell.product(tf.reshape(before[0], [-1, hidden]), d_rows, transpose_a=True)
    d_bias = (tf.reduce_sum(d_rows, 0),) if cell.recurrent_bias is not None else ()
    return (d_sums[0], d_kernel, *d_bias, *d_state)
