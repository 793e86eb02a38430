"""All steps of a linear cell at once are its steps one after another: values, gradients, any chunk length."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies

from tfcharrnn.model import linear_recurrence, recurrence
from tfcharrnn.model.backends import run_custom
from tfcharrnn.model.cells import get_cell_class
from tfcharrnn.model.cells.base import ExtraWeight
from tfcharrnn.model.cells.linear import LinearCell
from tfcharrnn.model.input_projection import SymbolInput
from tfcharrnn.verification import numpy_reference

BATCH, INPUT, HIDDEN = 3, 4, 5
LINEAR_CELLS = ["mingru", "minlstm", "sru"]
PLAIN = 10**9  # one chunk


class FilterCell(LinearCell):
    """c' = sigmoid(d) c + p, h = tanh(c) R: a cell with an extra vector and an extra matrix."""

    num_gates = 1
    num_state_tensors = 2
    extra_weights = {"decay": ExtraWeight((1,), 2.0), "readout": ExtraWeight((1, 1))}  # noqa: RUF012

    @classmethod
    def coefficients(cls, p, decay, readout):
        return tf.sigmoid(decay) + tf.zeros_like(p), p

    @classmethod
    def output(cls, p, c, decay, readout):
        return readout(tf.tanh(c))


def random_cell(rng, cell_class, dtype=tf.float64):
    cell = cell_class(INPUT, HIDDEN, rng, dtype)
    for variable in cell.trainable_variables:
        variable.assign(rng.normal(0.0, 0.6, variable.shape))
    return cell


def differentiate(run, cell, x, state, factors):
    """Outputs, last state and all gradients of a loss that depends on every output and the last state."""
    with tf.GradientTape() as tape:
        tape.watch((x, state))
        outputs, last = run(cell, x, state)
        loss = tf.reduce_sum(outputs * factors[0]) + tf.add_n(
            [tf.reduce_sum(array * factor) for array, factor in zip(last, factors[1:], strict=True)]
        )
    sources = (x, *state, *cell.named_variables.values())
    return [outputs, *last, *tape.gradient(loss, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)]


# a length below, at and above each chunk, with and without a remainder, and a deep one
@pytest.mark.parametrize(
    ("length", "chunk", "masked"),
    [
        (1, 2, False),
        (2, 2, True),
        (3, 2, False),
        (16, 2, True),
        (2, 3, False),
        (10, 3, True),
        (7, 7, True),
        (50, 7, False),
        (40, PLAIN, True),
    ],
)
@pytest.mark.parametrize("cell_class", [*LINEAR_CELLS, FilterCell])
def test_all_steps_at_once_are_the_steps_one_by_one(cell_class, length, chunk, masked):
    rng = np.random.default_rng(length)
    cell = random_cell(rng, get_cell_class(cell_class) if isinstance(cell_class, str) else cell_class)
    x = tf.constant(rng.normal(size=(length, BATCH, INPUT)))
    state = tuple(tf.constant(rng.normal(size=(BATCH, HIDDEN))) for _ in range(cell.num_state_tensors))
    factors = [rng.normal(size=(length, BATCH, HIDDEN)), *(rng.normal(size=(BATCH, HIDDEN)) for _ in state)]
    mask = None
    if masked:
        steps = rng.random((length, BATCH)) < 0.6
        steps[:, 0] = False  # one text is skipped altogether
        mask = tf.constant(steps)
    at_once = differentiate(
        lambda *args: linear_recurrence.run_linear_layer(*args, mask, chunk), cell, x, state, factors
    )
    one_by_one = differentiate(lambda *args: recurrence.run_layer(*args, mask=mask), cell, x, state, factors)
    for got, expected in zip(at_once, one_by_one, strict=True):
        assert numpy_reference.relative_error(got, expected) < 1e-12


@pytest.mark.parametrize(
    ("name", "chunk", "dtype", "tolerance"),
    [
        ("sru", 2, tf.float32, 1e-5),
        ("mingru", 32, tf.float32, 1e-5),
        ("sru", 3, tf.float64, 1e-12),
        ("minlstm", 7, tf.float64, 1e-12),
    ],
)
def test_a_thousand_steps_at_once(name, chunk, dtype, tolerance):
    """From symbols, against the reference."""
    rng = np.random.default_rng(1)
    cell = random_cell(rng, get_cell_class(name), dtype)
    ids = rng.integers(0, INPUT, (1000, BATCH))
    state = tuple(rng.normal(size=(BATCH, HIDDEN)) for _ in range(cell.num_state_tensors))
    factors = [rng.normal(size=(1000, BATCH, HIDDEN)), *(rng.normal(size=(BATCH, HIDDEN)) for _ in state)]
    weights = {key: variable.numpy().astype(np.float64) for key, variable in cell.named_variables.items()}
    outputs, last, caches = numpy_reference.layer_forward(name, np.eye(INPUT)[ids], state, weights)
    _, d_state, gradients = numpy_reference.layer_backward(name, factors[0], factors[1:], caches, weights)
    expected = [outputs, *last, *d_state, *(gradients[key] for key in weights)]

    state = tuple(tf.constant(array, dtype) for array in state)
    with tf.GradientTape() as tape:
        tape.watch(state)
        symbols = SymbolInput(tf.constant(ids, tf.int32), INPUT)
        outputs, last = linear_recurrence.run_linear_layer(cell, symbols, state, None, chunk)
        loss = tf.add_n([tf.reduce_sum(a * f) for a, f in zip((outputs, *last), factors, strict=True)])
    sources = (*state, *cell.named_variables.values())
    got = [outputs, *last, *tape.gradient(loss, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)]
    for array, want in zip(got, expected, strict=True):
        assert numpy_reference.relative_error(tf.convert_to_tensor(array), want) < tolerance


def reference_scan(a, b, first, d_c):
    """c' = a c + b in a loop, and the gradients by a, b and the first c."""
    states = [first]
    for factor, term in zip(a, b, strict=True):
        states.append(factor * states[-1] + term)
    d_a, d_b, d = np.zeros_like(a), np.zeros_like(b), np.zeros_like(first)
    for t in reversed(range(len(a))):
        d = d + d_c[t]
        d_a[t], d_b[t] = d * states[t], d
        d = a[t] * d
    return np.stack(states[1:]), d_a, d_b, d


@hypothesis.given(
    length=strategies.integers(1, 40),
    chunk=strategies.integers(2, 45),
    # the scale of |a|: vanishing, usual, nearly 1, exactly 1 as in skipped steps
    kind=strategies.sampled_from(["zero", "tiny", "usual", "near one", "skipped"]),
    seed=strategies.integers(0, 1000),
    is_known=strategies.booleans(),
)
def test_a_scan_is_the_loop(length, chunk, kind, seed, is_known):
    rng = np.random.default_rng(seed)
    shape = (length, 2, 3)
    a = {
        "zero": np.zeros(shape),
        "tiny": 1e-200 * rng.uniform(-1.0, 1.0, shape),
        "usual": rng.uniform(-1.0, 1.0, shape),
        "near one": 1.0 - 1e-9 * rng.random(shape),
        "skipped": np.where(rng.random(shape) < 0.5, 1.0, rng.random(shape)),
    }[kind]
    b = rng.normal(size=shape)
    if kind == "skipped":
        b = np.where(a == 1.0, 0.0, b)
    first, d_c = rng.normal(size=shape[1:]), rng.normal(size=shape)
    expected = reference_scan(a, b, first, d_c)
    sources = [tf.constant(array) for array in (a, b, first)]
    known = tf.constant(expected[0]) if is_known else None
    with tf.GradientTape() as tape:
        tape.watch(sources)
        c = linear_recurrence.scan_linear(*sources, chunk, known)
    got = [c, *tape.gradient(c, sources, output_gradients=tf.constant(d_c))]
    for array, want in zip(got, expected, strict=True):
        assert array.shape == want.shape
        assert numpy_reference.relative_error(array, want) < 1e-12


@pytest.mark.parametrize("a", [0.0, 1e-30, 0.5, 1.0 - 1e-7, 1.0, -1.0])
@pytest.mark.parametrize("chunk", [2, 64])
def test_ten_thousand_steps_stay_finite_in_float32(a, chunk):
    """Products of |a| <= 1 may vanish, but nothing is divided by them."""
    length = 10_000
    factors, terms = tf.fill([length, 2], tf.constant(a)), tf.fill([length, 2], 0.25)
    with tf.GradientTape() as tape:
        tape.watch((factors, terms))
        c = linear_recurrence.scan_linear(factors, terms, tf.ones([2]), chunk)
    states, c_t = [], np.ones(2)
    for _ in range(length):
        c_t = np.float64(np.float32(a)) * c_t + 0.25
        states.append(c_t)
    np.testing.assert_allclose(c, states, rtol=1e-4, atol=1e-6)
    for gradient in tape.gradient(c, (factors, terms)):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", LINEAR_CELLS)
def test_saturated_gates_stay_finite_for_ten_thousand_steps(name):
    """With gates at 0 or 1 in float32, where f / (f + i) of the minimal LSTM would be 0 / 0."""
    rng = np.random.default_rng(2)
    cell = random_cell(rng, get_cell_class(name), tf.float32)
    gates = cell.num_gates
    x = tf.constant(rng.choice([-200.0, 200.0], (10_000, 1, INPUT)), tf.float32)
    cell.kernel.assign(tf.tile(tf.eye(INPUT, HIDDEN), [1, gates]))
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs, last = linear_recurrence.run_linear_layer(cell, x, cell.zero_state(1), None, 64)
    for array in (outputs, *last, tape.gradient(outputs, x)):
        assert np.all(np.isfinite(array))


def test_a_model_runs_linear_cells_at_once(monkeypatch):
    cell = random_cell(np.random.default_rng(0), get_cell_class("mingru"))
    calls = []
    monkeypatch.setattr(linear_recurrence, "run_linear_layer", lambda *args: calls.append(args))
    x = tf.zeros([2, BATCH, INPUT], tf.float64)
    run_custom(cell, x, cell.zero_state(BATCH), None)
    assert len(calls) == 1


def test_a_layer_too_large_for_the_caches_is_run_step_by_step(monkeypatch):
    rng = np.random.default_rng(0)
    cell = get_cell_class("mingru")(5, 4, rng, tf.float64)
    x, state = tf.constant(rng.normal(size=(7, 3, 5))), cell.zero_state(3)
    assert not linear_recurrence.is_loop_faster(cell, x)
    at_once, _ = run_custom(cell, x, state, None)
    monkeypatch.setattr(linear_recurrence, "_MAX_SUMS_AT_ONCE", 7 * 3 * 8 - 1)
    monkeypatch.setattr(linear_recurrence, "run_linear_layer", None)
    assert linear_recurrence.is_loop_faster(cell, x)
    np.testing.assert_allclose(run_custom(cell, x, state, None)[0], at_once, rtol=1e-12)
