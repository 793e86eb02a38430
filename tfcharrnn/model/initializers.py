"""First weights: what is drawn before training begins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# draws a matrix `[rows, columns]`
Initializer = Callable[[np.random.Generator, int, int], Array]


class Initializers(NamedTuple):
    """How each kind of matrix is drawn; biases are not drawn.

    Attributes:
        kernel: also draws the output kernel.
        recurrent_kernel: beside a kernel of its own.
        embedding: of symbols.
        joint: a cell's two kernels are drawn as one matrix `[input + hidden, columns]`, by `kernel`.
    """

    kernel: Initializer
    recurrent_kernel: Initializer
    embedding: Initializer
    joint: bool = False


def glorot_uniform(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Uniform in +-sqrt(6 / (rows + columns)) (Glorot & Bengio 2010, eq. 16): `[rows, columns]`."""
    limit = np.sqrt(6.0 / (rows + columns))
    return rng.uniform(-limit, limit, (rows, columns))


def orthogonal(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """A random matrix with orthonormal rows, `[rows, columns]`, columns >= rows (Saxe et al. 2014)."""
    q, r = np.linalg.qr(rng.standard_normal((columns, rows)))
    return (q * np.sign(np.diag(r))).T


def normal(rng: np.random.Generator, rows: int, columns: int, scale: float = 1.0) -> Array:
    """From the normal distribution N(0, scale^2): `[rows, columns]`."""
    return scale * rng.standard_normal((rows, columns))


def uniform(rng: np.random.Generator, rows: int, columns: int, scale: float = 1.0) -> Array:
    """Uniform in [0, scale): `[rows, columns]`."""
    return rng.uniform(0.0, scale, (rows, columns))


# as Keras draws them
GLOROT = Initializers(glorot_uniform, orthogonal, normal)


def initializers(name: str, scale: float) -> Initializers:
    """What `--initializer` and `--initializer_scale` name."""
    if name == "glorot":
        return GLOROT
    if name == "glorot_joint":
        return GLOROT._replace(joint=True)
    draw = functools.partial({"normal": normal, "uniform": uniform}[name], scale=scale)
    return Initializers(draw, draw, draw)
