"""The implementations of a layer are the same function of the same variables."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.config import ModelConfig
from tfcharrnn.errors import UserError
from tfcharrnn.model import backends
from tfcharrnn.model.cells import CELLS
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.model.input_projection import Symbols
from tfcharrnn.verification import numpy_reference

VOCABULARY = 11


def pair(cell, **config):
    """Two models of one seed in float32, by custom code and by Keras."""
    return [
        CharRNN(ModelConfig(cell=cell, implementation=name, hidden_size=24, **config), VOCABULARY, seed=4)
        for name in ("custom", "keras")
    ]


def random_ids(seed=0):
    return tf.constant(np.random.default_rng(seed).integers(0, VOCABULARY, (8, 30)), tf.int32)


@pytest.mark.parametrize(("layers", "embedding"), [(1, 0), (3, 6)])
@pytest.mark.parametrize("cell", CELLS)
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
@pytest.mark.parametrize("cell_name", CELLS)
def test_a_layer_of_each_implementation_gives_the_same(cell_name, one_hot):
    rng = np.random.default_rng(1)
    cell = CELLS[cell_name](VOCABULARY, 6, rng, tf.float64)
    for variable in cell.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    inputs = Symbols(tf.transpose(random_ids()), VOCABULARY) if one_hot else tf.constant(rng.normal(size=(30, 8, 11)))
    state = tuple(tf.constant(rng.normal(size=(8, 6))) for _ in range(cell.state_count))
    outputs, last = backends.run_custom(cell, inputs, state)
    keras_outputs, keras_last = backends.run_keras(cell, inputs, state)
    np.testing.assert_allclose(outputs, keras_outputs, rtol=1e-11, atol=1e-12)
    for got, expected in zip(last, keras_last, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gate", ["hard_sigmoid", "hard_sigmoid_6"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_hard_gates_are_the_same_in_every_implementation_and_the_reference(cell, gate):
    """Values and gradients, with weights so large that many gates stand at 0 or at 1; and no plain sigmoid's."""
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
            expected = numpy_reference.language_model(*arguments, gate=gate)
            assert abs(expected.loss - numpy_reference.language_model(*arguments).loss) > 1e-3
        for key, variable in named.items():
            variable.assign(weights[key])
        with tf.GradientTape() as tape:
            loss = model.loss(ids)
        assert float(loss) == pytest.approx(expected.loss, rel=1e-12)
        for key, gradient in tape.gradient(loss, named).items():
            assert numpy_reference.relative_error(tf.convert_to_tensor(gradient), expected.gradients[key]) < 1e-10, key


def test_cudnn_has_sigmoid_gates_only(monkeypatch):
    monkeypatch.setattr(backends.cudnn, "available", lambda: True)
    assert CharRNN(ModelConfig(cell="gru", recurrent_activation="hard_sigmoid"), 7).implementation.name == "custom"
    with pytest.raises(UserError, match="--recurrent_activation=hard_sigmoid; take auto or custom"):
        CharRNN(ModelConfig(cell="lstm", implementation="cudnn", recurrent_activation="hard_sigmoid"), 7)


@pytest.mark.parametrize(("saved", "restored"), [(0, 1), (1, 0)], ids=["custom-to-keras", "keras-to-custom"])
@pytest.mark.parametrize("cell", CELLS)
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
