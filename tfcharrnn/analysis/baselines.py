"""Measures how well n-gram models and compressors predict a text, for comparison with a model's loss."""

from __future__ import annotations

import gzip
import lzma
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tfcharrnn.symbols import symbols_to_bytes

MAX_ORDER = 5
# only this many characters of a longer text are measured
MAX_CHARACTERS = 2**24


def measure(
    ids: npt.NDArray[np.int32],
    text: str,
    alphabet_size: int,
    training: npt.NDArray[np.int32] | None = None,
    *,
    of_bytes: bool = False,
) -> dict[str, Any]:
    """Measures all baselines of a text in bits per character, in the format of `evaluate --baselines`.

    Args:
        ids: the symbols of the text, `[symbols]`.
        text: the same text as characters, for the compressors.
        alphabet_size: number of possible symbols.
        training: the model's training text, if available, `[symbols]`.
        of_bytes: whether the characters are bytes.
    """
    ids, text = ids[:MAX_CHARACTERS], text[:MAX_CHARACTERS]
    data = symbols_to_bytes(text, of_bytes)
    result: dict[str, Any] = {"characters": len(ids), "ngrams": _label_orders(measure_ngrams(ids, alphabet_size))}
    if training is not None:
        bits = measure_ngrams(ids, alphabet_size, training[-MAX_CHARACTERS:])
        result["ngrams_after_training"] = _label_orders(bits)
    result["gzip"] = 8 * len(gzip.compress(data, 9, mtime=0)) / len(text)
    result["xz"] = 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    return result


def measure_ngrams(
    ids: npt.NDArray[np.int32], alphabet_size: int, training: npt.NDArray[np.int32] | None = None
) -> list[float]:
    """Measures adaptive n-gram models of the orders 0 to `MAX_ORDER`, in mean bits per character of a text.

    Args:
        ids: the text, `[symbols]`.
        alphabet_size: number of possible symbols.
        training: a text that the models read first and that is not measured, `[symbols]`.
    """
    start = 0 if training is None else len(training)
    full_text = ids if training is None else np.concatenate([training, ids])
    probabilities = compute_ngram_probabilities(full_text, alphabet_size)
    return [math.fsum(-np.log2(order[start:])) / len(ids) for order in probabilities]


def compute_ngram_probabilities(
    ids: npt.NDArray[np.int32], alphabet_size: int, max_order: int = MAX_ORDER
) -> npt.NDArray[np.float64]:
    """Computes the probability that adaptive n-gram models assign to each symbol of a text before they read it.

    An order-n model predicts a symbol c from the n symbols h before it and, like a compressor, from counts over the
    text read so far only. It is smoothed by interpolation with the next lower order after Witten and Bell (IEEE
    Transactions on Information Theory 37, 1991, method C; as an interpolated model in Chen and Goodman, "An empirical
    study of smoothing techniques for language modeling", 1998, section 2.5):

        p_n(c | h) = (count(h c) + types(h) p_{n-1}(c | h')) / (count(h) + types(h))

    where count(h c) is the number of times that c followed h so far, count(h) its sum over all c, types(h) the number
    of different c that followed h, and h' is h without its first symbol. If h has not occurred, or would start before
    the text, p_n is p_{n-1}; p_{-1} is 1 / alphabet_size.

    Args:
        ids: the text, `[symbols]`; only which values are equal matters.
        alphabet_size: number of possible symbols.
        max_order: the highest n.

    Returns:
        `[max_order + 1, symbols]`.
    """
    size = len(ids)
    result = np.empty((max_order + 1, size))
    lower = np.full(size, 1.0 / alphabet_size)
    symbols = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    num_symbols = int(symbols.max(initial=0)) + 1
    # the context of each position from `order` on, and those positions sorted by context
    contexts, by_context = np.zeros(size, np.int64), np.arange(size)
    for order in range(max_order + 1):
        positions = slice(order, size)
        grams = contexts * num_symbols + symbols
        by_gram = order + np.argsort(grams[positions], kind="stable")
        gram_counts, gram_ranks = _count_earlier(grams, by_gram)
        context_counts, _ = _count_earlier(contexts, by_context)
        is_new = gram_counts == 0
        types = _sum_earlier(is_new, by_context, context_counts)
        # for a new context, counts and types are 0
        total = context_counts + types
        interpolated = (gram_counts + types * lower) / np.maximum(total, 1)
        result[order] = lower
        result[order, positions] = np.where(total > 0, interpolated, lower)[positions]
        lower = result[order]
        # the context of the next order is the gram that ends at the previous position
        contexts = np.concatenate([[0], gram_ranks[:-1]]) if size else contexts
        by_context = by_gram[by_gram < size - 1] + 1
    return result


def _count_earlier(values: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """Counts for each position how often its value occurred before it.

    Args:
        values: `[positions]`.
        order: a subset of the positions, sorted by value and then by position.

    Returns:
        The counts and the rank of each value, both `[positions]` and 0 at positions that are not in `order`.
    """
    ordered = values[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    groups = np.cumsum(is_first) - 1
    counts, ranks = np.zeros(len(values), np.int64), np.zeros(len(values), np.int64)
    counts[order] = np.arange(len(order)) - np.flatnonzero(is_first)[groups]
    ranks[order] = groups
    return counts, ranks


def _sum_earlier(
    flags: npt.NDArray[np.bool_], order: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Counts for each position the flags at earlier positions of the same value; see `_count_earlier`."""
    before: npt.NDArray[np.int64] = np.cumsum(flags[order]) - flags[order]
    result = np.zeros(len(flags), np.int64)
    result[order] = before - before[np.arange(len(order)) - counts[order]]
    return result


def _label_orders(bits: list[float]) -> dict[str, float]:
    return {f"order_{order}": value for order, value in enumerate(bits)}
