"""The backends compute the same function of the same variables."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.config import ModelConfig
from tfcharrnn.errors import UserError
from tfcharrnn.model import backends, recurrence
from tfcharrnn.model.backends import LIBRARY_CELLS
from tfcharrnn.model.cells import get_cell_class
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.model.input_projection import SymbolInput
from tfcharrnn.verification import numpy_reference

VOCABULARY = 11
INPUT, HIDDEN, BATCH = 5, 4, 3


def pair(cell, **config):
    """Two float32 models of the same seed, with the backends custom and keras."""
    return [
        CharRNN(ModelConfig(cell=cell, implementation=name, hidden_size=24, **config), VOCABULARY, seed=4)
        for name in ("custom", "keras")
    ]


def random_ids(seed=0):
    return tf.constant(np.random.default_rng(seed).integers(0, VOCABULARY, (8, 30)), tf.int32)


@pytest.mark.parametrize(("layers", "embedding"), [(1, 0), (3, 6)])
@pytest.mark.parametrize("cell", LIBRARY_CELLS)
def test_custom_and_keras_agree_in_float32(cell, layers, embedding):
    results = []
    for model in pair(cell, num_layers=layers, embedding_size=embedding):
        with tf.GradientTape() as tape:
            loss = model.loss(random_ids())
        gradients = tape.gradient(loss, numpy_reference.variables(model))
        results.append((float(loss), {name: tf.convert_to_tensor(g).numpy() for name, g in gradients.items()}))
    (custom_loss, custom), (keras_loss, keras) = results
    assert custom_loss == pytest.approx(keras_loss, abs=1e-5)
    assert custom.keys() == keras.keys()
    for name in custom:
        assert custom[name].dtype == np.float32
        assert numpy_reference.relative_error(custom[name], keras[name]) < 1e-5, name


@pytest.mark.parametrize("one_hot", [False, True], ids=["vectors", "symbols"])
@pytest.mark.parametrize("cell_name", LIBRARY_CELLS)
def test_a_layer_of_each_backend_gives_the_same(cell_name, one_hot):
    rng = np.random.default_rng(1)
    cell = get_cell_class(cell_name)(VOCABULARY, 6, rng, tf.float64)
    for variable in cell.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    inputs = (
        SymbolInput(tf.transpose(random_ids()), VOCABULARY) if one_hot else tf.constant(rng.normal(size=(30, 8, 11)))
    )
    state = tuple(tf.constant(rng.normal(size=(8, 6))) for _ in range(cell.num_state_tensors))
    outputs, last = recurrence.run_layer(cell, inputs, state)
    keras_outputs, keras_last = backends.run_keras(cell, inputs, state, tf.convert_to_tensor(cell.recurrent_kernel))
    np.testing.assert_allclose(outputs, keras_outputs, rtol=1e-11, atol=1e-12)
    for got, expected in zip(last, keras_last, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gate", ["hard_sigmoid", "hard_sigmoid_6"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_hard_gates_are_the_same_in_every_backend_and_the_reference(cell, gate):
    """Values and gradients, with weights so large that many gates are 0 or 1; they differ from a sigmoid's."""
    rng = np.random.default_rng(3)
    ids = random_ids()
    time_major = ids.numpy().T
    weights, expected = None, {}
    for name in ("custom", "keras"):
        sizes = {"hidden_size": 6, "num_layers": 2, "implementation": name}
        model = CharRNN(ModelConfig(cell=cell, recurrent_activation=gate, **sizes), VOCABULARY, dtype=tf.float64)
        named = numpy_reference.variables(model)
        if weights is None:
            weights = {key: rng.normal(0.0, 2.0, variable.shape) for key, variable in named.items()}
            arguments = (cell, weights, time_major[:-1], time_major[1:])
            expected = numpy_reference.run_model(*arguments, gate=gate)
            assert abs(expected.loss - numpy_reference.run_model(*arguments).loss) > 1e-3
        for key, variable in named.items():
            variable.assign(weights[key])
        with tf.GradientTape() as tape:
            loss = model.loss(ids)
        assert float(loss) == pytest.approx(expected.loss, rel=1e-12)
        for key, gradient in tape.gradient(loss, named).items():
            assert numpy_reference.relative_error(tf.convert_to_tensor(gradient), expected.gradients[key]) < 1e-10, key


@pytest.mark.parametrize(("saved", "restored"), [(0, 1), (1, 0)], ids=["custom-to-keras", "keras-to-custom"])
@pytest.mark.parametrize("cell", LIBRARY_CELLS)
def test_one_checkpoint_serves_all(tmp_path, cell, saved, restored):
    models = pair(cell, num_layers=2, embedding_size=6)
    rng = np.random.default_rng(2)
    for variable in models[saved].trainable_variables:
        variable.assign(rng.normal(0.0, 0.3, variable.shape))
    before = float(models[restored].loss(random_ids()))
    path = tf.train.Checkpoint(model=models[saved]).write(str(tmp_path / "ckpt"))
    status = tf.train.Checkpoint(model=models[restored]).read(path)
    status.assert_consumed()
    status.assert_existing_objects_matched()
    for name, variable in numpy_reference.variables(models[saved]).items():
        np.testing.assert_array_equal(variable, numpy_reference.variables(models[restored])[name])
    expected = float(models[saved].loss(random_ids()))
    assert float(models[restored].loss(random_ids())) == pytest.approx(expected, abs=1e-5)
    assert abs(before - expected) > 1e-3


@pytest.mark.parametrize("cell", ["gru", "lnlstm", "mlstm", "mingru", "sru"])
def test_bfloat16_rounds_the_products_and_keeps_the_weights(cell):
    ids = tf.constant(np.random.default_rng(0).integers(0, 11, (4, 20)), tf.int32)
    sizes = {"hidden_size": 32, "num_layers": 2, "layer_norm": cell != "gru"}
    exact, rounded = (CharRNN(ModelConfig(cell=cell, precision=p, **sizes), 11) for p in ("float32", "bfloat16"))
    assert all(variable.dtype == tf.float32 for variable in rounded.trainable_variables)
    with tf.GradientTape() as tape:
        loss = rounded.loss(ids)
    gradients = tape.gradient(loss, rounded.trainable_variables)
    assert all(gradient.dtype == tf.float32 for gradient in gradients)
    assert all(np.all(np.isfinite(tf.convert_to_tensor(gradient))) for gradient in gradients)
    difference = abs(float(loss) - float(exact.loss(ids)))
    assert 0 < difference < 0.02


@pytest.mark.parametrize("implementation", ["keras", "cudnn"])
@pytest.mark.parametrize("cell", ["lnlstm", "mingru"])
def test_a_backend_without_the_cell_says_which_it_has(cell, implementation):
    with pytest.raises(
        UserError, match=rf"^--implementation={implementation} has no --cell={cell}, only rnn, lstm, gru"
    ):
        CharRNN(ModelConfig(cell=cell, implementation=implementation), 7)
    assert CharRNN(ModelConfig(cell=cell, hidden_size=4), 7).backend.name == "custom"


# cuDNN, as far as it can be tested without a GPU: when it is chosen, and the layout of its weights


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step_as_cudnn_documents_it(name, flat, x, state):
    """One step from cuDNN's flat weights: its order of gates, matrices `[hidden, input]`, two biases."""
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


@pytest.mark.parametrize("name", LIBRARY_CELLS)
def test_the_flat_weights_mean_the_same_cell(name):
    rng = np.random.default_rng(0)
    cell = get_cell_class(name)(INPUT, HIDDEN, rng, tf.float64)
    for variable in cell.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    x = rng.normal(size=(BATCH, INPUT))
    state = tuple(rng.normal(size=(BATCH, HIDDEN)) for _ in range(cell.num_state_tensors))
    weights = {key: getattr(cell, key).numpy() for key in ("kernel", "recurrent_kernel", "bias")}
    _, expected, _ = numpy_reference.layer_forward(name, x[np.newaxis], state, weights)
    flat = backends.flatten_weights(cell, cell.recurrent_kernel).numpy()
    gates = cell.num_gates
    assert flat.shape == (gates * HIDDEN * (INPUT + HIDDEN + 2),)
    for got, want in zip(step_as_cudnn_documents_it(name, flat, x, state), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_gradients_flow_through_the_flat_weights():
    cell = get_cell_class("gru")(INPUT, HIDDEN, np.random.default_rng(0))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(backends.flatten_weights(cell, cell.recurrent_kernel))
    for variable, gradient in zip(
        cell.trainable_variables, tape.gradient(total, cell.trainable_variables), strict=True
    ):
        np.testing.assert_array_equal(tf.convert_to_tensor(gradient), np.ones(variable.shape))


def choose_backend(implementation, precision="float32", dtype=tf.float32):
    return backends.choose_backend(ModelConfig(implementation=implementation, precision=precision), dtype)


def test_auto_chooses_cudnn_where_it_applies_and_custom_elsewhere(monkeypatch):
    monkeypatch.setattr(backends, "is_cudnn_available", lambda: False)
    assert choose_backend("auto").name == "custom"
    with pytest.raises(UserError, match="no NVIDIA GPU"):
        CharRNN(ModelConfig(implementation="cudnn"), 7)
    monkeypatch.setattr(backends, "is_cudnn_available", lambda: True)
    assert choose_backend("auto").name == "cudnn"
    assert not choose_backend("auto").jit_compile
    assert choose_backend("custom").name == "custom"
    assert choose_backend("auto", dtype=tf.float64).name == "custom"
    monkeypatch.setattr(backends.devices, "list_gpus", lambda: ["a GPU"])
    chosen = CharRNN(ModelConfig(precision="bfloat16"), 7).backend
    assert (chosen.name, chosen.halves_batch) == ("custom", False)
    assert "float32 only" in chosen.note
    assert not choose_backend("auto").note
    with pytest.raises(UserError, match="float32 only"):
        choose_backend("cudnn", "bfloat16")


def test_cudnn_has_sigmoid_gates_only(monkeypatch):
    monkeypatch.setattr(backends, "is_cudnn_available", lambda: True)
    assert CharRNN(ModelConfig(cell="gru", recurrent_activation="hard_sigmoid"), 7).backend.name == "custom"
    with pytest.raises(UserError, match="--recurrent_activation=hard_sigmoid; use auto or custom"):
        CharRNN(ModelConfig(cell="lstm", implementation="cudnn", recurrent_activation="hard_sigmoid"), 7)
