"""Samples symbols from logits by inversion of the cumulative distribution, with temperature, top-k and top-p."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

# Largest vocabulary whose cumulative sums are one product; of a larger one, the blocks' sums are added up first.
_MAX_BLOCK = 128


def sample_symbols(
    logits: tf.Tensor,
    uniforms: tf.Tensor | None,
    *,
    temperature: float | tf.Tensor = 1.0,
    top_k: int | tf.Tensor = 0,
    top_p: float | tf.Tensor = 1.0,
) -> tf.Tensor:
    """Samples one symbol from each row of logits.

    The filters follow the temperature: first `top_k`, then `top_p` over what it leaves. The first symbol at which the
    sum of the probabilities so far exceeds a uniform number is distributed as softmax(logits) (Devroye, Non-Uniform
    Random Variate Generation, 1986, section III.2); one number a symbol is enough.

    Args:
        logits: `[batch, vocabulary]`.
        uniforms: `[batch]`, in the open interval (0, 1); None: take the likeliest symbol.
        temperature: divides the logits.
        top_k: sample from the k likeliest symbols; 0: from all.
        top_p: sample from the fewest likeliest symbols whose probabilities add up to at least this.

    Returns:
        int32 `[batch]`; of equally likely symbols, the lowest id goes first.
    """
    if uniforms is None:
        return tf.argmax(logits, axis=-1, output_type=tf.int32)
    # shift the likeliest to 0, so that not even the smallest temperature overflows
    logits = (logits - tf.reduce_max(logits, axis=-1, keepdims=True)) / tf.cast(temperature, logits.dtype)
    symbols = None
    if tf.is_tensor(top_k) or top_k or tf.is_tensor(top_p) or top_p < 1.0:  # without filters, sorting is a waste
        top_k = top_k if tf.is_tensor(top_k) or top_k else logits.shape[1]
        logits, symbols = tf.math.top_k(logits, logits.shape[1])
        before = tf.cumsum(tf.nn.softmax(_mask_tail(logits, top_k)), axis=-1, exclusive=True)
        in_top_p = tf.cast(before < tf.cast(top_p, logits.dtype), tf.int32)
        logits = _mask_tail(logits, tf.minimum(tf.reduce_sum(in_top_p, axis=-1, keepdims=True), top_k))
    weights = tf.exp(logits)
    sums = _cumulate(weights)
    thresholds = tf.cast(uniforms, sums.dtype)[:, tf.newaxis] * sums[:, -1:]
    # an impossible symbol stays so however the sums are rounded
    is_after = (sums > thresholds) & (weights > 0.0)
    last = logits.shape[1] - 1
    winner = tf.reduce_min(tf.where(is_after, tf.range(last + 1), last), axis=-1)
    return winner if symbols is None else tf.gather(symbols, winner, batch_dims=1)


def _cumulate(values: tf.Tensor) -> tf.Tensor:
    """Returns the cumulative sums of each row, `[batch, size]`.

    They are products with triangular matrices of ones, which on every device are faster than a scan of short rows.
    """
    size = values.shape[1]
    if size <= _MAX_BLOCK:
        return values @ _ones_before(size, values.dtype, inclusive=True)
    width = math.ceil(math.sqrt(size))
    blocks = tf.reshape(tf.pad(values, [[0, 0], [0, width * width - size]]), [-1, width, width])
    within = blocks @ _ones_before(width, values.dtype, inclusive=True)
    before = within[:, :, -1] @ _ones_before(width, values.dtype, inclusive=False)
    return tf.reshape(within + before[:, :, tf.newaxis], [-1, width * width])[:, :size]


def _ones_before(size: int, dtype: tf.DType, *, inclusive: bool) -> tf.Tensor:
    """Returns the matrix `[size, size]` whose product with a row is its cumulative sums."""
    return tf.constant(np.triu(np.ones([size, size]), 0 if inclusive else 1), dtype)


def _mask_tail(logits: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """Keeps the first `count` logits of each row; the others can no longer be sampled."""
    return tf.where(tf.range(logits.shape[1]) < count, logits, logits.dtype.min)
