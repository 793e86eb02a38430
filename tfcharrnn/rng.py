"""Stateless random numbers: each is a function of (seed, purpose, step, index).

A resumed run draws the same numbers as an uninterrupted one, and drawing for one purpose does not affect another.
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

# Feistel rounds, and the numbers permuted at a time, by `permute_range`.
_ROUNDS = 6
_CHUNK = 2**16


class Purpose(enum.IntEnum):
    """What random numbers are used for. The values never change, since old runs depend on them."""

    WEIGHTS = 1
    SHUFFLE = 2
    DROPOUT = 3
    SAMPLING = 4
    SPLIT = 5
    BLOCK = 6
    RESET = 7


def key(seed: int | tf.Tensor, purpose: Purpose, step: int | tf.Tensor, index: int | tf.Tensor = 0) -> tf.Tensor:
    """Returns the int64 seed `[2]` for the functions `tf.random.stateless_*`.

    Args:
        seed: the user's seed, below 2^31.
        purpose: what the numbers are used for.
        step: the training step, or the position in a text; below 2^40.
        index: distinguishes several draws of one step, such as one for each layer; below 2^20.
    """
    import tensorflow as tf  # not at the top, since the functions that use NumPy alone do not need it

    high = tf.cast(seed, tf.int64) * 256 + int(purpose)
    low = tf.cast(step, tf.int64) * 2**20 + tf.cast(index, tf.int64)
    return tf.stack([high, low])


def uniform(shape: tf.Tensor, key: tf.Tensor, dtype: tf.DType | str = "float32") -> tf.Tensor:
    """Draws uniform numbers in the open interval (0, 1), which are the same with and without XLA.

    TensorFlow's own floats are not, since XLA takes other bits of the same draw. So this draws 32 bits a number.

    Args:
        shape: the shape of the result.
        key: `[2]`, from `key`.
        dtype: float32 or float64.
    """
    import tensorflow as tf

    bits = tf.random.stateless_uniform(shape, key, minval=None, maxval=None, dtype=tf.uint32, alg="philox")
    return tf.minimum((tf.cast(bits, dtype) + 0.5) * 2.0**-32, 1.0 - 2.0**-24)


@functools.lru_cache(maxsize=256)
def uniform_rows(time: int, batch: int, size: int, rows: range) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of a key that computes `uniform([time, batch, size], key)[:, rows]` and draws no other rows.

    With many replicas each has only a few rows of a large batch; drawing the others could take longer than training.
    XLA computes each number from its position, and only those that are used.
    """
    import tensorflow as tf

    def draw(key: tf.Tensor) -> tf.Tensor:
        return uniform([time, batch, size], key)[:, rows.start : rows.stop]

    return tf.function(draw, jit_compile=True, autograph=False)


def generator(seed: int, purpose: Purpose, step: int, index: int = 0) -> np.random.Generator:
    """Returns a NumPy generator with the same kind of key, for numbers drawn outside of graphs."""
    return np.random.Generator(np.random.Philox(key=[seed * 256 + int(purpose), step * 2**20 + index]))


def permutation(size: int, seed: int, purpose: Purpose, step: int, index: int = 0) -> npt.NDArray[np.int64]:
    """Returns a random permutation of `range(size)`.

    It sorts raw 64-bit draws, since only the raw stream is the same in every version of NumPy.
    """
    bits = np.random.Philox(key=[seed * 256 + int(purpose), step * 2**20 + index])
    return np.argsort(bits.random_raw(size), kind="stable")


def integer(size: int, seed: int, purpose: Purpose, step: int, index: int = 0) -> int:
    """Returns a random number of `range(size)`."""
    bits = np.random.Philox(key=[seed * 256 + int(purpose), step * 2**20 + index]).random_raw(2)
    return (int(bits[0]) << 64 | int(bits[1])) % size


def permute_range(
    first: int, last: int, size: int, seed: int, purpose: Purpose, step: int, index: int = 0
) -> npt.NDArray[np.int64]:
    """Returns a part of a random permutation of `range(size)` without computing the rest.

    A Feistel network splits the bits of a number into two halves and changes each in turn by a function of the other.
    That is invertible, so different numbers stay different (Luby and Rackoff, How to construct pseudorandom
    permutations, 1988). Results of `size` or more are permuted again until they are below it (cycle walking: Black and
    Rogaway, Ciphers with arbitrary finite domains, 2002).

    Args:
        first: the first number to permute.
        last: the number after the last one.
        size: the size of the whole range, below 2^62.
        seed: the user's seed, below 2^31.
        purpose: what the permutation is used for.
        step: below 2^40.
        index: distinguishes several permutations of one step; below 2^20.

    Returns:
        The images of `range(first, last)`, `[last - first]`, all different.
    """
    keys = np.random.Philox(key=[seed * 256 + int(purpose), step * 2**20 + index]).random_raw(_ROUNDS)
    bits = max(2, (size - 1).bit_length())
    images = np.arange(first, last, dtype=np.uint64)
    for start in range(0, len(images), _CHUNK):
        chunk = _permute_bits(images[start : start + _CHUNK], keys, bits)
        too_large = np.flatnonzero(chunk >= size)
        while len(too_large):
            chunk[too_large] = _permute_bits(chunk[too_large], keys, bits)
            too_large = too_large[chunk[too_large] >= size]
        images[start : start + _CHUNK] = chunk
    return images.astype(np.int64)


def _permute_bits(numbers: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
    """Applies a Feistel network, a permutation of `range(2**bits)`, with one round for each key."""
    widths = [bits // 2, bits - bits // 2]
    halves = [numbers >> np.uint64(widths[1]), numbers & np.uint64(2 ** widths[1] - 1)]
    for round_index, key in enumerate(keys):
        changed = round_index % 2
        mixed = (halves[1 - changed] + key) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0xBF58476D1CE4E5B9)  # SplitMix64's constants
        halves[changed] = halves[changed] ^ mixed >> np.uint64(64 - widths[changed])
    return halves[0] << np.uint64(widths[1]) | halves[1]
