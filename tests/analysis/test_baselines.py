"""The n-gram baselines against a slow computation of the same formula, symbol by symbol, and the compressors."""

import gzip
import lzma
import math
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcharrnn.analysis import baselines


class WittenBell:
    """The formula as it is written, with dictionaries."""

    def __init__(self, order, alphabet_size, number=float):
        self.order, self.alphabet_size, self.number = order, alphabet_size, number
        self.followers = defaultdict(Counter)

    def probability(self, text, place, symbol):
        """Of `symbol` after what stands in `text` before `place`."""
        p = self.number(1) / self.alphabet_size
        for n in range(min(self.order, place) + 1):
            counts = self.followers[text[place - n : place]]
            if counts:
                p = (counts[symbol] + len(counts) * p) / (sum(counts.values()) + len(counts))
        return p

    def read(self, text, place):
        for n in range(min(self.order, place) + 1):
            self.followers[text[place - n : place]][text[place]] += 1


def slow_probabilities(text, order, alphabet_size, number=float):
    model, result = WittenBell(order, alphabet_size, number), []
    for place, symbol in enumerate(text):
        result.append(model.probability(text, place, symbol))
        model.read(text, place)
    return result


def ids_of(text):
    return np.array([ord(character) for character in text], np.int32)


@given(st.text("abc", max_size=40), st.integers(3, 9))
def test_every_probability_is_that_of_the_formula(text, alphabet_size):
    found = baselines.compute_ngram_probabilities(ids_of(text), alphabet_size)
    assert found.shape == (6, len(text))
    for order in range(6):
        exact = slow_probabilities(text, order, alphabet_size, Fraction)
        np.testing.assert_allclose(found[order], [float(p) for p in exact], rtol=1e-12)


@given(st.text("abc", max_size=20), st.integers(0, 5))
def test_the_probabilities_of_all_symbols_sum_to_one(text, order):
    model = WittenBell(order, 3, Fraction)
    for place in range(len(text)):
        assert sum(model.probability(text, place, symbol) for symbol in "abc") == 1
        model.read(text, place)


def test_the_orders_of_a_real_text_match_to_1e_9(shakespeare):
    text = shakespeare.read_text(encoding="utf-8")[:60_000]
    found = baselines.measure_ngrams(ids_of(text), 65)
    for order in (0, 3, 5):
        expected = math.fsum(-math.log2(p) for p in slow_probabilities(text, order, 65)) / len(text)
        assert found[order] == pytest.approx(expected, abs=1e-9)
    assert found[3] < found[2] < found[1] < found[0] < math.log2(65)


@given(st.text("ab", min_size=1, max_size=30), st.text("ab", max_size=30))
def test_a_text_read_before_is_known_but_not_counted(text, before):
    found = baselines.measure_ngrams(ids_of(text), 4, ids_of(before))
    for order in range(6):
        p = slow_probabilities(before + text, order, 4)[len(before) :]
        assert found[order] == pytest.approx(-sum(map(math.log2, p)) / len(text), abs=1e-9)


def test_symbols_may_be_any_numbers():
    text = "so it goes, and so it goes on"
    other = np.unique(ids_of(text), return_inverse=True)[1].astype(np.int32)
    assert baselines.measure_ngrams(other, 30) == baselines.measure_ngrams(ids_of(text), 30)


def test_compressors_are_told_in_bits_a_character():
    text = "naïve café — 🙂\n" * 40
    result = baselines.measure(ids_of(text), text, 20)
    data = text.encode()
    assert result["characters"] == len(text)
    assert result["gzip"] * len(text) == pytest.approx(8 * len(gzip.compress(data, 9)))
    assert result["xz"] * len(text) == pytest.approx(8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)))
    assert "ngrams_after_training" not in result
    again = baselines.measure(ids_of(text), text, 20, ids_of(text))
    assert again["ngrams_after_training"]["order_5"] < again["ngrams"]["order_5"] / 3


def test_compressors_of_bytes_are_told_in_bits_a_byte():
    data = ("naïve café — 🙂\n" * 40).encode() + b"\xff\xfe"
    symbols = data.decode("latin-1")
    result = baselines.measure(ids_of(symbols), symbols, 20, of_bytes=True)
    assert result["characters"] == len(data)
    assert result["gzip"] * len(data) == pytest.approx(8 * len(gzip.compress(data, 9)))
