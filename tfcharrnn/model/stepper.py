"""Runs a model one symbol at a time, for loops that choose the next symbol.

For a single text each product of a step is a vector times a matrix, which XLA computes on one core. Two halves of the
columns as one batched product keep two cores busy; and the two sums of a layer, p = x W + b and q = h U + b', have
matrices of the same shape where x is the output of another layer, so that both are one batched product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tfcharrnn.model import input_projection
from tfcharrnn.model.cells import Cell, State
from tfcharrnn.model.cells.base import matmul
from tfcharrnn.model.char_rnn import CharRNN

# maps x `[batch, input]`, or None, and h `[batch, hidden]` to p, None without x, and q, None without U
_StepSums = Callable[[tf.Tensor | None, tf.Tensor], tuple[tf.Tensor | None, tf.Tensor | None]]

# with fewer numbers in the matrices, two cores take longer than one
_MIN_SIZE_TO_SPLIT = 2**16


class Stepper(NamedTuple):
    """Runs a model one symbol at a time.

    Attributes:
        advance: `advance(ids, state)` reads the symbols `[batch]` and returns the state after them. The id
            `vocabulary_size` stands for no symbol, a vector of zeros.
        logits: `logits(state)` returns the logits of the next symbol, `[batch, vocabulary]`.
    """

    advance: Callable[[tf.Tensor, Sequence[State]], tuple[State, ...]]
    logits: Callable[[Sequence[State]], tf.Tensor]


def make_stepper(model: CharRNN, batch_size: int | None = None) -> Stepper:
    """Returns the functions that run a model; what every step shares is computed here.

    Args:
        model: the model.
        batch_size: number of texts, where it is known.
    """
    embedding = None if model.embedding is None else tf.convert_to_tensor(model.embedding)
    table = input_projection.project_vocabulary(model.cells[0], embedding, has_zero_id=True)
    sums = [
        _make_step_sums(cell, reads_vectors=layer > 0, batch_size=batch_size) for layer, cell in enumerate(model.cells)
    ]

    def advance(ids: tf.Tensor, state: Sequence[State]) -> tuple[State, ...]:
        after: list[State] = []
        for cell, compute_sums, before in zip(model.cells, sums, state, strict=True):
            x = model.combine_outputs([layer_state[0] for layer_state in after]) if after else None
            p, q = compute_sums(x, before[0])
            after.append(cell.step(tf.gather(table, model.replace_start(ids)) if p is None else p, q, before))
        return tuple(after)

    def logits(state: Sequence[State]) -> tf.Tensor:
        hidden = model.combine_outputs([layer_state[0] for layer_state in state])
        return matmul(hidden, model.output_weights, model.compute_dtype) + model.output_bias

    return Stepper(advance, logits)


def _make_step_sums(cell: Cell, *, reads_vectors: bool, batch_size: int | None) -> _StepSums:
    """Returns the function that computes both sums; what every step shares is computed here.

    Args:
        cell: provides W, U and the biases.
        reads_vectors: whether there is an x; otherwise p is looked up in a table.
        batch_size: number of texts; None: not known yet.
    """

    def compute_sums(x: tf.Tensor | None, h: tf.Tensor) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        return None if x is None else cell.project(x), cell.recur(h)

    parts = [(cell.kernel, cell.input_bias)] if reads_vectors else []
    if cell.recurrent_kernel is not None:
        parts.append((cell.recurrent_kernel, cell.recurrent_bias))
    kernels = [kernel for kernel, _ in parts]
    if batch_size != 1 or tf.config.list_logical_devices("GPU") or not _can_split(kernels):
        return compute_sums
    multiply = _make_split_products(list(map(tf.convert_to_tensor, kernels)), cell.compute_dtype)

    def compute_split_sums(x: tf.Tensor | None, h: tf.Tensor) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        vectors = [h] if x is None else [x, h][: len(parts)]
        sums = [
            product if bias is None else product + bias
            for product, (_, bias) in zip(multiply(vectors), parts, strict=True)
        ]
        return (None, *sums) if x is None else (*sums, None)[:2]

    return compute_split_sums


def _can_split(kernels: Sequence[tf.Variable]) -> bool:
    """Returns whether matrices are of one shape, with columns that can be halved, and large enough."""
    shapes = {tuple(kernel.shape) for kernel in kernels}
    size = sum(kernel.shape.num_elements() for kernel in kernels)
    return len(shapes) == 1 and kernels[0].shape[1] % 2 == 0 and size >= _MIN_SIZE_TO_SPLIT


def _make_split_products(
    matrices: Sequence[tf.Tensor], compute_dtype: tf.DType
) -> Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]:
    """Returns the function that multiplies vectors `[1, rows]`, each with its matrix `[rows, columns]`, in halves."""
    number, (rows, columns) = len(matrices), matrices[0].shape
    stacked = tf.reshape(tf.cast(tf.stack(matrices), compute_dtype), [number, rows, 2, columns // 2])
    halves = tf.transpose(stacked, [0, 2, 1, 3])

    def multiply(vectors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        twice = tf.broadcast_to(tf.cast(tf.stack(vectors), compute_dtype)[:, tf.newaxis], [number, 2, 1, rows])
        products = tf.cast(tf.linalg.matmul(twice, halves), vectors[0].dtype)
        return tf.unstack(tf.reshape(products, [number, 1, columns]))

    return multiply
