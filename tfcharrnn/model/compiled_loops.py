"""Loops over the steps of a sequence, compiled by XLA."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfcharrnn.model.cells.base import Cell, State


def compile_in_graphs(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a loop a program of its own, compiled by XLA, wherever it is part of a graph.

    XLA fuses the arithmetic of a step into one kernel, so a loop is several times faster with it, even where XLA does
    not compile the surrounding graph. On a CPU it should not: there TensorFlow leaves the large products outside the
    loops to oneDNN, which is faster at them.

    There is one compiled function for each cell class and dtype, which all layers and models share, so that equal
    shapes are compiled once; on a GPU one with TF32 and one without, since XLA compiles that in.
    """

    @functools.cache
    def compile_loop(cell_class: type[Cell], compute_dtype: tf.DType, tf32: bool) -> Callable[..., Any]:
        return tf.function(functools.partial(loop, cell_class, compute_dtype), jit_compile=True, autograph=False)

    @functools.wraps(loop)
    def call(cell_class: type[Cell], compute_dtype: tf.DType, *args: Any) -> Any:
        if tf.inside_function():
            tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
            return compile_loop(cell_class, compute_dtype, tf32)(*args)
        return loop(cell_class, compute_dtype, *args)

    return call


def scan(
    step: Callable[[tf.Tensor, State], tuple[State, State]],
    carry: State,
    length: int,
    shapes: Sequence[tf.TensorShape],
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[State, State]:
    """Runs `step(t, carry) -> (carry, outputs)` for every t in one `tf.while_loop` and stacks the outputs.

    Args:
        step: one step.
        carry: the tensors that each step passes to the next.
        length: number of steps.
        shapes: the shapes of the outputs of one step.
        reverse: run from the last t to the first.
        unroll: steps in a turn of the loop. On a GPU each turn is started from the host, which more steps a turn hide;
            they take longer to compile.

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

    def turn(*loop: Any) -> Any:
        for _ in range(unroll):
            loop = body(*loop)
        return loop

    turns = length // unroll
    loop: Any = tf.while_loop(
        lambda count, *_: count < turns * unroll, turn, (tf.constant(0), carry, arrays), maximum_iterations=turns
    )
    for _ in range(length % unroll):
        loop = body(*loop)
    _, carry, arrays = loop
    return carry, tuple(array.stack() for array in arrays)
