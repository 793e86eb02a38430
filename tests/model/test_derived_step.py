"""Cells that have their derivative derived: it is the one by hand where there is one, and right where there is none."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.model import recurrence
from tfcharrnn.model.cells import Cell, get_cell_class
from tfcharrnn.model.cells.base import ExtraWeight, check_complete
from tfcharrnn.model.cells.gru import GRUCell
from tfcharrnn.model.cells.linear import LinearCell
from tfcharrnn.model.cells.lstm import LSTMCell
from tfcharrnn.model.cells.rnn import RNNCell
from tfcharrnn.verification import numpy_reference

TIME, BATCH, INPUT, HIDDEN = 5, 3, 4, 3
FROM_FORWARD = Cell.__dict__["backward"]


class DerivedRNNCell(RNNCell):
    """An Elman network without its own backward."""

    backward = FROM_FORWARD


class DerivedGRUCell(GRUCell):
    """A GRU without its own backward; it has two biases."""

    backward = FROM_FORWARD


class DerivedLSTMCell(LSTMCell):
    """An LSTM without its own backward."""

    backward = FROM_FORWARD


class IndependentCell(Cell):
    """h' = tanh(p + u h), one recurrent weight a unit (Li et al. 2018, IndRNN): no recurrent kernel."""

    num_gates = 1
    num_recurrent_gates = 0
    extra_weights = {"u": ExtraWeight((1,), 0.5)}  # noqa: RUF012

    @classmethod
    def forward(cls, p, q, state, u):
        return (tf.tanh(p + u * state[0]),)


class EverythingCell(Cell):
    """Two matrices, of which one multiplies the other's product, two vectors, three states, no bias, few q."""

    num_gates = 2
    num_recurrent_gates = 1
    num_state_tensors = 3
    has_bias = False
    extra_weights = {  # noqa: RUF012
        "shift": ExtraWeight((2,), (0.5, -0.5)),
        "inner": ExtraWeight((1, 2)),
        "gain": ExtraWeight((1,), 1.0),
        "outer": ExtraWeight((2, 1)),
    }

    @classmethod
    def forward(cls, p, q, state, shift, inner, gain, outer):
        h, c, old = state
        new = tf.sigmoid(gain * q) * old + outer(tf.tanh(inner(c) + p + shift))
        return tf.tanh(new) * h + q, tf.sin(new), c


def forget_products(cell_class):
    """The same cell, which computes its products again in the backward loop."""
    return type(cell_class.__name__, (cell_class,), {"keeps_products": False})


def random_cell(cell_class, seed=0):
    rng = np.random.default_rng(seed)
    cell = cell_class(INPUT, HIDDEN, rng, tf.float64)
    for variable in cell.trainable_variables:
        variable.assign(rng.normal(0.0, 0.6, variable.shape))
    return cell


def make_problem(cell, with_mask=True):
    """Input, state, mask and the factors of the outputs and the last state in a loss."""
    rng = np.random.default_rng(1)
    x = tf.Variable(rng.normal(size=(TIME, BATCH, INPUT)))
    state = tuple(tf.Variable(rng.normal(0.0, 0.5, (BATCH, HIDDEN))) for _ in range(cell.num_state_tensors))
    mask = rng.random((TIME, BATCH)) < 0.6
    factors = [rng.normal(size=(TIME, BATCH, HIDDEN)), *(rng.normal(size=(BATCH, HIDDEN)) for _ in state)]
    return x, state, tf.constant(mask) if with_mask else None, factors


def compute_loss(cell, x, state, mask, factors):
    state = tuple(map(tf.convert_to_tensor, state))
    outputs, last = recurrence.run_layer(cell, tf.convert_to_tensor(x), state, mask=mask)
    return tf.add_n([tf.reduce_sum(a * factor) for a, factor in zip((outputs, *last), factors, strict=True)])


def differentiate(cell, problem):
    """The loss and its gradients by input, state and weights."""
    x, state, mask, factors = problem
    with tf.GradientTape() as tape:
        loss = compute_loss(cell, x, state, mask, factors)
    return [loss, *tape.gradient(loss, (x, *state, *cell.named_variables.values()))]


@pytest.mark.parametrize("with_mask", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize(
    ("by_hand", "derived"), [(RNNCell, DerivedRNNCell), (GRUCell, DerivedGRUCell), (LSTMCell, DerivedLSTMCell)]
)
def test_the_derived_derivative_is_that_by_hand(by_hand, derived, keeps, with_mask):
    assert by_hand.has_own_backward() and not derived.has_own_backward()
    cells = [random_cell(cell_class) for cell_class in (by_hand, derived if keeps else forget_products(derived))]
    problem = make_problem(cells[0], with_mask)
    for got, expected in zip(*(differentiate(cell, problem) for cell in reversed(cells)), strict=True):
        assert numpy_reference.relative_error(got, expected) < 1e-12


def test_gates_of_another_activation_are_derived_as_well():
    gate = get_cell_class("gru", "hard_sigmoid").gate
    cells = [random_cell(type("Hard", (cell_class,), {"gate": gate})) for cell_class in (GRUCell, DerivedGRUCell)]
    problem = make_problem(cells[0])
    for got, expected in zip(*(differentiate(cell, problem) for cell in cells), strict=True):
        assert numpy_reference.relative_error(got, expected) < 1e-12


@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize("cell_class", [IndependentCell, EverythingCell])
def test_derived_gradients_are_those_of_central_differences(cell_class, keeps):
    """Of extra vectors and matrices, several states, cells without recurrent kernel or bias."""
    cell = random_cell(cell_class if keeps else forget_products(cell_class))
    check_complete(cell_class)
    x, state, mask, factors = problem = make_problem(cell)
    compiled = tf.function(lambda: compute_loss(cell, x, state, mask, factors), autograph=False)
    loss, *gradients = differentiate(cell, problem)
    assert float(compiled()) == pytest.approx(float(loss), rel=1e-12)
    sources = [x, *state, *cell.named_variables.values()]
    for variable, gradient in zip(sources, gradients, strict=True):
        values = variable.numpy().copy()

        def evaluate(variable=variable, values=values):
            variable.assign(values)
            return float(compiled())

        numerical = numpy_reference.central_differences(evaluate, values)
        variable.assign(values)
        assert np.linalg.norm(numerical) > 1e-3
        assert numpy_reference.relative_error(gradient, numerical) < 1e-9


@pytest.mark.parametrize("name", ["lnlstm", "mlstm"])
def test_products_computed_again_are_those_that_were_kept(name):
    cells = [random_cell(get_cell_class(name)), random_cell(forget_products(get_cell_class(name)))]
    problem = make_problem(cells[0])
    for got, expected in zip(*(differentiate(cell, problem) for cell in reversed(cells)), strict=True):
        assert numpy_reference.relative_error(got, expected) < 1e-12


def test_products_may_be_in_bfloat16():
    """The products are in bfloat16, all else in float32."""
    rng = np.random.default_rng(0)
    cell = EverythingCell(INPUT, HIDDEN, rng, tf.float32, tf.bfloat16)
    exact = EverythingCell(INPUT, HIDDEN, np.random.default_rng(0), tf.float32)
    x = tf.constant(rng.normal(size=(TIME, BATCH, INPUT)), tf.float32)
    results = []
    for c in (cell, exact):
        with tf.GradientTape() as tape:
            outputs, _ = recurrence.run_layer(c, x, (tf.fill([BATCH, HIDDEN], 0.5),) * 3)
        results.append([outputs, *tape.gradient(outputs, list(c.named_variables.values()))])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == tf.float32
        assert 0.0 < numpy_reference.relative_error(got, expected) < 0.05


# What is wrong with a cell is told


def run_wrong(forward, **attributes):
    """Runs an Elman network with an extra matrix and another step, forward and backward."""
    values = {"num_gates": 1, "extra_weights": {"v": ExtraWeight((1, 1))}, "forward": classmethod(forward)}
    cell_class = type("WrongCell", (Cell,), values | attributes)
    cell = random_cell(cell_class)
    return differentiate(cell, make_problem(cell))


@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda cls, p, q, state, v: (tf.tanh(p + v(q) + v(state[0])),), "once, not twice"),
        (lambda cls, p, q, state, v: (tf.tanh(p + q),), "use each of its extra matrices once"),
        (
            lambda cls, p, q, state, v: (tf.tanh(p + q + tf.stop_gradient(v(state[0]))),),
            "once, and in its result",
        ),
        (lambda cls, p, q, state, v: (p, v(q)), r"a tuple of 1 tensor .* as num_state_tensors says\. Received: 2"),
        (lambda cls, p, q, state, v: (), r"a tuple of 1 tensor .* as num_state_tensors says\. Received: 0"),
    ],
    ids=["twice", "never", "without effect", "two states", "no state"],
)
def test_a_wrong_step_is_told(forward, message, keeps):
    with pytest.raises(TypeError, match=rf"^WrongCell\.forward must .*{message}"):
        run_wrong(forward, keeps_products=keeps)


def test_a_right_step_is_not():
    assert len(run_wrong(lambda cls, p, q, state, v: (tf.tanh(p + v(q)),))) == 1 + 1 + 1 + 4


def test_a_class_that_contradicts_itself_is_told():
    with pytest.raises(TypeError, match=r"^SelfCell\.forward must be a @classmethod: a step has no weights"):

        class SelfCell(Cell):
            num_gates = 1

            def forward(self, p, q, state):
                return (p,)

    with pytest.raises(TypeError, match=r"^BothCell has extra weights and its own backward; leave out backward"):

        class BothCell(RNNCell):
            extra_weights = {"v": ExtraWeight((1,))}  # noqa: RUF012


@pytest.mark.parametrize(
    ("cell_class", "message"),
    [
        (int, "is not a subclass of tfcharrnn.Cell"),
        (RNNCell(2, 3, np.random.default_rng(0)), "is not a subclass of tfcharrnn.Cell"),
        (type("NoGates", (RNNCell,), {"num_gates": 0}), r"^NoGates\.num_gates must be the number of blocks"),
        (type("NoStep", (Cell,), {"num_gates": 1}), "^NoStep must define forward"),
        (type("NoStep", (LinearCell,), {"num_gates": 1}), "^NoStep must define coefficients"),
    ],
)
def test_an_incomplete_cell_is_told(cell_class, message):
    with pytest.raises(TypeError, match=message):
        check_complete(cell_class)
