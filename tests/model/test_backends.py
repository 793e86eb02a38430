"""The backends compute the same function of the same variables."""

import dataclasses
import functools
import sys

import numpy as np
import pytest
import software_cudnn
import tensorflow as tf
from software_cudnn import SoftwareCudnn

from tfcharrnn import devices
from tfcharrnn.config import ModelConfig
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import LAYOUTS
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
    flat = backends.flatten_weights(cell, cell.recurrent_kernel, cell.kernel)
    assert flat.shape == (cell.num_gates * HIDDEN * (INPUT + HIDDEN + 2),)
    input_h, input_c = (tf.constant(array)[tf.newaxis] for array in (state[0], state[-1]))
    mode = {"rnn": "rnn_tanh"}.get(name, name)
    result = software_cudnn.run(tf.constant(x)[tf.newaxis], input_h, input_c, flat, mode, is_training=True)
    for got, want in zip((result.output_h, getattr(result, "output_c", None)), expected, strict=False):
        np.testing.assert_allclose(got[0], want, rtol=1e-12, atol=1e-14)


@pytest.fixture
def cudnn(monkeypatch):
    return SoftwareCudnn(monkeypatch)


def run_both(cell, layout, vocabulary, **config):
    """Losses, last states and gradients of a batch, of the backends cudnn and custom, on the same weights."""
    results = []
    ids = np.random.default_rng(0).integers(3, vocabulary, (4, 6))
    if layout.start_id is not None:
        ids[:, 0] = layout.start_id
    if layout.pad_id is not None:
        ids[np.arange(6) >= [[6], [2], [4], [5]]] = layout.pad_id
    for name in ("cudnn", "custom"):
        sizes = {"cell": cell, "hidden_size": HIDDEN, "num_layers": 2, "implementation": name}
        model = CharRNN(ModelConfig(**sizes, **config), vocabulary, seed=4, layout=layout)
        assert model.backend.name == name
        state = tf.nest.map_structure(lambda zeros: zeros + 0.1, model.initial_state(4))
        with tf.GradientTape() as tape:
            losses, last = model.losses(tf.constant(ids, tf.int32), state)
        gradients = tape.gradient(losses, model.named_variables)
        results.append((losses, *tf.nest.flatten(last), *map(tf.convert_to_tensor, gradients.values())))
    return results


@pytest.mark.parametrize("layout", ["stream", "lines"])
@pytest.mark.parametrize(("vocabulary", "config"), [(7, {}), (29, {}), (7, {"embedding_size": 2})])
@pytest.mark.parametrize("cell", LIBRARY_CELLS)
def test_what_surrounds_cudnn_is_right(cudnn, cell, layout, vocabulary, config):
    for got, expected in zip(*run_both(cell, LAYOUTS[layout], vocabulary, **config), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    first, second = cudnn.calls
    assert first["name"] == "CudnnRNNV3"
    lengths = [5, 1, 3, 4] if layout == "lines" else [5] * 4
    assert first["sequence_lengths"].numpy().tolist() == second["sequence_lengths"].numpy().tolist() == lengths


@pytest.mark.parametrize(("cell", "most"), [("rnn", 4), ("lstm", 16), ("gru", 12)])
def test_a_large_vocabulary_makes_no_large_input(cudnn, cell, most):
    """The lookup of W's rows takes the place of one-hot vectors that are longer; also with `--zero_start`."""
    for vocabulary in (most, most + 40):
        cudnn.calls.clear()
        results = run_both(cell, LAYOUTS["sequences"], vocabulary, zero_start=True)
        for got, expected in zip(*results, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        assert cudnn.calls[0]["input"].shape[2] == most


def test_evaluation_keeps_nothing_for_a_gradient(cudnn):
    model = CharRNN(ModelConfig(cell="gru", implementation="cudnn", hidden_size=3), VOCABULARY)
    ids = random_ids()
    losses, _, _ = model.losses_and_hits(ids)
    assert not cudnn.calls[0]["is_training"]
    np.testing.assert_array_equal(losses, model.losses(ids)[0])
    assert cudnn.calls[1]["is_training"]


def test_the_algorithm_is_one_choice(cudnn, monkeypatch):
    """Where all lengths are equal; other rows, and `--deterministic`, need the one algorithm of `CudnnRNNV3`."""
    model = CharRNN(ModelConfig(cell="gru", hidden_size=3), 7, layout=LAYOUTS["lines"])
    tries = functools.partial(backends.run_cudnn, tries_algorithms=True)
    model.backend = dataclasses.replace(model.backend, run_layer=tries)
    ids, names = tf.constant([[1, 4, 0]]), []
    for state in (None, model.initial_state(1)):  # a state that is carried on needs lengths
        model.losses(ids, state)
        names.append(cudnn.calls[-1]["name"])
    monkeypatch.setattr(devices, "is_deterministic", lambda: True)
    model.losses(ids)
    assert [*names, cudnn.calls[-1]["name"]] == ["CudnnRNNV2", "CudnnRNNV3", "CudnnRNNV3"]


@pytest.mark.parametrize(("tries", "name"), [(False, "CudnnRNNV3"), (True, "CudnnRNNV2")])
def test_tensorflow_accepts_the_call_and_has_its_gradient(monkeypatch, tries, name):
    """The real operations, as a graph, which is as far as they go without a GPU."""
    monkeypatch.setattr(backends, "is_cudnn_available", lambda: True)
    cell = get_cell_class("lstm")(INPUT, HIDDEN, np.random.default_rng(0))

    @tf.function
    def differentiate(x):
        with tf.GradientTape() as tape:
            state = cell.zero_state(BATCH)
            outputs, _ = backends.run_cudnn(cell, x, state, cell.recurrent_kernel, tries_algorithms=tries)
        return tape.gradient(outputs, cell.trainable_variables)

    graph = differentiate.get_concrete_function(tf.TensorSpec([6, BATCH, INPUT])).graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert {name, name.replace("RNN", "RNNBackprop")} <= kinds


def test_gradients_flow_through_the_flat_weights():
    cell = get_cell_class("gru")(INPUT, HIDDEN, np.random.default_rng(0))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(backends.flatten_weights(cell, cell.recurrent_kernel, cell.kernel))
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
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["a GPU"])
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


def test_keras_with_another_backend_is_one_line(monkeypatch):
    import keras

    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(UserError, match=r"keras is unavailable: Keras computes with jax; unset KERAS_BACKEND"):
        CharRNN(ModelConfig(cell="gru", implementation="keras"), 7)
    CharRNN(ModelConfig(cell="gru", hidden_size=3), 7)
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(UserError, match=r"Keras cannot be imported \(.*\); unset KERAS_BACKEND"):
        CharRNN(ModelConfig(cell="gru", implementation="keras"), 7)
