"""Dropout on activations and on weights, with masks that are a function of (seed, step, layer).

A resumed run draws the same masks as an uninterrupted one, and a row of a batch the same mask wherever it is computed.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfcharrnn import rng

# Indices of the masks of one step: the layer for activations (0: the input), and from these on weights. There are at
# most 64 layers.
_RECURRENT_KERNELS = 1024
_EMBEDDING = 2048


@dataclasses.dataclass(frozen=True)
class Dropout:
    """The dropout of one training step, for some rows of its batch.

    Attributes:
        key: `[2]`, from `tfcharrnn.rng.key`; None: no dropout.
        rows: the rows of the batch.
        batch_size: the number of rows of the whole batch.
        is_locked: all steps of a sequence have the same mask (variational dropout, Gal & Ghahramani 2016).
    """

    key: tf.Tensor | None
    rows: range
    batch_size: int
    is_locked: bool = False

    def drop_activations(self, x: tf.Tensor, layer: int, rate: float) -> tf.Tensor:
        """Zeroes a share `rate` of `x` `[time, rows, size]` and scales up the rest (Srivastava et al. 2014).

        Args:
            x: the activations.
            layer: how many recurrent layers they have passed, 0 for the input.
            rate: the share to drop.
        """
        if not rate or self.key is None:
            return x
        time, _, size = x.shape
        if self.is_locked:
            time = 1
        if len(self.rows) == self.batch_size:
            uniform = rng.uniform([time, self.batch_size, size], self._key(layer))
        else:
            uniform = rng.uniform_rows(time, self.batch_size, size, self.rows)(self._key(layer))
        return _drop(x, uniform, rate)

    def drop_recurrent_kernel(self, kernel: tf.Tensor, layer: int, rate: float) -> tf.Tensor:
        """Zeroes a share of a recurrent kernel for all steps of all sequences of the batch (Merity et al. 2018, 2)."""
        if not rate or self.key is None:
            return kernel
        return _drop(kernel, rng.uniform(kernel.shape, self._key(_RECURRENT_KERNELS + layer)), rate)

    def drop_symbols(self, embedding: tf.Tensor, rate: float) -> tf.Tensor:
        """Zeroes whole rows of the embedding `[vocabulary, size]`, that is some symbols (Merity et al. 2018, 4.3)."""
        if not rate or self.key is None:
            return embedding
        return _drop(embedding, rng.uniform([embedding.shape[0], 1], self._key(_EMBEDDING)), rate)

    def _key(self, index: int) -> tf.Tensor:
        """Returns the key of one of the step's masks."""
        return self.key + tf.constant([0, index], tf.int64)


def _drop(x: tf.Tensor, uniform: tf.Tensor, rate: float) -> tf.Tensor:
    """Zeroes the values of `x` where `uniform` in (0, 1), broadcast to it, is below `rate`, and scales up the rest."""
    return tf.where(uniform >= rate, x / (1.0 - rate), tf.zeros_like(x))
