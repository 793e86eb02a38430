"""Stateless randomness: every number drawn is a function of (seed, purpose, step).

A run that was stopped and resumed draws the same numbers as one that was not, and no purpose disturbs another.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt
import tensorflow as tf


class Purpose(enum.IntEnum):
    """What random numbers are drawn for. Values are kept for ever: old runs depend on them."""

    WEIGHTS = 1
    SHUFFLE = 2
    DROPOUT = 3
    SAMPLING = 4
    SPLIT = 5
    BLOCK = 6


def key(seed: int | tf.Tensor, purpose: Purpose, step: int | tf.Tensor, index: int | tf.Tensor = 0) -> tf.Tensor:
    """The `[2]` int64 seed for TensorFlow's `tf.random.stateless_*` functions.

    Args:
        seed: the user's seed, below 2^31.
        purpose: what the numbers are for.
        step: the training step, or the position in a text; below 2^40.
        index: tells apart several draws of one step, such as one for each layer; below 2^20.
    """
    high = tf.cast(seed, tf.int64) * 256 + int(purpose)
    low = tf.cast(step, tf.int64) * 2**20 + tf.cast(index, tf.int64)
    return tf.stack([high, low])


def uniform(shape: tf.Tensor, key: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Uniform numbers in the open interval (0, 1), the same whether XLA compiles the code or not.

    TensorFlow's own floats are not: the two take different bits of the same draw. So bits are drawn here, 32 a number.

    Args:
        shape: of the result.
        key: `[2]`, as `key` makes.
        dtype: float32 or float64.
    """
    bits = tf.random.stateless_uniform(shape, key, minval=None, maxval=None, dtype=tf.uint32, alg="philox")
    return tf.minimum((tf.cast(bits, dtype) + 0.5) * 2.0**-32, 1.0 - 2.0**-24)


def generator(seed: int, purpose: Purpose, step: int, index: int = 0) -> np.random.Generator:
    """A NumPy generator keyed in the same way, for what is drawn outside the graph."""
    return np.random.Generator(np.random.Philox(key=[seed * 256 + int(purpose), step * 2**20 + index]))


def permutation(size: int, seed: int, purpose: Purpose, step: int, index: int = 0) -> npt.NDArray[np.int64]:
    """A random order of `range(size)`.

    It sorts raw 64-bit draws, whose stream NumPy keeps the same in every version.
    """
    bits = np.random.Philox(key=[seed * 256 + int(purpose), step * 2**20 + index])
    return np.argsort(bits.random_raw(size), kind="stable")
