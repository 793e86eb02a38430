"""The base class of recurrent cells: variables, initial weights, and the arithmetic of one step in both directions."""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

State = tuple[tf.Tensor, ...]
# multiplies vectors `[..., rows]` with a matrix
Product = Callable[[tf.Tensor], tf.Tensor]


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
    """A random matrix with orthonormal rows, or columns if it has fewer of them (Saxe et al. 2014)."""
    if rows > columns:
        return orthogonal(rng, columns, rows).T
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


@dataclasses.dataclass(frozen=True)
class ExtraWeight:
    """A weight of a cell besides its kernels and bias.

    Attributes:
        blocks: the shape as multiples of the hidden size: `(3,)` is a vector `[3 * hidden]`, `(1, 4)` a matrix
            `[hidden, 4 * hidden]`.
        initial: the value of every entry at the start, or one value for each block of a vector; None: zeros for a
            vector; a matrix is drawn like a recurrent kernel.
    """

    blocks: tuple[int, ...]
    initial: float | tuple[float, ...] | None = None

    def shape(self, hidden_size: int) -> tuple[int, ...]:
        """Returns the shape."""
        return tuple(block * hidden_size for block in self.blocks)

    def draw(self, hidden_size: int, rng: np.random.Generator, initializer: Initializer) -> Array:
        """Returns the initial values."""
        shape = self.shape(hidden_size)
        if isinstance(self.initial, tuple):
            return np.repeat(np.array(self.initial, np.float64), hidden_size)
        if self.initial is not None or len(shape) == 1:
            return np.full(shape, self.initial or 0.0)
        return initializer(rng, *shape)


class Cell(tf.Module, abc.ABC):
    """One recurrent layer: its variables, in Keras's layout, and one step as arithmetic on arrays.

    A step has two sums, p = x W + b and q = h U (+ b'). Their matrix products are the same for every cell, so the
    caller computes them, x W for all steps at once. What differs between cells is how p, q and the state become the
    next state: `forward`. A cell is complete with that method and `num_gates`; its derivative is derived then. A cell
    may have it by hand, in `backward`, which is faster. An Elman network, as a cell of one's own:

        @tfcharrnn.register_cell("elman")
        class Elman(tfcharrnn.Cell):
            num_gates = 1

            @classmethod
            def forward(cls, p, q, state):
                return (tf.tanh(p + q),)

    Args:
        input_size: size of x.
        hidden_size: number of units.
        rng: draws the weights.
        dtype: dtype of the variables.
        compute_dtype: dtype of the matrix products; None: `dtype`.
        initializers: how to draw the kernels; the default is Keras's.

    Attributes:
        kernel: W, `[input, num_gates * hidden]`.
        recurrent_kernel: U, `[hidden, num_recurrent_gates * hidden]`; None if the cell has no gates of h U.
        bias: `[num_gates * hidden]`; the GRU has two rows of these. None without `has_bias`.
        gate: the activation of the gates; the Elman network has none.
        num_gates: number of blocks of `hidden` columns in p.
        num_recurrent_gates: number of blocks of `hidden` columns in q, by default as many as in p; 0: q is None.
        num_state_tensors: number of tensors `[batch, hidden]` in a state; the first is the output h.
        has_bias: whether p has a bias.
        initial_bias: the value of each block of the bias at the start; empty: zeros.
        extra_weights: further weights by name, which `forward` receives as keyword arguments: a vector as a tensor, a
            matrix M as a function that maps `[batch, rows]` to the product with M. Each matrix is used once a step.
        keeps_products: a derived `backward` needs q and the products with matrices: keep them, which is faster, or
            compute them again, which takes less memory.
        is_linear: whether the cell is a `LinearCell`, all of whose steps can be run at once.
        library_name: the name by which Keras and cuDNN have the same cell, rnn, lstm or gru; else "".
        num_saved_tensors: number of tensors `[batch, hidden]` that `forward` saves for the cell's own `backward`.
        has_separate_sums: whether `forward` uses p and q other than as p + q, so that their gradients differ; a cell
            with its own `backward` says so.
    """

    gate: ClassVar[GateActivation] = SIGMOID
    num_gates: ClassVar[int]
    num_recurrent_gates: ClassVar[int]
    num_state_tensors: ClassVar[int] = 1
    has_bias: ClassVar[bool] = True
    initial_bias: ClassVar[tuple[float, ...]] = ()
    extra_weights: ClassVar[Mapping[str, ExtraWeight]] = {}
    keeps_products: ClassVar[bool] = True
    is_linear: ClassVar[bool] = False
    library_name: ClassVar[str] = ""
    num_saved_tensors: ClassVar[int] = 0
    has_separate_sums: ClassVar[bool] = False
    # whether no class has declared `num_recurrent_gates`, so that it is `num_gates`
    _follows_num_gates: ClassVar[bool] = True

    kernel: tf.Variable
    recurrent_kernel: tf.Variable | None = None
    bias: tf.Variable | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Checks what a class declares.

        Raises:
            TypeError: it contradicts itself.
        """
        super().__init_subclass__(**kwargs)
        if "num_recurrent_gates" in cls.__dict__:
            cls._follows_num_gates = False
        elif "num_gates" in cls.__dict__ and cls._follows_num_gates:
            cls.num_recurrent_gates = cls.num_gates
        for name in ("forward", "backward"):
            method = cls.__dict__.get(name)
            if method is not None and not isinstance(method, (classmethod, staticmethod)):
                raise TypeError(
                    f"{cls.__name__}.{name} must be a @classmethod: a step has no weights but its arguments"
                )
        if cls.has_own_backward() and cls.extra_weights:
            raise TypeError(f"{cls.__name__} has extra weights and its own backward; leave out backward")

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
        for name, values in self._draw_weights(rng, initializers).items():
            setattr(self, name, tf.Variable(values, dtype=dtype, name=name))

    def _draw_weights(self, rng: np.random.Generator, initializers: Initializers) -> dict[str, Array]:
        """Returns the initial value of each variable, by name, in the order in which they are drawn."""
        shapes = self.variable_shapes(self.input_size, self.hidden_size)
        rows, columns = shapes["kernel"]
        values: dict[str, Array] = {}
        if initializers.joint and shapes.get("recurrent_kernel", (0, 0))[1] == columns:
            joint = initializers.kernel(rng, rows + self.hidden_size, columns)
            values["kernel"], values["recurrent_kernel"] = joint[:rows], joint[rows:]
        else:
            values["kernel"] = initializers.kernel(rng, rows, columns)
            if "recurrent_kernel" in shapes:
                values["recurrent_kernel"] = initializers.recurrent_kernel(rng, *shapes["recurrent_kernel"])
        if "bias" in shapes:
            values["bias"] = self._initial_bias()
        for name, weight in self.extra_weights.items():
            values[name] = weight.draw(self.hidden_size, rng, initializers.recurrent_kernel)
        return values

    @classmethod
    def variable_shapes(cls, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each variable by its name, without making any."""
        shapes: dict[str, tuple[int, ...]] = {"kernel": (input_size, cls.num_gates * hidden_size)}
        if cls.num_recurrent_gates:
            shapes["recurrent_kernel"] = (hidden_size, cls.num_recurrent_gates * hidden_size)
        if cls.has_bias:
            shapes["bias"] = (cls.num_gates * hidden_size,)
        return shapes | {name: weight.shape(hidden_size) for name, weight in cls.extra_weights.items()}

    def _initial_bias(self) -> Array:
        if self.initial_bias:
            return np.repeat(np.array(self.initial_bias, np.float64), self.hidden_size)
        return np.zeros(self.variable_shapes(self.input_size, self.hidden_size)["bias"])

    @property
    def named_variables(self) -> dict[str, tf.Variable]:
        """The variables by name."""
        return {name: getattr(self, name) for name in self.variable_shapes(self.input_size, self.hidden_size)}

    @property
    def input_bias(self) -> tf.Tensor | None:
        """The bias b in x W + b, `[num_gates * hidden]`; None without `has_bias`."""
        return None if self.bias is None else tf.convert_to_tensor(self.bias)

    @property
    def recurrent_bias(self) -> tf.Tensor | None:
        """The bias b' in h U + b', `[num_recurrent_gates * hidden]`; None if the cell has only one bias."""
        return None

    @property
    def extras(self) -> State:
        """The values of the extra weights, in the order of `extra_weights`."""
        return tuple(tf.convert_to_tensor(getattr(self, name)) for name in self.extra_weights)

    def zero_state(self, batch_size: int | tf.Tensor) -> State:
        """Returns a state of zeros, `num_state_tensors` tensors `[batch, hidden]`."""
        return (tf.zeros([batch_size, self.hidden_size], self.kernel.dtype),) * self.num_state_tensors

    def matmul(self, a: tf.Tensor, b: tf.Tensor, *, transpose_a: bool = False) -> tf.Tensor:
        """Returns the matrix product a b, computed in the cell's `compute_dtype`."""
        return matmul(a, b, self.compute_dtype, transpose_a=transpose_a)

    def project(self, x: tf.Tensor) -> tf.Tensor:
        """Returns p = x W + b of vectors `[rows, input]`, `[rows, num_gates * hidden]`."""
        product, bias = self.matmul(x, tf.convert_to_tensor(self.kernel)), self.input_bias
        return product if bias is None else tf.nn.bias_add(product, bias)

    def recur(self, h: tf.Tensor) -> tf.Tensor | None:
        """Returns q = h U + b' of `[batch, hidden]`, `[batch, num_recurrent_gates * hidden]`; None without U."""
        if self.recurrent_kernel is None:
            return None
        product, bias = self.matmul(h, tf.convert_to_tensor(self.recurrent_kernel)), self.recurrent_bias
        return product if bias is None else tf.nn.bias_add(product, bias)

    def step(self, p: tf.Tensor, q: tf.Tensor | None, state: State) -> State:
        """Returns the state after one step from its two sums, as `forward` takes them."""
        multiply = functools.partial(matmul, compute_dtype=self.compute_dtype)
        return self.run_forward(p, q, state, self.bind_extras(self.extras, multiply))[0]

    @classmethod
    def bind_extras(cls, values: State, multiply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> dict[str, Any]:
        """Returns the extra weights as `forward` receives them; `multiply(x, M)` computes products with a matrix."""
        return {
            name: value if value.shape.rank == 1 else lambda x, matrix=value: multiply(x, matrix)
            for name, value in zip(cls.extra_weights, values, strict=True)
        }

    @classmethod
    def has_own_backward(cls) -> bool:
        """Whether the class has its derivative by hand."""
        return inspect.getattr_static(cls, "backward") is not Cell.__dict__["backward"]

    @classmethod
    def run_forward(
        cls, p: tf.Tensor, q: tf.Tensor | None, state: State, extras: dict[str, Any]
    ) -> tuple[State, State]:
        """Calls `forward`; returns the state after the step and the tensors to save, if the cell saves any.

        Raises:
            CellError: it fails, or does not return a state.
        """
        from tfcharrnn.model.cells import checks  # nothing but a step needs it

        with checks.name_cell(cls, "forward"):
            result = cls.forward(p, q, state, **extras)
        has_saved = isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], tuple)
        after, saved = result if has_saved else (result, ())
        like = [state[0]] * cls.num_state_tensors
        return checks.check_tensors(cls, "forward", after, like, "a state, as num_state_tensors says"), saved

    @classmethod
    @abc.abstractmethod
    def forward(cls, *args: Any, **extras: Any) -> State | tuple[State, State]:
        """Computes one step from its two sums, as `forward(p, q, state, **extras)`.

        Args:
            *args: p = x W + b, `[batch, num_gates * hidden]`; q = h U (+ b'), `[batch, num_recurrent_gates * hidden]`,
                None for a cell without recurrent kernel; and the state before the step, tensors `[batch, hidden]`.
            **extras: the extra weights.

        Returns:
            The state after the step. A cell with its own `backward` returns a pair: that state, and the tensors
            `[batch, hidden]` that `backward` needs.
        """

    @classmethod
    def backward(cls, saved: State, before: State, after: State, d_after: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        """Computes the derivative of `forward` by the chain rule; a cell without it has it derived.

        Args:
            saved: the tensors that `forward` saved.
            before: the state before the step.
            after: the state after the step.
            d_after: the loss's gradient by the state after the step.

        Returns:
            The loss's gradients by p, by q and by the state before the step; the last without its path through q,
            which the caller adds.
        """
        raise NotImplementedError


def check_complete(cell_class: type) -> None:
    """Checks that a class is a cell with everything that a cell must have.

    Raises:
        TypeError: it is not; the message says what is missing.
    """
    if not (isinstance(cell_class, type) and issubclass(cell_class, Cell)):
        raise TypeError(f"{cell_class!r} is not a subclass of tfcharrnn.Cell or tfcharrnn.LinearCell")
    if not isinstance(getattr(cell_class, "num_gates", None), int) or cell_class.num_gates < 1:
        raise TypeError(f"{cell_class.__name__}.num_gates must be the number of blocks of p = x W + b, 1 or more")
    missing = ", ".join(sorted(cell_class.__abstractmethods__))
    if missing:
        raise TypeError(f"{cell_class.__name__} must define {missing}")


def normalise_layer(x: tf.Tensor, epsilon: float = 1e-5) -> tf.Tensor:
    """Returns (x - mean) / sqrt(variance + epsilon) over the last axis (Ba et al. 2016), without gain and shift."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    return centred * tf.math.rsqrt(tf.reduce_mean(centred * centred, -1, keepdims=True) + epsilon)


def matmul(a: tf.Tensor, b: tf.Tensor, compute_dtype: tf.DType, *, transpose_a: bool = False) -> tf.Tensor:
    """Returns the matrix product a b, computed in `compute_dtype` and cast back to the dtype of a."""
    rounded = [tf.cast(matrix, compute_dtype) for matrix in (a, b)]
    return tf.cast(tf.linalg.matmul(*rounded, transpose_a=transpose_a), a.dtype)
