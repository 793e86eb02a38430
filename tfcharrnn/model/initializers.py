"""Initial weights: functions that draw a matrix, and sets of them as `--initializer` names them."""

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
