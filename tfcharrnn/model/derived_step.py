"""The derivative of one step of a cell, derived from its `forward`.

The backward loop visits a step with the state before it and the gradient of the loss by the state after it. Here it
runs `forward` of that step once more under a `tf.GradientTape`, and takes the vector-Jacobian product. Two things make
that cheap. What a step multiplies with a matrix, q = h U and the products with extra matrices, need not be computed
again: the forward loop keeps the results. And the gradient of a matrix is not summed step by step: the loop collects
what each step multiplied with it and the gradient of the product, so that it is one large product over all steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfcharrnn.errors import CellError
from tfcharrnn.model.cells.base import Cell, State, matmul


class StepWeights(NamedTuple):
    """The weights of a step.

    Attributes:
        kernel: U, `[hidden, recurrent gates * hidden]`; None if the cell has none.
        bias: b', `[recurrent gates * hidden]`, or None.
        extras: the extra weights, in the order of `Cell.extra_weights`.
    """

    kernel: tf.Tensor | None
    bias: tf.Tensor | None
    extras: State

    @property
    def vectors(self) -> State:
        """The extra weights that are vectors."""
        return tuple(value for value in self.extras if value.shape.rank == 1)

    @property
    def matrices(self) -> State:
        """The extra weights that are matrices."""
        return tuple(value for value in self.extras if value.shape.rank == 2)


class StepGradients(NamedTuple):
    """The gradients of a loss by what a step read.

    Attributes:
        p: by x W + b.
        q: by h U + b'; None if the cell has none.
        before: by the state before, without its path through q.
        vectors: by each extra vector.
        products: for each extra matrix what was multiplied with it, `[batch, rows]`, and the gradient by the product,
            `[batch, columns]`.
    """

    p: tf.Tensor
    q: tf.Tensor | None
    before: State
    vectors: State
    products: tuple[tuple[tf.Tensor, tf.Tensor], ...]


def compute_recurrent_sum(h: tf.Tensor, weights: StepWeights, compute_dtype: tf.DType) -> tf.Tensor | None:
    """Returns q = h U (+ b'), `[batch, recurrent gates * hidden]`; None for a cell without recurrent kernel."""
    if weights.kernel is None:
        return None
    q = matmul(h, weights.kernel, compute_dtype)
    return q if weights.bias is None else q + weights.bias


def run_step(
    cell_class: type[Cell], compute_dtype: tf.DType, p: tf.Tensor, state: State, weights: StepWeights
) -> tuple[State, State]:
    """Runs a step; returns the state after it, and tensors for the backward loop, see `list_kept_shapes`."""
    q = compute_recurrent_sum(state[0], weights, compute_dtype)
    products: dict[int, tf.Tensor] = {}

    def multiply(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        _check_first_use(cell_class, products, matrix)
        products[id(matrix)] = product = matmul(x, matrix, compute_dtype)
        return product

    after, saved = cell_class.run_forward(p, q, state, cell_class.bind_extras(weights.extras, multiply))
    if cell_class.has_own_backward():
        return after, saved
    if not cell_class.keeps_products:
        return after, ()
    kept = () if q is None else (q,)
    return after, (*kept, *(_take_product(cell_class, products, matrix) for matrix in weights.matrices))


@functools.cache
def check_step(cell_class: type[Cell], hidden_size: int) -> None:
    """Checks a step of a cell by tracing it, which computes nothing, before a run is written that cannot use it.

    Raises:
        CellError: the step fails, or does not return a state.
    """

    def trace() -> State:
        p = tf.zeros([2, cell_class.num_gates * hidden_size])
        state = (tf.zeros([2, hidden_size]),) * cell_class.num_state_tensors
        extras = tuple(tf.zeros(weight.shape(hidden_size)) for weight in cell_class.extra_weights.values())
        columns = cell_class.num_recurrent_gates * hidden_size
        weights = StepWeights(tf.zeros([hidden_size, columns]) if columns else None, None, extras)
        if cell_class.is_linear:  # which may use a matrix more than once
            return cell_class.run_forward(p, None, state, cell_class.bind_extras(extras, tf.matmul))[0]
        return run_step(cell_class, tf.float32, p, state, weights)[0]

    tf.function(trace, autograph=False).get_concrete_function()


def list_kept_shapes(cell_class: type[Cell], state: State, weights: StepWeights) -> list[tf.TensorShape]:
    """Returns the shapes of the tensors that `run_step` keeps."""
    if cell_class.has_own_backward():
        return [state[0].shape] * cell_class.num_saved_tensors
    if not cell_class.keeps_products:
        return []
    matrices = (() if weights.kernel is None else (weights.kernel,)) + weights.matrices
    return [tf.TensorShape([state[0].shape[0], matrix.shape[1]]) for matrix in matrices]


def differentiate_step(
    cell_class: type[Cell],
    compute_dtype: tf.DType,
    p: tf.Tensor,
    kept: State,
    before: State,
    d_after: State,
    weights: StepWeights,
    transposes: State,
) -> StepGradients:
    """Computes the derivative of `run_step` for a cell that has none by hand.

    Args:
        cell_class: the cell.
        compute_dtype: dtype of the matrix products.
        p: x W + b of the step.
        kept: what `run_step` kept.
        before: the state before the step.
        d_after: the loss's gradient by the state after the step.
        weights: the weights of the step.
        transposes: the transposes of its extra matrices.
    """
    transposed = {id(matrix): transpose for matrix, transpose in zip(weights.matrices, transposes, strict=True)}
    results = list(kept)
    if cell_class.keeps_products:
        q = results.pop(0) if weights.kernel is not None else None
    else:
        q = compute_recurrent_sum(before[0], weights, compute_dtype)
    known = {id(matrix): result for matrix, result in zip(weights.matrices, results, strict=False)}
    inputs: dict[int, tf.Tensor] = {}
    gradients: dict[int, tf.Tensor] = {}

    def multiply(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        _check_first_use(cell_class, inputs, matrix)
        key = id(matrix)
        inputs[key] = x

        @tf.custom_gradient
        def product(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            def gradient(d_product: tf.Tensor) -> tf.Tensor:
                gradients[key] = d_product
                return matmul(d_product, transposed[key], compute_dtype)

            result = known[key] if key in known else matmul(x, matrix, compute_dtype)
            return tf.identity(result), gradient

        return product(x)

    sources = {"p": p, "before": before, "vectors": weights.vectors} | ({} if q is None else {"q": q})
    with tf.GradientTape() as tape:
        tape.watch(sources)
        extras = cell_class.bind_extras(weights.extras, multiply)
        after, _ = cell_class.run_forward(p, q, before, extras)
    d = tape.gradient(after, sources, d_after, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    products = tuple(
        (_take_product(cell_class, inputs, matrix), _take_product(cell_class, gradients, matrix))
        for matrix in weights.matrices
    )
    return StepGradients(d["p"], d.get("q"), d["before"], d["vectors"], products)


def _take_product(cell_class: type[Cell], by_matrix: dict[int, tf.Tensor], matrix: tf.Tensor) -> tf.Tensor:
    """Returns what a step noted about the product with a matrix."""
    if id(matrix) not in by_matrix:
        raise CellError(f"{cell_class.__name__}.forward must use each of its extra matrices once, and in its result")
    return by_matrix[id(matrix)]


def _check_first_use(cell_class: type[Cell], by_matrix: dict[int, tf.Tensor], matrix: tf.Tensor) -> None:
    """Checks that a step has not used a matrix yet."""
    if id(matrix) in by_matrix:
        raise CellError(f"{cell_class.__name__}.forward must use each of its extra matrices once, not twice")
