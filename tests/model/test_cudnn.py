"""What can be shown of cuDNN without a GPU: that it is chosen where it should be, and how it gets its weights."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.config import ModelConfig
from tfcharrnn.errors import UserError
from tfcharrnn.model import backends, cudnn
from tfcharrnn.model.cells import CELLS
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.verification import numpy_reference

INPUT, HIDDEN, BATCH = 5, 4, 3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step_as_cudnn_documents_it(name, flat, x, state):
    """A step from cuDNN's flat weights: its own order of gates, matrices [hidden, input], two biases."""
    gates = {"rnn": 1, "lstm": 4, "gru": 3}[name]
    matrices, flat = np.split(flat, [gates * HIDDEN * (INPUT + HIDDEN)])
    w, r = np.split(matrices, [gates * HIDDEN * INPUT])
    w, r = w.reshape(gates, HIDDEN, INPUT), r.reshape(gates, HIDDEN, HIDDEN)
    b_w, b_r = flat.reshape(2, gates, HIDDEN)
    p = [x @ w[gate].T + b_w[gate] for gate in range(gates)]
    q = [state[0] @ r[gate].T + b_r[gate] for gate in range(gates)]
    if name == "rnn":
        return (np.tanh(p[0] + q[0]),)
    if name == "gru":  # 0 reset, 1 update, 2 new
        reset, update = sigmoid(p[0] + q[0]), sigmoid(p[1] + q[1])
        return ((1 - update) * np.tanh(p[2] + reset * q[2]) + update * state[0],)
    i, f, g, o = sigmoid(p[0] + q[0]), sigmoid(p[1] + q[1]), np.tanh(p[2] + q[2]), sigmoid(p[3] + q[3])
    c = f * state[1] + i * g
    return o * np.tanh(c), c


@pytest.mark.parametrize("name", CELLS)
def test_the_flat_weights_mean_the_same_cell(name):
    rng = np.random.default_rng(0)
    cell = CELLS[name](INPUT, HIDDEN, rng, tf.float64)
    for variable in cell.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    x = rng.normal(size=(BATCH, INPUT))
    state = tuple(rng.normal(size=(BATCH, HIDDEN)) for _ in range(cell.state_count))
    weights = {key: getattr(cell, key).numpy() for key in ("kernel", "recurrent_kernel", "bias")}
    _, expected, _ = numpy_reference.layer_forward(name, x[np.newaxis], state, weights)
    flat = cudnn.flat_weights(cell).numpy()
    gates = cell.gates
    assert flat.shape == (gates * HIDDEN * (INPUT + HIDDEN + 2),)
    for got, want in zip(step_as_cudnn_documents_it(name, flat, x, state), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_gradients_flow_through_the_flat_weights():
    cell = CELLS["gru"](INPUT, HIDDEN, np.random.default_rng(0))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(cudnn.flat_weights(cell))
    for variable, gradient in zip(
        cell.trainable_variables, tape.gradient(total, cell.trainable_variables), strict=True
    ):
        np.testing.assert_array_equal(tf.convert_to_tensor(gradient), np.ones(variable.shape))


def test_auto_takes_cudnn_where_it_applies_and_custom_elsewhere(monkeypatch):
    monkeypatch.setattr(cudnn, "available", lambda: False)
    assert backends.choose("auto").name == "custom"
    with pytest.raises(UserError, match="no NVIDIA GPU"):
        CharRNN(ModelConfig(implementation="cudnn"), 7)
    monkeypatch.setattr(cudnn, "available", lambda: True)
    assert backends.choose("auto").name == "cudnn"
    assert not backends.choose("auto").jit_compile
    assert backends.choose("custom").name == "custom"
    assert backends.choose("auto", dtype=tf.float64).name == "custom"
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    chosen = CharRNN(ModelConfig(precision="bfloat16"), 7).implementation
    assert (chosen.name, chosen.halves_batch) == ("custom", False)
    assert "float32 only" in chosen.note
    assert not backends.choose("auto").note
    with pytest.raises(UserError, match="float32 only"):
        backends.choose("cudnn", "bfloat16")


def test_bfloat16_rounds_the_products_and_keeps_the_weights():
    ids = tf.constant(np.random.default_rng(0).integers(0, 11, (4, 20)), tf.int32)
    exact, rounded = (
        CharRNN(ModelConfig(cell="gru", hidden_size=32, precision=p), 11) for p in ("float32", "bfloat16")
    )
    assert all(variable.dtype == tf.float32 for variable in rounded.trainable_variables)
    with tf.GradientTape() as tape:
        loss = rounded.loss(ids)
    assert all(gradient.dtype == tf.float32 for gradient in tape.gradient(loss, rounded.trainable_variables))
    difference = abs(float(loss) - float(exact.loss(ids)))
    assert 0 < difference < 0.01
