"""Stateless randomness: every number drawn is a function of (seed, purpose, step).

A run that was stopped and resumed draws the same numbers as one that was not, and no purpose disturbs another.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import tensorflow as tf

# Feistel rounds of a scrambled order, and numbers that it looks at together
_ROUNDS = 6
_BLOCK = 2**16


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
    import tensorflow as tf  # here, because what is drawn outside of graphs does not need it

    high = tf.cast(seed, tf.int64) * 256 + int(purpose)
    low = tf.cast(step, tf.int64) * 2**20 + tf.cast(index, tf.int64)
    return tf.stack([high, low])


def uniform(shape: tf.Tensor, key: tf.Tensor, dtype: tf.DType | str = "float32") -> tf.Tensor:
    """Uniform numbers in the open interval (0, 1), the same whether XLA compiles the code or not.

    TensorFlow's own floats are not: the two take different bits of the same draw. So bits are drawn here, 32 a number.

    Args:
        shape: of the result.
        key: `[2]`, as `key` makes.
        dtype: float32 or float64.
    """
    import tensorflow as tf

    bits = tf.random.stateless_uniform(shape, key, minval=None, maxval=None, dtype=tf.uint32, alg="philox")
    return tf.minimum((tf.cast(bits, dtype) + 0.5) * 2.0**-32, 1.0 - 2.0**-24)


@functools.lru_cache(maxsize=256)
def uniform_rows(time: int, batch: int, size: int, rows: range) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function of a key that gives `uniform([time, batch, size], key)[:, rows]`, and draws no more than that.

    Of many replicas each has few rows of a large batch; to draw the others could take longer than all its training. XLA
    computes each number from its place, and only those that are used.
    """
    import tensorflow as tf

    def draw(key: tf.Tensor) -> tf.Tensor:
        return uniform([time, batch, size], key)[:, rows.start : rows.stop]

    return tf.function(draw, jit_compile=True)


def generator(seed: int, purpose: Purpose, step: int, index: int = 0) -> np.random.Generator:
    """A NumPy generator keyed in the same way, for what is drawn outside the graph."""
    return np.random.Generator(np.random.Philox(key=[seed * 256 + int(purpose), step * 2**20 + index]))


def permutation(size: int, seed: int, purpose: Purpose, step: int, index: int = 0) -> npt.NDArray[np.int64]:
    """A random order of `range(size)`.

    It sorts raw 64-bit draws, whose stream NumPy keeps the same in every version.
    """
    bits = np.random.Philox(key=[seed * 256 + int(purpose), step * 2**20 + index])
    return np.argsort(bits.random_raw(size), kind="stable")


def scrambled(
    first: int, last: int, size: int, seed: int, purpose: Purpose, step: int, index: int = 0
) -> npt.NDArray[np.int64]:
    """The places of `range(first, last)` in a random order of `range(size)` that is never in memory.

    A number's bits are mixed in two halves, of which each in turn is changed by a function of the other; that can be
    undone, so no two numbers meet (Luby and Rackoff, How to construct pseudorandom permutations, 1988). What falls
    beyond `size` is mixed again until it does not (cycle walking: Black and Rogaway, Ciphers with arbitrary finite
    domains, 2002).

    Args:
        first: the first number.
        last: the one after the last number.
        size: how many there are to be ordered; below 2^62.
        seed: as `generator` takes it, like the rest.
        purpose: see `seed`.
        step: see `seed`.
        index: see `seed`.

    Returns:
        `[last - first]`, all different.
    """
    keys = np.random.Philox(key=[seed * 256 + int(purpose), step * 2**20 + index]).random_raw(_ROUNDS)
    bits = max(2, (size - 1).bit_length())
    places = np.arange(first, last, dtype=np.uint64)
    for start in range(0, len(places), _BLOCK):
        block = _mixed(places[start : start + _BLOCK], keys, bits)
        beyond = np.flatnonzero(block >= size)
        while len(beyond):
            block[beyond] = _mixed(block[beyond], keys, bits)
            beyond = beyond[block[beyond] >= size]
        places[start : start + _BLOCK] = block
    return places.astype(np.int64)


def _mixed(numbers: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
    """A permutation of all numbers of so many bits."""
    widths = [bits // 2, bits - bits // 2]
    halves = [numbers >> np.uint64(widths[1]), numbers & np.uint64(2 ** widths[1] - 1)]
    for number, key in enumerate(keys):
        changed = number % 2
        mixed = (halves[1 - changed] + key) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0xBF58476D1CE4E5B9)  # SplitMix64's constants
        halves[changed] = halves[changed] ^ mixed >> np.uint64(64 - widths[changed])
    return halves[0] << np.uint64(widths[1]) | halves[1]
