"""How well n-gram models and general compressors predict a text, for orientation beside a model's loss."""

from __future__ import annotations

import gzip
import lzma
import math
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_ORDER = 5
# of a longer text only so many characters are measured
LONGEST = 2**24


def measure(
    ids: npt.NDArray[np.int32], text: str, alphabet_size: int, training: npt.NDArray[np.int32] | None = None
) -> dict[str, Any]:
    """All baselines of a text, in bits a character, as `evaluate --baselines` prints them.

    Args:
        ids: the text's symbols.
        text: the same as characters, for the compressors.
        alphabet_size: how many symbols there could be.
        training: what the model was trained on, where that is at hand.
    """
    ids, text = ids[:LONGEST], text[:LONGEST]
    data = text.encode("utf-8")
    result: dict[str, Any] = {"characters": len(ids), "ngrams": _by_order(ngram_bits(ids, alphabet_size))}
    if training is not None:
        result["ngrams_after_training"] = _by_order(ngram_bits(ids, alphabet_size, training[-LONGEST:]))
    result["gzip"] = 8 * len(gzip.compress(data, 9, mtime=0)) / len(text)
    result["xz"] = 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    return result


def ngram_bits(
    ids: npt.NDArray[np.int32], alphabet_size: int, before: npt.NDArray[np.int32] | None = None
) -> list[float]:
    """Bits a character of adaptive n-gram models of the orders 0 to `MAX_ORDER`, the mean over a text.

    Args:
        ids: the text.
        alphabet_size: see `ngram_probabilities`.
        before: a text that the models have read before, which is not counted.
    """
    read = 0 if before is None else len(before)
    everything = ids if before is None else np.concatenate([before, ids])
    probabilities = ngram_probabilities(everything, alphabet_size)
    return [math.fsum(-np.log2(order[read:])) / len(ids) for order in probabilities]


def ngram_probabilities(
    ids: npt.NDArray[np.int32], alphabet_size: int, max_order: int = MAX_ORDER
) -> npt.NDArray[np.float64]:
    """The probability that adaptive n-gram models give to each symbol of a text before they read it.

    An order-n model sees the n symbols h before a symbol c, and has counted the text up to there and nothing else, as
    a compressor would. It is smoothed by interpolation with the next lower order after Witten and Bell (IEEE
    Transactions on Information Theory 37, 1991, method C; as an interpolated model in Chen and Goodman, "An empirical
    study of smoothing techniques for language modeling", 1998, section 2.5):

        p_n(c | h) = (count(h c) + types(h) p_{n-1}(c | h')) / (count(h) + types(h))

    where count(h c) is how often c followed h so far, count(h) the sum of that over c, types(h) how many different c
    did, and h' is h without its first symbol. A context never seen, and one that would begin before the text, leaves
    p_{n-1}; and p_{-1} is 1 / alphabet_size.

    Args:
        ids: the text, `[symbols]`, each below `alphabet_size` or not: only which are equal matters.
        alphabet_size: how many symbols there could be.
        max_order: the highest n.

    Returns:
        `[max_order + 1, symbols]`.
    """
    size = len(ids)
    result = np.empty((max_order + 1, size))
    below = np.full(size, 1.0 / alphabet_size)
    symbols = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    num_symbols = int(symbols.max(initial=0)) + 1
    # for each place from `order` on: which context stands before it, and those places sorted by their contexts
    contexts, by_context = np.zeros(size, np.int64), np.arange(size)
    for order in range(max_order + 1):
        places = slice(order, size)
        grams = contexts * num_symbols + symbols
        by_gram = order + np.argsort(grams[places], kind="stable")
        seen_gram, rank = _seen_before(grams, by_gram)
        seen_context, _ = _seen_before(contexts, by_context)
        is_new = seen_gram == 0
        types = _sum_before(is_new, by_context, seen_context)
        # where the context is new all three are 0
        total = seen_context + types
        mixed = (seen_gram + types * below) / np.maximum(total, 1)
        result[order] = below
        result[order, places] = np.where(total > 0, mixed, below)[places]
        below = result[order]
        # the context of the next order is the gram that ends before a place
        contexts = np.concatenate([[0], rank[:-1]]) if size else contexts
        by_context = by_gram[by_gram < size - 1] + 1
    return result


def _seen_before(values: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """For each place how often its value stood before it, and the value's rank; both 0 where `order` has no place.

    Args:
        values: `[places]`.
        order: some of the places, sorted by value and then by place.
    """
    arranged = values[order]
    begins = np.ones(len(order), bool)
    begins[1:] = arranged[1:] != arranged[:-1]
    groups = np.cumsum(begins) - 1
    seen, rank = np.zeros(len(values), np.int64), np.zeros(len(values), np.int64)
    seen[order] = np.arange(len(order)) - np.flatnonzero(begins)[groups]
    rank[order] = groups
    return seen, rank


def _sum_before(
    flags: npt.NDArray[np.bool_], order: npt.NDArray[np.int64], seen: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """For each place how many flags are set before it at places of the same value, which `order` has side by side."""
    before: npt.NDArray[np.int64] = np.cumsum(flags[order]) - flags[order]
    result = np.zeros(len(flags), np.int64)
    result[order] = before - before[np.arange(len(order)) - seen[order]]
    return result


def _by_order(bits: list[float]) -> dict[str, float]:
    return {f"order_{order}": value for order, value in enumerate(bits)}
