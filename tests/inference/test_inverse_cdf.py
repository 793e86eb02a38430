"""Sampling of symbols: frequencies, filters, ties."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfcharrnn import rng
from tfcharrnn.inference.inverse_cdf import sample_symbols

LOGITS = [1.0, 2.5, -1.0, 2.0, 0.0, -3.0]
DRAWS = 40_000

# logits with ties, and none so near another that float32 could not tell
grids = hnp.arrays(np.float32, st.integers(2, 9), elements=st.integers(-6, 6).map(lambda value: value / 2.0))


def draw(logits, key, *, greedy=False, **settings):
    return sample_symbols(logits, None if greedy else rng.uniform(tf.shape(logits)[:1], key, logits.dtype), **settings)


def key(step=0):
    return rng.key(1, rng.Purpose.SAMPLING, step)


def probabilities(logits, temperature=1.0):
    exponential = np.exp((np.float64(logits) - np.max(logits)) / temperature)
    return exponential / exponential.sum()


def many(logits, step=0, count=DRAWS, **options):
    """Independent draws from the same logits, `[count]`."""
    return draw(tf.tile(tf.constant([logits], tf.float32), [count, 1]), key(step), **options).numpy()


def check_frequencies(drawn, expected):
    """Pearson's chi-squared, at five standard deviations above its mean; impossible symbols must not occur."""
    counts = np.bincount(drawn, minlength=len(expected))
    possible = expected > 0.0
    assert not counts[~possible].any()
    means = expected[possible] * len(drawn)
    assert means.min() > 5.0
    freedom = possible.sum() - 1
    assert ((counts[possible] - means) ** 2 / means).sum() < freedom + 5.0 * np.sqrt(2.0 * freedom)


def keep(logits, allowed, temperature=1.0):
    """The probabilities with everything but `allowed` filtered out."""
    p = np.where(np.isin(np.arange(len(logits)), allowed), probabilities(logits, temperature), 0.0)
    return p / p.sum()


def top_k_ids(logits, k):
    """The k likeliest; of several alike, the lowest ids."""
    return np.argsort(-np.asarray(logits), kind="stable")[:k]


def top_p_ids(logits, p):
    """The fewest likeliest symbols with at least this probability."""
    order = np.argsort(-np.asarray(logits), kind="stable")
    return order[: np.searchsorted(np.cumsum(probabilities(logits)[order]), p) + 1]


@pytest.mark.parametrize("temperature", [0.8, 1.0, 3.0])
def test_frequencies_are_those_of_softmax(temperature):
    check_frequencies(many(LOGITS, temperature=temperature), probabilities(LOGITS, temperature))


def test_frequencies_over_the_positions_of_a_text():
    """As a text is drawn: one symbol for each key, the keys one after the other."""

    @tf.function
    def text():
        logits = tf.constant([LOGITS])
        return tf.map_fn(
            lambda t: draw(logits, key(t))[0], tf.range(6000, dtype=tf.int64), fn_output_signature=tf.int32
        )

    drawn = text().numpy()
    check_frequencies(drawn[drawn != 5], keep(LOGITS, [0, 1, 2, 3, 4]))
    pairs = 6 * drawn[:-1:2] + drawn[1::2]  # and one position tells nothing about the next
    likely = np.isin(drawn[:-1:2], [0, 1, 3]) & np.isin(drawn[1::2], [0, 1, 3])
    p = keep(LOGITS, [0, 1, 3])
    check_frequencies(pairs[likely], np.outer(p, p).ravel())


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_filters_keep_the_proportions_of_what_is_left(jit_compile):
    def frequencies(**options):
        return tf.function(lambda: draw(tf.constant([LOGITS] * DRAWS), key(3), **options), jit_compile=jit_compile)()

    check_frequencies(frequencies(top_k=3).numpy(), keep(LOGITS, [1, 3, 0]))
    assert set(top_p_ids(LOGITS, 0.9)) == {1, 3, 0}
    check_frequencies(frequencies(top_p=0.9, top_k=5).numpy(), keep(LOGITS, [1, 3, 0]))
    # the temperature comes first: at 3 the mass is spread, and 0.9 of it needs one symbol more
    check_frequencies(frequencies(top_p=0.9, temperature=3.0).numpy(), keep(LOGITS, [1, 3, 0, 4, 2], temperature=3.0))


def test_top_p_is_measured_over_what_top_k_leaves():
    """Of four alike, top_k leaves two, and a half of those two is one."""
    assert set(many([1.0, 1.0, 1.0, 1.0], top_p=0.5)) == {0, 1}
    assert set(many([1.0, 1.0, 1.0, 1.0], top_p=0.5, top_k=2)) == {0}


@settings(max_examples=40, deadline=None)
@given(logits=grids, k=st.integers(1, 10))
def test_top_k_is_exact_with_ties(logits, k):
    """Exactly the k likeliest can be drawn; at a high temperature all of them are."""
    assert set(many(logits, count=400, top_k=k, temperature=1e6)) == set(top_k_ids(logits, k))


@settings(max_examples=40, deadline=None)
@given(logits=grids, p=st.floats(0.01, 0.999))
def test_top_p_keeps_the_fewest_symbols_that_hold_the_mass(logits, p):
    order = np.argsort(-logits, kind="stable")
    if np.abs(np.cumsum(probabilities(logits)[order]) - p).min() < 1e-5:
        return  # too near to a sum for float32 to say
    allowed = top_p_ids(logits, p)
    assert set(many(logits, count=500, top_p=p)) <= set(allowed)
    # the least likely that is left can be drawn: with the others far below, it wins in the end
    if probabilities(logits)[allowed[-1]] > 0.03:
        assert allowed[-1] in many(logits, count=1000, top_p=p)


@settings(max_examples=40, deadline=None)
@given(logits=grids)
def test_greedy_takes_the_likeliest_with_the_lowest_id(logits):
    drawn = draw(tf.constant([logits, logits[::-1]]), key(), greedy=True, temperature=50.0)
    assert drawn.dtype == tf.int32
    assert drawn.numpy().tolist() == [int(np.argmax(logits)), int(np.argmax(logits[::-1]))]


def test_ties_are_broken_alike_when_compiled_by_xla():
    logits = tf.constant([[0.0, 2.0, 1.0, 2.0, 1.0, 1.0]] * 400)

    def compiled(**options):
        return set(tf.function(lambda: draw(logits, key(), temperature=9.0, **options), jit_compile=True)().numpy())

    assert compiled(greedy=True) == {1}
    assert compiled(top_k=1) == compiled(top_p=1e-6) == {1}
    assert compiled(top_k=4) == {1, 3, 2, 4}


@settings(max_examples=30, deadline=None)
@given(logits=grids, step=st.integers(0, 2**40 - 1))
def test_one_symbol_left_is_greedy(logits, step):
    for options in [{"top_k": 1}, {"top_p": 1e-6}]:
        assert set(many(logits, step, count=20, **options)) == {int(np.argmax(logits))}


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}, {"top_k": 4, "top_p": 0.5}])
@pytest.mark.parametrize("temperature", [1e-30, 1e-3])
def test_a_tiny_temperature_takes_the_likeliest(temperature, options, jit_compile):
    """Nothing overflows into a wrong symbol; of two alike, each is drawn half of the time."""
    lowest = float(np.finfo(np.float32).min)
    logits = tf.constant([[lowest, 30.0, -1000.0, 29.0, 0.0], [lowest, 5.0, 1.0, 5.0, -7.0]], tf.float32)
    rows = tf.repeat(logits, 400, axis=0)
    drawn = tf.function(lambda: draw(rows, key(), temperature=temperature, **options), jit_compile=jit_compile)()
    assert set(drawn.numpy()[:400]) == {1}
    if options.get("top_p") == 0.5:
        assert set(drawn.numpy()[400:]) == {1}
    else:
        assert 140 < (drawn.numpy()[400:] == 1).sum() < 260 and set(drawn.numpy()[400:]) == {1, 3}


def test_draws_follow_their_key():
    first = many(LOGITS, step=0, count=100)
    np.testing.assert_array_equal(first, many(LOGITS, step=0, count=100))
    assert np.any(first != many(LOGITS, step=1, count=100))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("size", [1, 2, 68, 128, 129, 200, 5000])
def test_a_symbol_is_where_the_sum_of_the_probabilities_passes_the_number(size, jit_compile):
    """In vocabularies of any size, whose sums are made in one product or block by block."""
    generator = np.random.default_rng(size)
    logits = generator.normal(0, 3, (300, size)).astype(np.float32)
    logits[generator.random(logits.shape) < 0.3] = np.finfo(np.float32).min  # impossible
    logits[:, generator.integers(size)] = 0.0
    uniforms = generator.random(300)
    uniforms[:2] = 2.0**-33, 1.0 - 2.0**-24  # the least and greatest there are
    sample = tf.function(sample_symbols, jit_compile=jit_compile, autograph=False)
    drawn = sample(tf.constant(logits), tf.constant(uniforms, tf.float32)).numpy()
    rows = np.arange(300)
    weights = np.array([probabilities(row) for row in logits])
    sums = np.cumsum(weights, axis=1)
    assert (weights[rows, drawn] > 0).all()
    assert (sums[rows, drawn] > uniforms - 1e-5).all()
    assert ((sums - weights)[rows, drawn] < uniforms + 1e-5).all()
