"""The NumPy reference against central differences and cases simple enough to compute by hand."""

import numpy as np
import pytest

from tfcharrnn.cell_registry import BUILT_IN
from tfcharrnn.config import ModelConfig
from tfcharrnn.model.cells import get_cell_class
from tfcharrnn.model.char_rnn import variable_shapes
from tfcharrnn.verification import numpy_reference, reference_cells

TIME, BATCH, VOCABULARY, HIDDEN, EMBEDDING = 5, 3, 4, 4, 2


def random_parameters(rng, cell, layers, embedding=False, layer_norm=False):
    """Random parameters, biases included."""
    size = EMBEDDING if embedding else 0
    config = ModelConfig(cell=cell, hidden_size=HIDDEN, num_layers=layers, embedding_size=size, layer_norm=layer_norm)
    return {name: rng.normal(0.0, 0.7, shape) for name, shape in variable_shapes(config, VOCABULARY).items()}


def random_state(rng, cell, layers, batch=BATCH):
    tensors = reference_cells.STATE_TENSORS[cell]
    return [tuple(rng.normal(0, 0.5, (batch, HIDDEN)) for _ in range(tensors)) for _ in range(layers)]


def random_text(rng, batch=BATCH):
    return rng.integers(0, VOCABULARY, (TIME, batch)), rng.integers(0, VOCABULARY, (TIME, batch))


def test_every_cell_has_a_reference():
    assert set(BUILT_IN) == reference_cells.FORWARD.keys() == reference_cells.BACKWARD.keys()
    assert {name: get_cell_class(name).num_state_tensors for name in BUILT_IN} == reference_cells.STATE_TENSORS


def check_gradients(parameters, run, states=()):
    """Checks the gradients that `run` returns, by parameters and states, against central differences."""
    result = run()
    assert result.gradients.keys() == parameters.keys()

    def loss():
        return run().loss

    for name, array in parameters.items():
        numerical = numpy_reference.central_differences(loss, array)
        assert np.linalg.norm(numerical) > 1e-5, name
        assert numpy_reference.relative_error(result.gradients[name], numerical) < 1e-7, name
    for arrays, gradients in zip(states, result.state_gradients, strict=bool(states)):
        for array, gradient in zip(arrays, gradients, strict=True):
            assert numpy_reference.relative_error(gradient, numpy_reference.central_differences(loss, array)) < 1e-7


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "state-mask-dropout-weights"])
@pytest.mark.parametrize(("layers", "embedding"), [(1, True), (2, False)], ids=["1-embedding", "2-one-hot"])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_gradients_are_those_of_central_differences(cell, layers, embedding, extras):
    rng = np.random.default_rng(7)
    parameters = random_parameters(rng, cell, layers, embedding)
    inputs, targets = random_text(rng)
    more = draw_extras(rng, cell, layers) if extras else {}
    check_gradients(
        parameters,
        lambda: numpy_reference.run_model(cell, parameters, inputs, targets, **more),
        more.get("state", ()),
    )


@pytest.mark.parametrize(
    ("residual", "layer_norm"), [(True, False), (False, True), (True, True)], ids=["residual", "norm", "both"]
)
@pytest.mark.parametrize("cell", ["rnn", "sru"])
def test_gradients_through_residual_connections_and_normalisation(cell, residual, layer_norm):
    rng = np.random.default_rng(8)
    parameters = random_parameters(rng, cell, 3, layer_norm=layer_norm)
    inputs, targets = random_text(rng)
    more = draw_extras(rng, cell, 3)
    check_gradients(
        parameters,
        lambda: numpy_reference.run_model(cell, parameters, inputs, targets, residual=residual, **more),
        more["state"],
    )


def draw_extras(rng, cell, layers):
    """A state, a mask that skips steps, factors of dropout, and weights of the characters."""
    mask = rng.random((TIME, BATCH)) < 0.6
    assert not mask.all() and mask.any()
    return {
        "state": random_state(rng, cell, layers),
        "mask": mask,
        "dropout": [rng.choice([0.0, 2.0], (TIME, BATCH, HIDDEN)) for _ in range(layers - 1)],
        "weights": rng.random((TIME, BATCH)),
    }


@pytest.mark.parametrize("gate", ["hard_sigmoid", "hard_sigmoid_6"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradients_of_hard_gates_are_those_of_central_differences(cell, gate):
    """With weights so large that many gates are 0 or 1."""
    rng = np.random.default_rng(9)
    parameters = {name: 3.0 * value for name, value in random_parameters(rng, cell, 2, False).items()}
    inputs, targets = random_text(rng)
    gates = reference_cells.GATES[gate](
        parameters["cells/0/kernel"][inputs][..., : 2 * HIDDEN]
    )  # by x W, without b and h U
    assert 0.05 < (gates * (1.0 - gates) == 0.0).mean() < 0.95

    check_gradients(parameters, lambda: numpy_reference.run_model(cell, parameters, inputs, targets, gate=gate))


@pytest.mark.parametrize("cell", BUILT_IN)
def test_zero_weights_give_uniform_predictions(cell):
    rng = np.random.default_rng(0)
    parameters = {name: 0.0 * value for name, value in random_parameters(rng, cell, 2, True).items()}
    result = numpy_reference.run_model(cell, parameters, *random_text(rng))
    assert result.loss == pytest.approx(np.log(VOCABULARY))
    assert not np.any(result.logits)


@pytest.mark.parametrize("cell", BUILT_IN)
def test_a_masked_step_equals_no_step(cell):
    rng = np.random.default_rng(1)
    parameters = random_parameters(rng, cell, 2, False)
    inputs, targets = random_text(rng, batch=1)
    real = np.array([True, False, True, True, False])
    masked = numpy_reference.run_model(
        cell, parameters, inputs, targets, mask=real[:, None], weights=1.0 * real[:, None]
    )
    short = numpy_reference.run_model(cell, parameters, inputs[real], targets[real])
    assert masked.loss == pytest.approx(short.loss, abs=1e-14)
    for name, gradient in masked.gradients.items():
        np.testing.assert_allclose(gradient, short.gradients[name], atol=1e-14)
    for got, expected in zip(masked.state, short.state, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-14)


def test_elman_step_by_hand():
    w = {"kernel": np.array([[2.0]]), "recurrent_kernel": np.array([[3.0]]), "bias": np.array([-1.0])}
    (h,), _ = reference_cells.rnn_forward(np.array([[0.5]]), (np.array([[0.25]]),), w)
    assert h.item() == pytest.approx(np.tanh(1.0 + 0.75 - 1.0))


def test_lstm_gates_by_hand():
    """With gates wide open or shut by their bias, the memory is kept, added to, or hidden."""
    w = {"kernel": np.array([[0.0, 0.0, 1.0, 0.0]]), "recurrent_kernel": np.zeros((1, 4))}
    x, state = np.array([[0.5]]), (np.array([[0.1]]), np.array([[0.3]]))
    for i, f, o in [(1, 0, 1), (0, 1, 1), (1, 1, 0), (1, 1, 1)]:
        bias = np.array([100.0 * (2 * i - 1), 100.0 * (2 * f - 1), 0.0, 100.0 * (2 * o - 1)])
        (h, c), _ = reference_cells.lstm_forward(x, state, w | {"bias": bias})
        assert c.item() == pytest.approx(f * 0.3 + i * np.tanh(0.5))
        assert h.item() == pytest.approx(o * np.tanh(c.item()))


def test_gru_gates_by_hand():
    w = {"kernel": np.array([[0.0, 0.0, 1.0]]), "recurrent_kernel": np.array([[0.0, 0.0, 2.0]])}
    x, state = np.array([[0.5]]), (np.array([[0.1]]),)
    for z, r in [(0, 0), (0, 1), (1, 0)]:
        bias = np.array([[100.0 * (2 * z - 1), 0.0, 0.2], [0.0, 100.0 * (2 * r - 1), 0.7]])
        (h,), _ = reference_cells.gru_forward(x, state, w | {"bias": bias})
        assert h.item() == pytest.approx(0.1 if z else np.tanh(0.5 + 0.2 + r * (0.2 + 0.7)))


def test_layer_normalised_lstm_by_hand():
    """Normalised, two unequal numbers are -1 and 1, but for the 1e-5; here the gates are those of 0 and the gains."""
    names = ("input_gain", "recurrent_gain")
    w = {name: np.repeat([0.0, 0.0, 2.0, 0.0], 2) for name in names} | {
        "shift": np.repeat([100.0, -100.0, 0.3, 100.0], 2)
    }
    w |= {"kernel": np.tile([[1e3, 3e3]], 4), "recurrent_kernel": np.tile([[-5e3, 5e3]], (2, 4))}
    w |= {"cell_gain": np.array([0.5, 0.5]), "cell_shift": np.array([0.1, 0.1])}
    state = (np.array([[0.2, 0.4]]), np.array([[7.0, 8.0]]))  # the memory is forgotten
    (h, c), _ = reference_cells.lnlstm_forward(np.array([[0.5]]), state, w)
    np.testing.assert_allclose(c, np.tanh([[-4.0 + 0.3, 4.0 + 0.3]]), rtol=1e-6)
    np.testing.assert_allclose(h, np.tanh([[-0.5 + 0.1, 0.5 + 0.1]]), rtol=1e-4)


def test_multiplicative_lstm_by_hand():
    """With open gates, the memory grows by tanh(a_c), in which x and h meet as a product."""
    w = {"kernel": np.array([[2.0, 0.0, 0.0, 0.5, 0.0]]), "bias": np.array([1.0, 100.0, 100.0, 0.25, 100.0])}
    w |= {"recurrent_kernel": np.array([[3.0]]), "gate_kernel": np.array([[0.0, 0.0, -1.5, 0.0]])}
    (h, c), _ = reference_cells.mlstm_forward(np.array([[0.5]]), (np.array([[0.1]]), np.array([[0.3]])), w)
    assert c.item() == pytest.approx(0.3 + np.tanh(0.25 + 0.25 - 1.5 * (2.0 * 0.3)))
    assert h.item() == pytest.approx(np.tanh(c.item()))


def test_minimal_gates_by_hand():
    x, h = np.array([[0.5]]), (np.array([[0.3]]),)
    w = {"kernel": np.array([[0.0, 4.0]]), "bias": np.array([np.log(3.0), 1.0])}  # z = 3/4, n = 3
    assert reference_cells.mingru_forward(x, h, w)[0][0].item() == pytest.approx(0.25 * 0.3 + 0.75 * 3.0)
    w = {"kernel": np.array([[0.0, 0.0, 4.0]]), "bias": np.array([0.0, np.log(3.0), 1.0])}  # i = 1/2, f = 3/4
    assert reference_cells.minlstm_forward(x, h, w)[0][0].item() == pytest.approx(0.6 * 0.3 + 0.4 * 3.0)


def test_simple_recurrent_unit_by_hand():
    w = {"kernel": np.array([[2.0, 0.0, 0.0, -1.0]]), "bias": np.array([0.1, np.log(3.0), -np.log(3.0), 0.2])}
    (h, c), _ = reference_cells.sru_forward(np.array([[0.5]]), (np.array([[9.0]]), np.array([[0.3]])), w)
    assert c.item() == pytest.approx(0.75 * 0.3 + 0.25 * 1.1)
    assert h.item() == pytest.approx(0.25 * np.tanh(c.item()) + 0.75 * -0.3)


def test_normalisation_of_equal_numbers_is_zero():
    y, divisor = reference_cells.normalise(np.full((2, 3), 5.0))
    assert not np.any(y) and np.allclose(divisor, np.sqrt(1e-5))


def test_sigmoid_does_not_overflow():
    with np.errstate(all="raise"):
        np.testing.assert_allclose(reference_cells.sigmoid([-1e6, 0.0, 1e6]), [0.0, 0.5, 1.0])
    assert reference_cells.sigmoid(0.3) == pytest.approx(1.0 / (1.0 + np.exp(-0.3)))


def test_cross_entropy_of_huge_logits_is_finite():
    loss, gradient = numpy_reference.cross_entropy(np.array([[1e5, 0.0, -1e5]]), np.array([1]))
    assert loss.item() == pytest.approx(1e5)
    np.testing.assert_allclose(gradient, [[1.0, -1.0, 0.0]])


def test_relative_error_detects_a_wrong_sign_and_a_wrong_scale():
    a = np.array([3.0, -4.0])
    assert numpy_reference.relative_error(a, a) == 0.0
    assert numpy_reference.relative_error(a, -a) == pytest.approx(1.0)
    assert numpy_reference.relative_error(a, 1.02 * a) == pytest.approx(0.02 / 2.02)
    assert numpy_reference.relative_error(np.zeros(2), np.full(2, 1e-12)) < 1e-5
