"""The NumPy reference against central differences and cases simple enough to compute by hand."""

import numpy as np
import pytest

from tfcharrnn.verification import numpy_reference

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
TIME, BATCH, VOCABULARY, HIDDEN, EMBEDDING = 5, 3, 4, 3, 2


def random_parameters(rng, cell, layers, embedding):
    """Random parameters, biases included."""
    columns = GATES[cell] * HIDDEN
    shapes = {"output_kernel": (HIDDEN, VOCABULARY), "output_bias": (VOCABULARY,)}
    if embedding:
        shapes["embedding"] = (VOCABULARY, EMBEDDING)
    for layer in range(layers):
        size = HIDDEN if layer else EMBEDDING if embedding else VOCABULARY
        shapes[f"cells/{layer}/kernel"] = (size, columns)
        shapes[f"cells/{layer}/recurrent_kernel"] = (HIDDEN, columns)
        shapes[f"cells/{layer}/bias"] = (2, columns) if cell == "gru" else (columns,)
    return {name: rng.normal(0.0, 0.7, shape) for name, shape in shapes.items()}


def random_state(rng, cell, layers, batch=BATCH):
    return [tuple(rng.normal(0, 0.5, (batch, HIDDEN)) for _ in range(1 + (cell == "lstm"))) for _ in range(layers)]


def random_text(rng, batch=BATCH):
    return rng.integers(0, VOCABULARY, (TIME, batch)), rng.integers(0, VOCABULARY, (TIME, batch))


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "state-mask-dropout-weights"])
@pytest.mark.parametrize("embedding", [False, True], ids=["one-hot", "embedding"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", GATES)
def test_gradients_are_those_of_central_differences(cell, layers, embedding, extras):
    rng = np.random.default_rng(7)
    parameters = random_parameters(rng, cell, layers, embedding)
    inputs, targets = random_text(rng)
    more = {}
    if extras:
        mask = rng.random((TIME, BATCH)) < 0.6
        assert not mask.all() and mask.any()
        more = {
            "state": random_state(rng, cell, layers),
            "mask": mask,
            "dropout": [rng.choice([0.0, 2.0], (TIME, BATCH, HIDDEN)) for _ in range(layers - 1)],
            "weights": rng.random((TIME, BATCH)),
        }

    def loss():
        return numpy_reference.run_model(cell, parameters, inputs, targets, **more).loss

    result = numpy_reference.run_model(cell, parameters, inputs, targets, **more)
    assert result.gradients.keys() == parameters.keys()
    for name, array in parameters.items():
        numerical = numpy_reference.central_differences(loss, array)
        assert np.linalg.norm(numerical) > 1e-4, name
        assert numpy_reference.relative_error(result.gradients[name], numerical) < 1e-7, name
    for arrays, gradients in zip(more.get("state", []), result.state_gradients, strict=False):
        for array, gradient in zip(arrays, gradients, strict=True):
            assert numpy_reference.relative_error(gradient, numpy_reference.central_differences(loss, array)) < 1e-7


@pytest.mark.parametrize("gate", ["hard_sigmoid", "hard_sigmoid_6"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradients_of_hard_gates_are_those_of_central_differences(cell, gate):
    """With weights so large that many gates are 0 or 1."""
    rng = np.random.default_rng(9)
    parameters = {name: 3.0 * value for name, value in random_parameters(rng, cell, 2, False).items()}
    inputs, targets = random_text(rng)
    gates = numpy_reference.GATES[gate](
        parameters["cells/0/kernel"][inputs][..., : 2 * HIDDEN]
    )  # by x W, without b and h U
    assert 0.05 < (gates * (1.0 - gates) == 0.0).mean() < 0.95

    def loss():
        return numpy_reference.run_model(cell, parameters, inputs, targets, gate=gate).loss

    result = numpy_reference.run_model(cell, parameters, inputs, targets, gate=gate)
    for name, array in parameters.items():
        numerical = numpy_reference.central_differences(loss, array)
        assert numpy_reference.relative_error(result.gradients[name], numerical) < 1e-7, name


@pytest.mark.parametrize("cell", GATES)
def test_zero_weights_give_uniform_predictions(cell):
    rng = np.random.default_rng(0)
    parameters = {name: 0.0 * value for name, value in random_parameters(rng, cell, 2, True).items()}
    result = numpy_reference.run_model(cell, parameters, *random_text(rng))
    assert result.loss == pytest.approx(np.log(VOCABULARY))
    assert not np.any(result.logits)


@pytest.mark.parametrize("cell", GATES)
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
    (h,), _ = numpy_reference.rnn_forward(np.array([[0.5]]), (np.array([[0.25]]),), w)
    assert h.item() == pytest.approx(np.tanh(1.0 + 0.75 - 1.0))


def test_lstm_gates_by_hand():
    """With gates wide open or shut by their bias, the memory is kept, added to, or hidden."""
    w = {"kernel": np.array([[0.0, 0.0, 1.0, 0.0]]), "recurrent_kernel": np.zeros((1, 4))}
    x, state = np.array([[0.5]]), (np.array([[0.1]]), np.array([[0.3]]))
    for i, f, o in [(1, 0, 1), (0, 1, 1), (1, 1, 0), (1, 1, 1)]:
        bias = np.array([100.0 * (2 * i - 1), 100.0 * (2 * f - 1), 0.0, 100.0 * (2 * o - 1)])
        (h, c), _ = numpy_reference.lstm_forward(x, state, w | {"bias": bias})
        assert c.item() == pytest.approx(f * 0.3 + i * np.tanh(0.5))
        assert h.item() == pytest.approx(o * np.tanh(c.item()))


def test_gru_gates_by_hand():
    w = {"kernel": np.array([[0.0, 0.0, 1.0]]), "recurrent_kernel": np.array([[0.0, 0.0, 2.0]])}
    x, state = np.array([[0.5]]), (np.array([[0.1]]),)
    for z, r in [(0, 0), (0, 1), (1, 0)]:
        bias = np.array([[100.0 * (2 * z - 1), 0.0, 0.2], [0.0, 100.0 * (2 * r - 1), 0.7]])
        (h,), _ = numpy_reference.gru_forward(x, state, w | {"bias": bias})
        assert h.item() == pytest.approx(0.1 if z else np.tanh(0.5 + 0.2 + r * (0.2 + 0.7)))


def test_sigmoid_does_not_overflow():
    with np.errstate(all="raise"):
        np.testing.assert_allclose(numpy_reference.sigmoid([-1e6, 0.0, 1e6]), [0.0, 0.5, 1.0])
    assert numpy_reference.sigmoid(0.3) == pytest.approx(1.0 / (1.0 + np.exp(-0.3)))


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
