"""Cells: their variables in the layout of every backend, and one step of each."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.cell_registry import BUILT_IN
from tfcharrnn.config import RECURRENT_ACTIVATIONS, ModelConfig
from tfcharrnn.model import backends
from tfcharrnn.model.backends import LIBRARY_CELLS
from tfcharrnn.model.cells import base, get_cell_class
from tfcharrnn.model.cells.base import get_initializers, glorot_uniform, orthogonal
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.verification import numpy_reference, reference_cells

GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def make(name, input_size=5, hidden_size=6, seed=0, dtype=tf.float64):
    return get_cell_class(name)(input_size, hidden_size, np.random.default_rng(seed), dtype)


@pytest.mark.parametrize("name", GATES)
def test_variables_are_in_keras_layout(name):
    cell = make(name)
    columns = GATES[name] * 6
    assert cell.kernel.shape == (5, columns)
    assert cell.recurrent_kernel.shape == (6, columns)
    assert cell.bias.shape == ((2, columns) if name == "gru" else (columns,))
    assert {variable.dtype for variable in cell.trainable_variables} == {tf.float64}
    assert len(cell.trainable_variables) == 3


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (
            "lnlstm",
            {"kernel": (5, 24), "recurrent_kernel": (6, 24), "input_gain": (24,), "recurrent_gain": (24,)}
            | {"shift": (24,), "cell_gain": (6,), "cell_shift": (6,)},
        ),
        ("mlstm", {"kernel": (5, 30), "recurrent_kernel": (6, 6), "bias": (30,), "gate_kernel": (6, 24)}),
        ("mingru", {"kernel": (5, 12), "bias": (12,)}),
        ("minlstm", {"kernel": (5, 18), "bias": (18,)}),
        ("sru", {"kernel": (5, 24), "bias": (24,)}),
    ],
)
def test_variables_of_cells_that_keras_does_not_have(name, shapes):
    cell = make(name)
    assert {key: tuple(variable.shape) for key, variable in cell.named_variables.items()} == shapes
    assert get_cell_class(name).variable_shapes(5, 6) == shapes
    assert len(cell.trainable_variables) == len(shapes)
    assert (cell.recurrent_kernel is None) == cell.is_linear == ("recurrent_kernel" not in shapes)


def test_the_recurrent_gates_are_the_gates_unless_a_class_says_otherwise():
    class Wider(get_cell_class("rnn")):
        num_gates = 3

    class NoKernel(get_cell_class("mingru")):
        num_gates = 7

    class Named(Wider):
        num_gates, num_recurrent_gates = 3, 2

    class Again(Named):
        num_gates = 4

    assert [cell.num_recurrent_gates for cell in (Wider, NoKernel, Named, Again)] == [3, 0, 2, 2]


@pytest.mark.parametrize(
    ("name", "variable", "blocks"),
    [
        ("rnn", "bias", [0]),
        ("lstm", "bias", [0, 1, 0, 0]),
        ("lnlstm", "shift", [0, 1, 0, 0]),
        ("lnlstm", "input_gain", [1] * 4),
        ("lnlstm", "recurrent_gain", [1] * 4),
        ("lnlstm", "cell_gain", [1]),
        ("lnlstm", "cell_shift", [0]),
        ("mlstm", "bias", [0, 0, 1, 0, 0]),
        ("mingru", "bias", [0, 0]),
        ("minlstm", "bias", [0, 1, 0]),
        ("sru", "bias", [0, 1, 0, 0]),
    ],
)
def test_only_the_forget_gate_has_an_initial_bias(name, variable, blocks):
    np.testing.assert_array_equal(make(name).named_variables[variable], np.repeat(np.float64(blocks), 6))
    assert not make("gru").bias.numpy().any()


def test_an_extra_matrix_is_drawn_like_a_recurrent_kernel():
    matrix = make("mlstm").gate_kernel.numpy()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(6), atol=1e-12)
    cell = get_cell_class("mlstm")(5, 60, np.random.default_rng(0), initializers=get_initializers("normal", 0.01))
    assert cell.gate_kernel.numpy().std() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("name", [*GATES, "lnlstm", "mlstm"])
def test_recurrent_kernel_is_orthogonal(name):
    u = make(name).recurrent_kernel.numpy()
    np.testing.assert_allclose(u @ u.T, np.eye(6), atol=1e-12)


def test_a_tall_orthogonal_matrix_has_orthonormal_columns():
    matrix = orthogonal(np.random.default_rng(0), 7, 3)
    assert matrix.shape == (7, 3)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-12)


def test_orthogonal_is_not_biased_by_the_qr_decomposition():
    """LAPACK's R has diagonal entries of mostly one sign; uniform over the rotations, the mean of Q is zero."""
    rng = np.random.default_rng(0)
    mean = np.mean([orthogonal(rng, 3, 3) for _ in range(4000)], axis=0)
    assert np.abs(mean).max() < 5 * np.sqrt(1 / 3 / 4000)


def test_kernel_fills_the_glorot_bounds():
    limit = np.sqrt(6.0 / (50 + 80))
    values = glorot_uniform(np.random.default_rng(0), 50, 80)
    assert values.shape == (50, 80)
    assert np.abs(values).max() <= limit
    assert values.min() < -0.99 * limit and values.max() > 0.99 * limit
    assert values.std() == pytest.approx(limit / np.sqrt(3), rel=0.03)
    assert np.abs(make("lstm").kernel.numpy()).max() <= np.sqrt(6.0 / (5 + 24))


@pytest.mark.parametrize("name", BUILT_IN)
def test_weights_follow_the_seed(name):
    def weights(seed):
        config = ModelConfig(cell=name, hidden_size=6, num_layers=2, embedding_size=3)
        return {key: value.numpy() for key, value in numpy_reference.variables(CharRNN(config, 7, seed)).items()}

    first, same, other = weights(1), weights(1), weights(2)
    for key, value in first.items():
        np.testing.assert_array_equal(value, same[key])
        assert value.ndim == 1 or key.endswith("bias") or np.all(value != other[key])
    if not get_cell_class(name).is_linear:
        assert not np.allclose(first["cells/0/recurrent_kernel"], first["cells/1/recurrent_kernel"])


@pytest.mark.parametrize("name", BUILT_IN)
def test_zero_state(name):
    cell = make(name)
    state = cell.zero_state(3)
    assert len(state) == cell.num_state_tensors == reference_cells.STATE_TENSORS[name]
    for tensor in state:
        assert tensor.shape == (3, 6) and tensor.dtype == tf.float64 and not np.any(tensor)


@pytest.mark.parametrize("name", BUILT_IN)
def test_one_step_is_the_reference_step(name):
    rng = np.random.default_rng(3)
    cell = make(name)
    for variable in cell.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    weights = {key: variable.numpy() for key, variable in cell.named_variables.items()}
    x, state = rng.normal(size=(4, 5)), tuple(rng.normal(size=(4, 6)) for _ in range(cell.num_state_tensors))
    tensors = tuple(map(tf.constant, state))
    got = cell.step(cell.project(tf.constant(x)), cell.recur(tensors[0]), tensors)
    expected, _ = reference_cells.FORWARD[name](x, state, weights)
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-14)


def test_gates_of_each_activation_are_the_formulas_of_keras():
    """At points that tell the three apart, at both ends of the hard ones' slopes, and beyond."""
    a = tf.constant([-4.0, -3.0, -2.75, -2.5, -1.0, 0.0, 1.0, 2.5, 2.75, 3.0, 4.0], tf.float64)
    e = np.exp(-a.numpy())
    golden = {
        "sigmoid": (1 / (1 + e), e / (1 + e) ** 2),
        "hard_sigmoid": (
            [0.0, 0.0, 0.0, 0.0, 0.3, 0.5, 0.7, 1.0, 1.0, 1.0, 1.0],
            [0.0, 0.0, 0.0, 0.0, 0.2, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0],
        ),
        "hard_sigmoid_6": (
            [0.0, 0.0, 1 / 24, 1 / 12, 1 / 3, 0.5, 2 / 3, 11 / 12, 23 / 24, 1.0, 1.0],
            [0.0, 0.0, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 0.0, 0.0],
        ),
    }
    assert golden.keys() == base.GATE_ACTIVATIONS.keys() == reference_cells.GATES.keys() == set(RECURRENT_ACTIVATIONS)
    for name, (values, slopes) in golden.items():
        gate = base.GATE_ACTIVATIONS[name]
        assert gate.name == name
        np.testing.assert_allclose(gate.value(a), values, atol=1e-15)
        np.testing.assert_allclose(
            gate.gradient(tf.fill([11], tf.constant(3.0, tf.float64)), gate.value(a)),
            3.0 * np.array(slopes),
            atol=1e-14,
        )
        np.testing.assert_allclose(reference_cells.GATES[name](a), values, atol=1e-15)
        np.testing.assert_allclose(reference_cells.SLOPES[name](reference_cells.GATES[name](a)), slopes, atol=1e-15)


def test_equal_settings_give_the_same_cell_class():
    """Compiled loops are cached by class, so a new one for every model would compile them again."""
    for name in LIBRARY_CELLS:
        assert get_cell_class(name) is get_cell_class(name)
    hard = get_cell_class("lstm", "hard_sigmoid")
    assert hard is get_cell_class("lstm", "hard_sigmoid") and issubclass(hard, get_cell_class("lstm"))
    assert hard.gate is base.HARD_SIGMOID and get_cell_class("lstm").gate is base.SIGMOID


@pytest.mark.parametrize("name", BUILT_IN)
def test_large_sums_saturate_and_stay_finite(name):
    columns = get_cell_class(name).num_gates * 6
    cell = make(name, input_size=columns, dtype=tf.float32)
    cell.kernel.assign(tf.eye(columns))  # x W = x
    for sign in (-1.0, 1.0):
        x = tf.fill([1, 2, columns], sign * 1e4)
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs, _ = backends.run_custom(cell, x, cell.zero_state(2), None)
        # a linear cell has no tanh; its state is a weighted average of what enters
        assert np.all(np.abs(outputs) <= (1e4 if cell.is_linear else 1.0))
        assert np.all(np.isfinite(tape.gradient(outputs, x)))


def test_two_kernels_can_be_drawn_as_one_matrix():
    cell = get_cell_class("lstm")(7, 5, np.random.default_rng(0), initializers=get_initializers("glorot_joint", 0.0))
    joint = glorot_uniform(np.random.default_rng(0), 12, 20)
    np.testing.assert_allclose(cell.kernel.numpy(), joint[:7], rtol=1e-6)
    np.testing.assert_allclose(cell.recurrent_kernel.numpy(), joint[7:], rtol=1e-6)
