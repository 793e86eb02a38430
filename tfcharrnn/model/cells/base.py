"""The base class of recurrent cells: variables, initial weights, and the arithmetic of one step in both directions."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

State = tuple[tf.Tensor, ...]


@dataclasses.dataclass(frozen=True)
class GateActivation:
    """An activation function for gates, forward and backward.

    Attributes:
        name: its name in `--recurrent_activation`.
        value: maps the sum a to the gate s, both `[batch, hidden]`.
        gradient: maps the loss's gradient by s, and s itself, to the gradient by a; the slope is a function of s alone.
    """

    name: str
    value: Callable[[tf.Tensor], tf.Tensor]
    gradient: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def _make_hard_sigmoid(name: str, slope: float) -> GateActivation:
    """Returns s = clip(slope a + 1/2, 0, 1), whose derivative is zero where s is 0 or 1."""

    def value(a: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(slope * a + 0.5, 0.0, 1.0)

    def gradient(d_s: tf.Tensor, s: tf.Tensor) -> tf.Tensor:
        return tf.where((s > 0.0) & (s < 1.0), slope * d_s, tf.zeros_like(d_s))

    return GateActivation(name, value, gradient)


SIGMOID = GateActivation("sigmoid", tf.sigmoid, lambda d_s, s: d_s * s * (1.0 - s))
# Keras has had two functions named hard_sigmoid: this one in versions 1 and 2, and relu6(a + 3) / 6 in version 3.
HARD_SIGMOID = _make_hard_sigmoid("hard_sigmoid", 0.2)
HARD_SIGMOID_6 = _make_hard_sigmoid("hard_sigmoid_6", 1.0 / 6.0)

GATE_ACTIVATIONS = {gate.name: gate for gate in (SIGMOID, HARD_SIGMOID, HARD_SIGMOID_6)}


# Initial weights

Array = npt.NDArray[np.float64]
# draws a matrix `[rows, columns]`
Initializer = Callable[[np.random.Generator, int, int], Array]


class Initializers(NamedTuple):
    """How to draw each kind of matrix; biases are not drawn.

    Attributes:
        kernel: draws kernels, including the output kernel.
        recurrent_kernel: draws recurrent kernels, unless `joint`.
        embedding: draws the embedding.
        joint: `kernel` draws a cell's two kernels as one matrix `[input + hidden, columns]`.
    """

    kernel: Initializer
    recurrent_kernel: Initializer
    embedding: Initializer
    joint: bool = False


def glorot_uniform(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Uniform in +-sqrt(6 / (rows + columns)) (Glorot & Bengio 2010, eq. 16)."""
    limit = np.sqrt(6.0 / (rows + columns))
    return rng.uniform(-limit, limit, (rows, columns))


def orthogonal(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """A random matrix with orthonormal rows (Saxe et al. 2014); needs columns >= rows."""
    q, r = np.linalg.qr(rng.standard_normal((columns, rows)))
    return (q * np.sign(np.diag(r))).T


def normal(rng: np.random.Generator, rows: int, columns: int, scale: float = 1.0) -> Array:
    """Normally distributed, N(0, scale^2)."""
    return scale * rng.standard_normal((rows, columns))


def uniform(rng: np.random.Generator, rows: int, columns: int, scale: float = 1.0) -> Array:
    """Uniform in [0, scale)."""
    return rng.uniform(0.0, scale, (rows, columns))


# Keras's defaults
GLOROT = Initializers(glorot_uniform, orthogonal, normal)


def get_initializers(name: str, scale: float) -> Initializers:
    """Returns the initializers for `--initializer` and `--initializer_scale`."""
    if name == "glorot":
        return GLOROT
    if name == "glorot_joint":
        return GLOROT._replace(joint=True)
    draw = functools.partial({"normal": normal, "uniform": uniform}[name], scale=scale)
    return Initializers(draw, draw, draw)


class Cell(tf.Module, abc.ABC):
    """One recurrent layer: variables in Keras's layout, and one step as arithmetic on arrays.

    A step has two sums, p = x W + b and q = h U (+ b'). Their matrix products are the same for every cell, so the
    caller computes them, x W for all steps at once. What differs between cells is how p, q and the state become the
    next state, `forward`, and the derivative of that function, `backward`. Neither uses a variable.

    Args:
        input_size: size of x.
        hidden_size: number of units.
        rng: draws the weights.
        dtype: dtype of the variables.
        compute_dtype: dtype of the matrix products; None: `dtype`.
        initializers: how to draw the kernels; the default is Keras's.

    Attributes:
        kernel: W, `[input, num_gates * hidden]`.
        recurrent_kernel: U, `[hidden, num_gates * hidden]`.
        bias: `[num_gates * hidden]`; the GRU has two rows of these.
        gate: the activation of the gates; the Elman network has none.
        num_gates: number of blocks of `hidden` columns in the kernels.
        num_state_tensors: number of tensors `[batch, hidden]` in a state; the first is the output h.
        num_saved_tensors: number of tensors `[batch, hidden]` that `forward` saves for `backward`.
        has_separate_sums: whether `forward` uses p and q other than as p + q, so that their gradients differ.
    """

    gate: ClassVar[GateActivation] = SIGMOID
    num_gates: ClassVar[int]
    num_state_tensors: ClassVar[int] = 1
    num_saved_tensors: ClassVar[int] = 0
    has_separate_sums: ClassVar[bool] = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        rng: np.random.Generator,
        dtype: tf.DType = tf.float32,
        compute_dtype: tf.DType | None = None,
        initializers: Initializers = GLOROT,
    ):
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.compute_dtype = compute_dtype or dtype
        columns = self.num_gates * hidden_size
        if initializers.joint:
            joint = initializers.kernel(rng, input_size + hidden_size, columns)
            kernel, recurrent_kernel = joint[:input_size], joint[input_size:]
        else:
            kernel = initializers.kernel(rng, input_size, columns)
            recurrent_kernel = initializers.recurrent_kernel(rng, hidden_size, columns)
        self.kernel = tf.Variable(kernel, dtype=dtype, name="kernel")
        self.recurrent_kernel = tf.Variable(recurrent_kernel, dtype=dtype, name="recurrent_kernel")
        self.bias = tf.Variable(self._initial_bias(), dtype=dtype, name="bias")

    @classmethod
    def variable_shapes(cls, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each variable by its name, without making any."""
        columns = cls.num_gates * hidden_size
        return {"kernel": (input_size, columns), "recurrent_kernel": (hidden_size, columns), "bias": (columns,)}

    def _initial_bias(self) -> npt.NDArray[np.float64]:
        return np.zeros(self.variable_shapes(self.input_size, self.hidden_size)["bias"])

    @property
    def input_bias(self) -> tf.Tensor:
        """The bias b in x W + b, `[num_gates * hidden]`."""
        return tf.convert_to_tensor(self.bias)

    @property
    def recurrent_bias(self) -> tf.Tensor | None:
        """The bias b' in h U + b', `[num_gates * hidden]`; None if the cell has only one bias."""
        return None

    def zero_state(self, batch_size: int | tf.Tensor) -> State:
        """Returns a state of zeros, `num_state_tensors` tensors `[batch, hidden]`."""
        return (tf.zeros([batch_size, self.hidden_size], self.kernel.dtype),) * self.num_state_tensors

    def matmul(self, a: tf.Tensor, b: tf.Tensor, *, transpose_a: bool = False) -> tf.Tensor:
        """Returns the matrix product a b, computed in the cell's `compute_dtype`."""
        return matmul(a, b, self.compute_dtype, transpose_a=transpose_a)

    def step(self, p: tf.Tensor, state: State) -> State:
        """Returns the state after one step from p = x W + b, `[batch, num_gates * hidden]`."""
        q = self.matmul(state[0], tf.convert_to_tensor(self.recurrent_kernel))
        bias = self.recurrent_bias
        return self.forward(p, q if bias is None else q + bias, state)[0]

    @classmethod
    @abc.abstractmethod
    def forward(cls, p: tf.Tensor, q: tf.Tensor, state: State) -> tuple[State, State]:
        """Computes one step from its two sums.

        Args:
            p: x W + b, `[batch, num_gates * hidden]`.
            q: h U (+ b'), `[batch, num_gates * hidden]`.
            state: the state before the step, tensors `[batch, hidden]`.

        Returns:
            The state after the step, and the tensors `[batch, hidden]` that `backward` needs.
        """

    @classmethod
    @abc.abstractmethod
    def backward(cls, saved: State, before: State, after: State, d_after: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        """Computes the derivative of `forward` by the chain rule.

        Args:
            saved: the tensors that `forward` saved.
            before: the state before the step.
            after: the state after the step.
            d_after: the loss's gradient by the state after the step.

        Returns:
            The loss's gradients by p, by q and by the state before the step; the last without its path through q,
            which the caller adds.
        """


def matmul(a: tf.Tensor, b: tf.Tensor, compute_dtype: tf.DType, *, transpose_a: bool = False) -> tf.Tensor:
    """Returns the matrix product a b, computed in `compute_dtype` and cast back to the dtype of a."""
    rounded = [tf.cast(matrix, compute_dtype) for matrix in (a, b)]
    return tf.cast(tf.linalg.matmul(*rounded, transpose_a=transpose_a), a.dtype)
