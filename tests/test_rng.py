"""Random numbers are a function of (seed, purpose, step), today and in old runs."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcharrnn import rng
from tfcharrnn.rng import Purpose

KEY_ARGUMENTS = st.tuples(
    st.integers(0, 2**31 - 1), st.sampled_from(Purpose), st.integers(0, 2**40 - 1), st.integers(0, 2**20 - 1)
)


@settings(max_examples=200, deadline=None)
@given(KEY_ARGUMENTS, KEY_ARGUMENTS)
def test_different_arguments_have_different_keys(first, second):
    same = bool(np.all(rng.key(*first) == rng.key(*second)))
    assert same == (first == second)


def test_the_largest_arguments_do_not_collide():
    """The bounds of step and index meet in one 64-bit word without overlap or overflow."""
    top = rng.key(2**31 - 1, Purpose.SAMPLING, 2**40 - 1, 2**20 - 1).numpy()
    assert top.dtype == np.int64 and top.tolist() == [(2**31 - 1) * 256 + 4, 2**60 - 1]
    assert rng.key(0, Purpose.WEIGHTS, 1, 0).numpy().tolist() == [1, 2**20]


def test_a_key_is_the_same_from_tensors_and_in_a_graph():
    expected = rng.key(5, Purpose.DROPOUT, 7, 3).numpy()

    @tf.function
    def traced(seed, step, index):
        return rng.key(seed, Purpose.DROPOUT, step, index)

    got = traced(tf.constant(5, tf.int64), tf.constant(7, tf.int64), tf.constant(3, tf.int32))
    np.testing.assert_array_equal(got, expected)


def test_generator_follows_every_argument():
    base = (3, Purpose.WEIGHTS, 2, 1)
    first = rng.generator(*base).random(5)
    np.testing.assert_array_equal(first, rng.generator(*base).random(5))
    for other in [(4, *base[1:]), (3, Purpose.SHUFFLE, 2, 1), (3, Purpose.WEIGHTS, 3, 1), (3, Purpose.WEIGHTS, 2, 2)]:
        assert np.all(first != rng.generator(*other).random(5))


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_permutation_has_everything_once(size):
    order = rng.permutation(size, 0, Purpose.SHUFFLE, 0)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_permutation_follows_seed_and_step():
    orders = [rng.permutation(50, seed, Purpose.SHUFFLE, step) for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    np.testing.assert_array_equal(orders[3], rng.permutation(50, 1, Purpose.SHUFFLE, 1))


def test_permutation_is_uniform():
    """Every one of the 24 orders of four things, equally often: chi-squared with 23 degrees of freedom."""
    counts: dict[tuple[int, ...], int] = {}
    for step in range(4800):
        order = tuple(rng.permutation(4, 9, Purpose.SHUFFLE, step).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 200.0) ** 2 / 200.0 for count in counts.values()) < 49.7  # exceeded once in a thousand


def test_numbers_of_old_runs():
    """These numbers never change, so that a run started by an older version resumes with the same ones."""
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "WEIGHTS": 1,
        "SHUFFLE": 2,
        "DROPOUT": 3,
        "SAMPLING": 4,
        "SPLIT": 5,
        "BLOCK": 6,
        "RESET": 7,
    }
    assert rng.permutation(8, 1, Purpose.SHUFFLE, 2).tolist() == [5, 4, 1, 7, 2, 3, 6, 0]
    assert rng.key(1, Purpose.SAMPLING, 2, 3).numpy().tolist() == [260, 2097155]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100, 1023, 1024, 1025, 200_001])
def test_a_permuted_range_has_each_number_once(size):
    places = rng.permute_range(0, size, size, 7, Purpose.SPLIT, 3)
    assert np.array_equal(np.sort(places), np.arange(size))
    assert np.array_equal(
        rng.permute_range(size // 3, size // 2, size, 7, Purpose.SPLIT, 3), places[size // 3 : size // 2]
    )


def test_a_permuted_range_looks_uniform():
    size = 1_000_003
    places = rng.permute_range(0, size, size, 0, Purpose.SPLIT, 0)
    assert not np.array_equal(places, rng.permute_range(0, size, size, 1, Purpose.SPLIT, 0))
    # a tenth of the images, from each hundredth of the numbers, and as often adjacent as apart
    chosen = places < size // 10
    hundredths = chosen[: size // 100 * 100].reshape(100, -1).mean(axis=1)
    assert np.all(np.abs(hundredths - 0.1) < 5 * np.sqrt(0.09 / (size / 100)))
    for apart in (1, 2, 64, 1000):
        both = np.mean(chosen[apart:] & chosen[:-apart])
        assert abs(both - 0.01) < 5 * np.sqrt(0.01 / size)
    steps = np.histogram(np.diff(places) % size, bins=20)[0]
    assert np.all(np.abs(steps - size / 20) < 5 * np.sqrt(size / 20))


@pytest.mark.parametrize("rows", [range(0, 1), range(3, 7), range(0, 9)])
@pytest.mark.parametrize("size", [1, 4, 7])
def test_rows_of_a_batch_are_drawn_as_with_all_others(rows, size):
    key = rng.key(2**30, Purpose.DROPOUT, 5, 1)
    of_all = rng.uniform([6, 9, size], key).numpy()
    assert len(np.unique(of_all)) > 0.9 * of_all.size
    of_rows = rng.uniform_rows(6, 9, size, rows)
    assert np.array_equal(of_rows(key), of_all[:, rows.start : rows.stop])
    assert np.array_equal(tf.function(of_rows, jit_compile=True)(key), of_all[:, rows.start : rows.stop])
    longer = rng.uniform([11, 9, size], key).numpy()
    assert np.array_equal(longer[:6], of_all), "padding to another width changes nothing"
