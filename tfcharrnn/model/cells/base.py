"""What every recurrent cell has: its variables, and the arithmetic of one step in both directions."""

from __future__ import annotations

import abc
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.model.cells.gates import SIGMOID, Gate
from tfcharrnn.model.initializers import GLOROT, Initializers

State = tuple[tf.Tensor, ...]


class Cell(tf.Module, abc.ABC):
    """One recurrent layer: raw variables in Keras's layout, and one step as arithmetic on arrays.

    A step has two matrix products, x W and h U. They are the same for every cell, so they are made by the code that
    runs a sequence (`tfcharrnn.model.recurrence`); it may make x W for all steps at once. What is the cell's own is
    how the two products and the state become the next state, `forward`, and the derivative of just that, `backward`.
    Both work on values of one step and use no variable.

    Attributes:
        kernel: W, `[input, gates * hidden]`.
        recurrent_kernel: U, `[hidden, gates * hidden]`.
        bias: `[gates * hidden]`; a cell may have more.
        gate: the activation of the gates, for a cell that has any; see `tfcharrnn.cells.cell_type`.
        gates: how many blocks of `hidden` columns the kernels have.
        state_count: tensors `[batch, hidden]` in a state; the first is the output h.
        two_sums: `forward` uses x W and h U otherwise than in their sum, so that their gradients differ.
        saved_count: tensors `[batch, hidden]` that `forward` saves for `backward`.
    """

    gate: ClassVar[Gate] = SIGMOID
    gates: ClassVar[int]
    state_count: ClassVar[int] = 1
    saved_count: ClassVar[int] = 0
    two_sums: ClassVar[bool] = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        rng: np.random.Generator,
        dtype: tf.DType = tf.float32,
        compute_dtype: tf.DType | None = None,
        initializers: Initializers = GLOROT,
    ):
        """Draws the weights, by default as Keras does: Glorot-uniform kernel, orthogonal recurrent kernel, zero bias.

        Args:
            input_size: size of x.
            hidden_size: units.
            rng: draws the weights.
            dtype: of the variables.
            compute_dtype: of the matrix products; None: the same.
            initializers: how the kernels are drawn.
        """
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.compute_dtype = compute_dtype or dtype
        columns = self.gates * hidden_size
        if initializers.joint:
            joint = initializers.kernel(rng, input_size + hidden_size, columns)
            kernel, recurrent_kernel = joint[:input_size], joint[input_size:]
        else:
            kernel = initializers.kernel(rng, input_size, columns)
            recurrent_kernel = initializers.recurrent_kernel(rng, hidden_size, columns)
        self.kernel = tf.Variable(kernel, dtype=dtype, name="kernel")
        self.recurrent_kernel = tf.Variable(recurrent_kernel, dtype=dtype, name="recurrent_kernel")
        self.bias = tf.Variable(self._initial_bias(), dtype=dtype, name="bias")

    def _initial_bias(self) -> npt.NDArray[np.float64]:
        return np.zeros(self.gates * self.hidden_size)

    @property
    def input_bias(self) -> tf.Tensor:
        """The bias beside x W, `[gates * hidden]`."""
        return tf.convert_to_tensor(self.bias)

    @property
    def recurrent_bias(self) -> tf.Tensor | None:
        """The bias beside h U, `[gates * hidden]`, or None if the cell needs none."""
        return None

    def product(self, a: tf.Tensor, b: tf.Tensor, *, transpose_a: bool = False) -> tf.Tensor:
        """The matrix product a b at the cell's precision, `[rows of a, columns of b]`."""
        return product(a, b, self.compute_dtype, transpose_a=transpose_a)

    def zero_state(self, batch_size: int | tf.Tensor) -> State:
        """The state before the first symbol: `state_count` zero tensors `[batch, hidden]`."""
        return (tf.zeros([batch_size, self.hidden_size], self.kernel.dtype),) * self.state_count

    @classmethod
    @abc.abstractmethod
    def forward(cls, projected: tf.Tensor, recurrent: tf.Tensor, state: State) -> tuple[State, State]:
        """One step.

        Args:
            projected: x W + b, `[batch, gates * hidden]`.
            recurrent: h U (+ b'), `[batch, gates * hidden]`.
            state: before the step, each `[batch, hidden]`.

        Returns:
            The state after the step, and the tensors `[batch, hidden]` that `backward` wants to see again.
        """

    @classmethod
    @abc.abstractmethod
    def backward(cls, saved: State, before: State, after: State, d_after: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        """The derivative of `forward`, by the chain rule.

        Args:
            saved: what `forward` saved.
            before: the state before the step.
            after: the state after the step.
            d_after: the loss's gradient by the state after the step.

        Returns:
            The loss's gradients by `projected`, by `recurrent`, and by the state before the step; the last without
            its way through `recurrent`, which is not this function's.
        """


def product(a: tf.Tensor, b: tf.Tensor, compute_dtype: tf.DType, *, transpose_a: bool = False) -> tf.Tensor:
    """The matrix product a b, multiplied in `compute_dtype` and given in a's type."""
    rounded = [tf.cast(matrix, compute_dtype) for matrix in (a, b)]
    return tf.cast(tf.linalg.matmul(*rounded, transpose_a=transpose_a), a.dtype)
