"""Samples symbols from logits by the Gumbel-max trick, with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfcharrnn import rng


def gumbel_noise(shape: Sequence[int] | tf.Tensor, key: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Draws standard Gumbel noise, -log(-log(uniform)); computed from 1 - uniform, it is most precise where large."""
    return -tf.math.log(-tf.math.log1p(-rng.uniform(shape, key, dtype)))


def sample_symbols(
    logits: tf.Tensor,
    noise: tf.Tensor | None,
    *,
    temperature: float | tf.Tensor = 1.0,
    top_k: int | tf.Tensor = 0,
    top_p: float | tf.Tensor = 1.0,
) -> tf.Tensor:
    """Samples one symbol from each row of logits.

    The filters follow the temperature: first `top_k`, then `top_p` over what it leaves. By the Gumbel-max trick,
    argmax(logits + Gumbel noise) is distributed as softmax(logits) (Gumbel 1954); a filtered symbol never wins.

    Args:
        logits: `[batch, vocabulary]`.
        noise: `[batch, vocabulary]`, from `gumbel_noise`; None: take the likeliest symbol.
        temperature: divides the logits.
        top_k: sample from the k likeliest symbols; 0: from all.
        top_p: sample from the fewest likeliest symbols whose probabilities add up to at least this.

    Returns:
        int32 `[batch]`; of equally likely symbols, the lowest id goes first.
    """
    if noise is None:
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
    winner = tf.argmax(logits + noise, axis=-1, output_type=tf.int32)
    return winner if symbols is None else tf.gather(symbols, winner, batch_dims=1)


def _mask_tail(logits: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """Keeps the first `count` logits of each row; the others can no longer be sampled."""
    return tf.where(tf.range(logits.shape[1]) < count, logits, logits.dtype.min)
