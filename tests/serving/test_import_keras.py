"""Keras model files become the same functions here, and what cannot is refused in one line."""

import dataclasses
import itertools
import json
import subprocess
import sys
import zipfile

import commands
import numpy as np
import pytest
from paths import ROOT

h5py = pytest.importorskip("h5py", reason="h5py is not installed")

from tfcharrnn import untrusted_files  # noqa: E402
from tfcharrnn.data.vocabulary import find_symbol_order  # noqa: E402
from tfcharrnn.errors import UserError  # noqa: E402
from tfcharrnn.inference import trained_model  # noqa: E402
from tfcharrnn.serving import keras_import, keras_reader, run_writer  # noqa: E402
from tfcharrnn.training import setup  # noqa: E402
from tfcharrnn.verification import numpy_reference  # noqa: E402

CHARACTERS = list("\nz a!yb")  # in no order of code points
SYMBOLS, UNITS, TIME = len(CHARACTERS), 6, 9


def random_ids(seed=0, batch=5):
    return np.random.default_rng(seed).integers(0, SYMBOLS, (batch, TIME))


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def keras_model(kind="LSTM", *, functional=False, embedding=0, every_step=False, **settings):
    """A model by the installed Keras, with weights so large that hard gates stand at 0 and 1."""
    import keras

    layer = getattr(keras.layers, kind)
    stack = [keras.layers.Embedding(SYMBOLS, embedding)] if embedding else []
    stack += [layer(UNITS, return_sequences=True, **settings), keras.layers.Dropout(0.5)]
    stack += [layer(UNITS, return_sequences=every_step, **settings), keras.layers.Dropout(0.25)]
    if every_step:
        stack += [keras.layers.TimeDistributed(keras.layers.Dense(SYMBOLS)), keras.layers.Activation("softmax")]
    else:
        stack += [keras.layers.Dense(SYMBOLS, activation="softmax")]
    inputs = keras.Input((TIME,) if embedding else (TIME, SYMBOLS))
    if functional:
        outputs = inputs
        for part in stack:
            outputs = part(outputs)
        model = keras.Model(inputs, outputs)
    else:
        model = keras.Sequential([inputs, *stack])
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0.0, 1.5, weights.shape) for weights in model.get_weights()])
    return model


def check_against_keras(path, model, one_hot=True):
    """The NumPy pass over the file, and the converted network in NumPy, give what Keras predicts."""
    ids = random_ids()
    predicted = model.predict(np.eye(SYMBOLS)[ids] if one_hot else ids, verbose=0)
    source = keras_reader.read_file(path)
    imported = keras_import.convert_model(source)
    logits = keras_import.compute_logits(source, ids)
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities if predicted.ndim == 3 else probabilities[:, -1], predicted, atol=2e-6)
    parameters = {name: array.astype(np.float64) for name, array in imported.variables.items()}
    config = imported.config
    converted = numpy_reference.run_model(config.cell, parameters, ids.T, ids.T, gate=config.recurrent_activation)
    np.testing.assert_allclose(np.swapaxes(converted.logits, 0, 1), logits, atol=1e-12)
    return imported


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_a_model_of_the_installed_keras_is_the_same_function(tmp_path, kind, suffix):
    model = keras_model(kind)
    model.save(tmp_path / f"model{suffix}")
    imported = check_against_keras(tmp_path / f"model{suffix}", model)
    config = imported.config
    assert (config.cell, config.hidden_size, config.num_layers) == (keras_import.CELL_OF_LAYER[kind], UNITS, 2)
    assert (config.dropout, config.output_dropout, imported.seq_length) == (0.5, 0.25, TIME)
    assert not imported.notes


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_functional_embedded_every_step_hard_gates_and_no_bias(tmp_path, suffix):
    settings = {"recurrent_activation": "hard_sigmoid", "use_bias": False, "recurrent_dropout": 0.1}
    model = keras_model("GRU", functional=True, embedding=4, every_step=True, **settings)
    model.save(tmp_path / f"model{suffix}")
    imported = check_against_keras(tmp_path / f"model{suffix}", model, one_hot=False)
    assert imported.config.recurrent_activation == "hard_sigmoid_6"
    assert imported.config.embedding_size == 4
    assert not np.any(imported.variables["cells/0/bias"])
    assert any("recurrent_dropout=0.1" in note for note in imported.notes)


# Files as older versions wrote them, by hand


def old_layers(**changes):
    """The model of the Keras example, as Keras 2.0 described it: no InputLayer, no name of the model."""
    recurrent = {
        "units": UNITS,
        "activation": "tanh",
        "recurrent_activation": "hard_sigmoid",
        "use_bias": True,
        "go_backwards": False,
        "stateful": False,
        "implementation": 0,
        "dropout": 0.0,
        "recurrent_dropout": 0.0,
    } | changes
    return [
        {
            "class_name": "LSTM",
            "config": {
                "name": "lstm_1",
                "batch_input_shape": [None, TIME, SYMBOLS],
                "return_sequences": True,
                **recurrent,
            },
        },
        {"class_name": "Dropout", "config": {"name": "dropout_1", "rate": 0.5}},
        {"class_name": "LSTM", "config": {"name": "lstm_2", "return_sequences": False, **recurrent}},
        {"class_name": "Dropout", "config": {"name": "dropout_2", "rate": 0.5}},
        {"class_name": "Dense", "config": {"name": "dense_1", "units": SYMBOLS, "activation": "linear"}},
        {"class_name": "Activation", "config": {"name": "activation_1", "activation": "softmax"}},
    ]


def old_weights():
    rng = np.random.default_rng(2)
    shapes = {
        "lstm_1": {"kernel": (SYMBOLS, 4 * UNITS), "recurrent_kernel": (UNITS, 4 * UNITS), "bias": (4 * UNITS,)},
        "lstm_2": {"kernel": (UNITS, 4 * UNITS), "recurrent_kernel": (UNITS, 4 * UNITS), "bias": (4 * UNITS,)},
        "dense_1": {"kernel": (UNITS, SYMBOLS), "bias": (SYMBOLS,)},
    }
    return {
        layer: {name: rng.normal(0.0, 1.5, shape).astype(np.float32) for name, shape in arrays.items()}
        for layer, arrays in shapes.items()
    }


def write_old(path, layers=None, weights=None, version="2.0.8", config=None):
    """An .h5 file as Keras 2.0 wrote it: attributes in bytes, names with TensorFlow's ':0'."""
    layers = old_layers() if layers is None else layers
    weights = old_weights() if weights is None else weights
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version.encode()
        file.attrs["backend"] = b"tensorflow"
        config = {"class_name": "Sequential", "config": layers} if config is None else config
        file.attrs["model_config"] = json.dumps(config).encode()
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [layer["config"]["name"].encode() for layer in layers]
        for layer in layers:
            name = layer["config"]["name"]
            group = root.create_group(name)
            arrays = weights.get(name, {})
            group.attrs["weight_names"] = [f"{name}/{key}:0".encode() for key in arrays]
            for key, value in arrays.items():
                group[f"{name}/{key}:0"] = value
    return path


def lstm_by_hand(w, x, gate):
    """One text through an LSTM, with its gates one by one."""
    h, c, outputs = np.zeros(UNITS), np.zeros(UNITS), []
    for step in x:
        a = step @ w["kernel"].astype(np.float64) + h @ w["recurrent_kernel"].astype(np.float64) + w["bias"]
        i, f, g, o = (a[k * UNITS : (k + 1) * UNITS] for k in range(4))
        c = gate(f) * c + gate(i) * np.tanh(g)
        h = gate(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs)


@pytest.mark.parametrize(
    ("version", "named", "activation", "gate"),
    [
        ("2.0.8", {}, "hard_sigmoid", lambda a: np.clip(0.2 * a + 0.5, 0.0, 1.0)),
        ("2.2.4-tf", {}, "hard_sigmoid", lambda a: np.clip(0.2 * a + 0.5, 0.0, 1.0)),
        ("2.15.0", {"recurrent_activation": "sigmoid"}, "sigmoid", lambda a: 1.0 / (1.0 + np.exp(-a))),
        ("3.6.0", {}, "hard_sigmoid_6", lambda a: np.clip(a + 3.0, 0.0, 6.0) / 6.0),
        ("2.1.6", {"recurrent_activation": None}, "hard_sigmoid", lambda a: np.clip(0.2 * a + 0.5, 0.0, 1.0)),
        ("2.3.1", {"recurrent_activation": None}, "sigmoid", lambda a: 1.0 / (1.0 + np.exp(-a))),
    ],
)
def test_the_name_of_the_gates_means_what_it_meant_to_the_version(tmp_path, version, named, activation, gate):
    layers = old_layers(**named)
    for layer in layers:
        if layer["config"].get("recurrent_activation", "") is None:
            del layer["config"]["recurrent_activation"]
    source = keras_reader.read_file(write_old(tmp_path / "old.h5", layers, version=version))
    imported = keras_import.convert_model(source)
    assert imported.config.recurrent_activation == activation
    assert (imported.seq_length, imported.config.output_dropout) == (TIME, 0.5)
    weights, ids = old_weights(), random_ids(batch=1)
    x = lstm_by_hand(weights["lstm_2"], lstm_by_hand(weights["lstm_1"], np.eye(SYMBOLS)[ids[0]], gate), gate)
    expected = x @ weights["dense_1"]["kernel"] + weights["dense_1"]["bias"]
    np.testing.assert_allclose(keras_import.compute_logits(source, ids)[0], expected, atol=1e-12)


def old_functional(layers):
    """The same chain as Keras 2 described a functional model."""
    layers = [{"class_name": "InputLayer", "config": {"name": "input_1"}}, *layers]
    entries = [
        {**layer, "name": layer["config"]["name"], "inbound_nodes": [[[before["config"]["name"], 0, 0, {}]]]}
        for before, layer in itertools.pairwise(layers)
    ]
    first = {**layers[0], "name": "input_1", "inbound_nodes": []}
    ends = {"input_layers": [["input_1", 0, 0]], "output_layers": [[layers[-1]["config"]["name"], 0, 0]]}
    return {"class_name": "Model", "config": {"name": "model_1", "layers": [first, *entries], **ends}}


def test_an_old_functional_model_is_the_same_function(tmp_path):
    sequential = keras_reader.read_file(write_old(tmp_path / "one.h5"))
    functional = keras_reader.read_file(write_old(tmp_path / "two.h5", config=old_functional(old_layers())))
    ids = random_ids()
    expected = keras_import.compute_logits(sequential, ids)
    np.testing.assert_array_equal(keras_import.compute_logits(functional, ids), expected)
    assert keras_import.convert_model(functional).config == keras_import.convert_model(sequential).config


def test_the_names_of_many_layers_are_cut_into_pieces(tmp_path):
    path = write_old(tmp_path / "old.h5")
    expected = keras_reader.read_file(path)
    with h5py.File(path, "a") as file:
        names = list(file["model_weights"].attrs["layer_names"])
        del file["model_weights"].attrs["layer_names"]
        file["model_weights"].attrs["layer_names0"] = names[:2]
        file["model_weights"].attrs["layer_names1"] = names[2:]
    for got, want in zip(keras_reader.read_file(path).layers, expected.layers, strict=True):
        assert len(got.weights) == len(want.weights)


# What is refused


def refuses(path, match):
    with pytest.raises(UserError, match=match) as caught:
        keras_import.convert_model(keras_reader.read_file(path))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))


def changed(index, **changes):
    layers = old_layers()
    layers[index]["config"] |= changes
    return layers


def with_layer(index, kind, **config):
    layers = old_layers()
    layers.insert(index, {"class_name": kind, "config": {"name": "extra", **config}})
    return layers


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (with_layer(6, "Lambda", function=["4wEAAAA=", None, None]), r"'extra' \(Lambda\) is not supported"),
        (with_layer(0, "Bidirectional", layer=old_layers()[0]), r"'extra' \(Bidirectional\) is not supported"),
        (with_layer(0, "Masking"), r"Masking"),
        (with_layer(2, "TimeDistributed", layer=old_layers()[0]), "only around a Dense"),
        (with_layer(0, "Embedding", input_dim=SYMBOLS, output_dim=3, mask_zero=True), "mask_zero=True"),
        (with_layer(4, "Dense", units=UNITS, activation="linear"), r"'dense_1' \(Dense\): is out of place"),
        (with_layer(6, "Activation", activation="softmax"), r"'extra' \(Activation\): is out of place"),
        (changed(0, activation="relu"), r"'lstm_1' \(LSTM\): activation='relu'"),
        (changed(0, activation={"class_name": "function"}), "activation="),
        (changed(0, recurrent_activation="relu"), "recurrent_activation='relu'"),
        (changed(2, recurrent_activation="sigmoid"), r"'lstm_2' \(LSTM\): its kind, size or activations differ"),
        (changed(2, units=UNITS + 1), r"'lstm_2' \(LSTM\): its kind, size or activations differ"),
        (changed(0, units="6"), "units='6'"),
        (changed(0, go_backwards=True), "go_backwards=True"),
        (changed(0, return_sequences=False), "return_sequences=False"),
        (changed(4, activation="relu"), "activation=relu and softmax"),
        (changed(4, activation="softmax"), "activation=softmax and softmax"),
        (changed(4, units=SYMBOLS + 1), "should have the shapes"),
        (changed(1, rate=1.5), r"'dropout_1' \(Dropout\): rate=1.5"),
        (old_layers()[:4], "has no Dense layer"),
        (old_layers()[4:], "has no recurrent layer"),
    ],
)
def test_what_has_no_counterpart_is_named(tmp_path, layers, match):
    refuses(write_old(tmp_path / "old.h5", layers), match)


def test_a_gru_with_the_reset_gate_before_the_product_is_refused(tmp_path):
    layers = old_layers()
    for index in (0, 2):
        layers[index]["class_name"] = "GRU"
    refuses(write_old(tmp_path / "old.h5", layers), "reset_after=False")


def test_wrong_weights_are_named(tmp_path):
    for change, match in [
        ({"bias": np.zeros(3, np.float32)}, r"'lstm_1' \(LSTM\): its weights should have the shapes \[7, 24\]"),
        ({"bias": np.full(4 * UNITS, np.nan, np.float32)}, "is not finite"),
        ({"bias": np.zeros(4 * UNITS, np.int32)}, "type int32"),
        ({"bias": np.zeros((1, 1, 2), np.float32)}, r"shape \[1, 1, 2\]"),
        ({f"extra{i}": np.zeros(2, np.float32) for i in range(9)}, "its weights should have"),  # as Keras 1 kept twelve
    ]:
        weights = old_weights()
        weights["lstm_1"] |= change
        refuses(write_old(tmp_path / "old.h5", weights=weights), match)
    weights = old_weights()
    del weights["dense_1"]
    refuses(write_old(tmp_path / "old.h5", weights=weights), r"'dense_1' \(Dense\).*missing")


@pytest.mark.parametrize(
    ("version", "match"), [("1.2.2", "written by Keras 1.2.2"), ("", "which version"), ("4.0.0", "Keras 4.0.0")]
)
def test_other_versions_are_refused(tmp_path, version, match):
    refuses(write_old(tmp_path / "old.h5", version=version), match)


def test_an_activation_that_had_two_defaults_is_not_guessed(tmp_path):
    layers = old_layers()
    for index in (0, 2):
        del layers[index]["config"]["recurrent_activation"]
    refuses(write_old(tmp_path / "old.h5", layers, version="2.2.4-tf"), "two defaults")


def test_models_that_are_no_chain_are_refused(tmp_path):
    path = tmp_path / "old.h5"
    split = old_functional(old_layers())
    split["config"]["layers"][4]["inbound_nodes"] = [[["lstm_1", 0, 0, {}]]]
    refuses(write_old(path, config=split), "only chains")
    initial = old_functional(old_layers())
    initial["config"]["layers"][3]["inbound_nodes"][0][0][3] = {"initial_state": [["lstm_1", 0, 1]]}
    refuses(write_old(path, config=initial), r"'lstm_2' \(LSTM\): its input is not just")
    twice = old_functional(old_layers())
    twice["config"]["layers"][2]["inbound_nodes"] *= 2
    refuses(write_old(path, config=twice), "'dropout_1' is used twice")
    two = old_functional(old_layers())
    two["config"]["output_layers"] = [["lstm_2", 0, 0], ["activation_1", 0, 0]]
    refuses(write_old(path, config=two), "its output is not just")
    refuses(write_old(path, config={"class_name": "CharModel", "config": {}}), "class 'CharModel' is not supported")


def test_links_and_arrays_elsewhere_are_not_followed(tmp_path):
    path, secret = tmp_path / "old.h5", tmp_path / "secret"
    np.zeros(4 * UNITS, np.float32).tofile(secret)
    for make in ("external", "soft", "raw"):
        write_old(path)
        with h5py.File(path, "a") as file:
            group = file["model_weights/lstm_1/lstm_1"]
            del group["bias:0"]
            if make == "external":
                group["bias:0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
            elif make == "soft":
                group["bias:0"] = h5py.SoftLink("/model_weights/lstm_2/lstm_2/bias:0")
            else:
                group.create_dataset("bias:0", (4 * UNITS,), "f4", external=[(str(secret), 0, 16 * UNITS)])
        refuses(path, "elsewhere|outside|incomplete")


def test_a_shape_that_only_claims_to_be_there_is_not_read(tmp_path):
    path = write_old(tmp_path / "old.h5")
    with h5py.File(path, "a") as file:
        group = file["model_weights/lstm_1/lstm_1"]
        del group["kernel:0"]
        group.create_dataset("kernel:0", (2**14, 2**13), "f4", chunks=(2**7, 2**7), compression="gzip")
    refuses(path, "incomplete")
    with h5py.File(path, "a") as file:
        del file["model_weights/lstm_1/lstm_1/kernel:0"]
        file["model_weights/lstm_1/lstm_1"].create_dataset("kernel:0", (2**20, 2**10), "f4")
    refuses(path, "more than")


def test_damaged_files_are_told_in_one_line(tmp_path):
    whole = write_old(tmp_path / "whole.h5").read_bytes()
    model = keras_model("SimpleRNN")
    model.save(tmp_path / "whole.keras")
    zipped = (tmp_path / "whole.keras").read_bytes()
    path = tmp_path / "damaged"
    for content in (b"", b"\x80\x04\x95pickle", whole[: len(whole) // 2], whole[:100], zipped[: len(zipped) // 2]):
        path.write_bytes(content)
        refuses(path, "cannot be read|damaged")
    refuses(tmp_path / "missing.h5", "cannot be read")
    refuses(tmp_path, "cannot be read")
    model.save_weights(tmp_path / "only.weights.h5")
    refuses(tmp_path / "only.weights.h5", "only weights")


def test_a_file_that_crashes_the_library_is_told_in_one_line():
    """In a process of its own, since it forks, which one with threads should not."""
    code = (
        "import os, signal\n"
        "from tfcharrnn.serving import keras_reader\n"
        "keras_reader.read_file = lambda path: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "try: keras_reader.read_file_safely('bad.h5')\n"
        "except keras_reader.UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout == "bad.h5: damaged (reading it kills the process)\n"


def rezipped(path, target, **members):
    """A copy of a zip with other content for some members, or without those that are None."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as copy:
        for name in source.namelist():
            content = members.get(name.replace(".", "_"), source.read(name))
            if content is not None:
                copy.writestr(name, content)
    return target


def test_zips_that_are_not_what_they_should_be(tmp_path):
    model = keras_model("SimpleRNN")
    model.save(tmp_path / "good.keras")
    good, bad = tmp_path / "good.keras", tmp_path / "bad.keras"
    keras_reader.read_file(rezipped(good, bad))
    refuses(rezipped(good, bad, config_json=None), "has no config.json")
    refuses(rezipped(good, bad, model_weights_h5=None), "has no model.weights.h5")
    refuses(rezipped(good, bad, model_weights_h5=b"nonsense"), "cannot be read")
    refuses(rezipped(good, bad, config_json=b"[" * 10**6), "not a JSON object")
    refuses(rezipped(good, bad, config_json=b"1"), "not a JSON object")
    refuses(
        rezipped(good, bad, config_json=b" " * (2**24 + 1)),
        "of 16,777,217 bytes is larger than the supported 16,777,216 bytes",
    )
    refuses(rezipped(good, bad, metadata_json=b"{}"), "which version")
    content = rezipped(good, bad).read_bytes()
    at = content.index(b"\x89HDF") if b"\x89HDF" in content else len(content) // 2
    bad.write_bytes(content[:at] + b"\0" * 50 + content[at + 50 :])
    refuses(bad, "damaged|cannot be read|not a JSON object")


def test_a_lambda_layer_saved_by_keras_is_refused_before_anything_runs(tmp_path):
    import keras

    model = keras.Sequential(
        [keras.Input((TIME, SYMBOLS)), keras.layers.LSTM(4), keras.layers.Lambda(lambda x: x / 0.5)]
    )
    for suffix in (".h5", ".keras"):
        model.save(tmp_path / f"model{suffix}")
        refuses(tmp_path / f"model{suffix}", r"\(Lambda\) is not supported")


# Characters


def test_characters_are_read_from_a_list_or_an_object(tmp_path):
    path = tmp_path / "chars.json"
    path.write_text(json.dumps(CHARACTERS))
    assert untrusted_files.read_vocabulary(path) == CHARACTERS
    path.write_text(json.dumps({c: i for i, c in reversed(list(enumerate(CHARACTERS)))}))
    assert untrusted_files.read_vocabulary(path) == CHARACTERS
    for bad in ({"a": 1, "b": 2}, {"a": 0, "b": 0}, {"a": "0"}, ["ab"], [1], "ab", ["a", "a"], {"ab": 0}, {"a": True}):
        path.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=r"chars\.json: "):
            untrusted_files.read_vocabulary(path)


def test_another_order_of_the_symbols_is_the_same_function(tmp_path):
    source = keras_reader.read_file(write_old(tmp_path / "old.h5"))
    imported = keras_import.convert_model(source)
    order = sorted(range(SYMBOLS), key=CHARACTERS.__getitem__)
    parameters = {k: v.astype(np.float64) for k, v in run_writer.reorder_symbols(imported.variables, order).items()}
    ids = random_ids()
    ours = np.argsort(order)[ids].T
    result = numpy_reference.run_model("lstm", parameters, ours, ours, gate="hard_sigmoid")
    expected = keras_import.compute_logits(source, ids)[..., order]
    np.testing.assert_allclose(np.swapaxes(result.logits, 0, 1), expected, atol=1e-12)


# The run folder


def write_run(imported, run_dir):
    data = keras_import.make_data_config(imported, CHARACTERS)
    run_writer.write_run(imported.config, imported.variables, CHARACTERS, data, run_dir, keras_import.TRAINING)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("LSTM", {"recurrent_activation": "hard_sigmoid"}),
        ("GRU", {"functional": True, "embedding": 4}),
        ("SimpleRNN", {}),
    ],
)
def test_the_library_predicts_what_keras_predicts(tmp_path, kind, settings):
    """The float64 model is the NumPy pass to the last bits; the run folder's, in float32, is Keras to its rounding."""
    import tensorflow as tf

    model = keras_model(kind, **settings)
    model.save(tmp_path / "model.keras")
    source = keras_reader.read_file(tmp_path / "model.keras")
    imported = keras_import.convert_model(source)
    order = find_symbol_order(CHARACTERS)
    assert keras_import.find_largest_difference(source, imported, order) < 1e-12
    write_run(imported, tmp_path / "run")
    trained = trained_model.load_model(tmp_path / "run")
    assert (trained.run.data.layout, trained.run.data.seq_length, trained.run.data.stride) == ("windows", TIME, 3)
    assert trained.run.data.lowercase and trained.checkpoint.step == 0
    texts = ["".join(CHARACTERS[i] for i in row) for row in random_ids()]
    logits, _ = trained.model(tf.constant([trained.run.vocabulary.encode(text) for text in texts]))
    ids = random_ids()
    predicted = model.predict(ids if "embedding" in settings else np.eye(SYMBOLS)[ids], verbose=0)
    np.testing.assert_allclose(softmax(logits.numpy()[:, -1]), predicted[:, order], atol=5e-6)


def test_a_wrong_import_is_noticed(tmp_path):
    source = keras_reader.read_file(write_old(tmp_path / "old.h5"))
    imported = keras_import.convert_model(source)
    order = find_symbol_order(CHARACTERS)
    assert keras_import.find_largest_difference(source, imported, order) < 1e-12
    for change in ({"recurrent_activation": "hard_sigmoid_6"}, {"recurrent_activation": "sigmoid"}):
        wrong = dataclasses.replace(imported, config=dataclasses.replace(imported.config, **change))
        assert keras_import.find_largest_difference(source, wrong, order) > 1e-3
        with pytest.raises(UserError, match=r"old\.h5: the imported model's logits differ from the file's by"):
            keras_import.check_logits(source, wrong, order)


def test_the_tool_makes_a_run_that_generates_and_evaluates(tmp_path):
    write_old(tmp_path / "old.h5")
    (tmp_path / "text.txt").write_text("".join(CHARACTERS).upper() + "ZA bay! " * 4)
    (tmp_path / "chars.json").write_text(json.dumps(CHARACTERS))

    def tool(*arguments):
        return commands.run("import_keras", "--model=old.h5", *arguments, cwd=tmp_path, text=True)

    done = tool("--text=text.txt", "--run_dir=run", "--seq_length=12", "--stride=2")
    assert done.returncode == 0 and done.stdout == "run\n", done.stderr
    assert "checked    logits differ from the file's by at most" in done.stderr
    trained = trained_model.load_model(tmp_path / "run")
    assert "".join(trained.run.vocabulary.symbols) == "".join(sorted(CHARACTERS))
    assert (trained.run.data.seq_length, trained.run.data.stride) == (12, 2)
    assert len(trained.generate(length=20, prime="baby ")) == 25
    assert trained.evaluate_text("a bay! " * 5).characters == 35 - 12
    for arguments, code, line in [
        (("--text=text.txt", "--run_dir=run"), 1, "run: exists already"),
        (("--text=text.txt", "--nolowercase", "--run_dir=new"), 1, "has 10 characters, but old.h5 has 7"),
        (("--run_dir=new",), 2, "--characters or --text"),
        (("--characters=chars.json",), 2, "--run_dir is missing"),
        (("--characters=chars.json", "--run_dir=new", "--seq_length=1"), 2, "--seq_length must be"),
        (("--text=text.txt", "--run_dir=new", "--encoding=bytes"), 2, "--encoding=bytes: the symbols of an imported"),
    ]:
        refused = tool(*arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (code, 1), refused.stderr
        assert line in refused.stderr
    assert not (tmp_path / "new").exists()


def test_without_h5py_help_is_shown_and_the_way_out_named(tmp_path):
    def run(*arguments):
        code = (
            "import runpy, sys\n"
            "sys.modules['h5py'] = sys.modules['tensorflow'] = None\n"
            "runpy.run_module('tfcharrnn.import_keras', run_name='__main__', alter_sys=True)"
        )
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    done = run("--model=old.h5", "--characters=chars.json", "--run_dir=run")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "pip install 'tfcharrnn[hdf5]'" in done.stderr
    assert "pip install 'tfcharrnn[hdf5]'" in run("--help").stdout


def test_an_imported_model_is_fine_tuned_on_a_text(tmp_path):
    source = keras_reader.read_file(write_old(tmp_path / "old.h5"))
    write_run(keras_import.convert_model(source), tmp_path / "run")
    (tmp_path / "text.txt").write_text("Bay! " * 50)
    settings = {"input": (str(tmp_path / "text.txt"),), "init_from": tmp_path / "run", "quiet": True}
    setup.train_model(tmp_path / "tuned", **settings, batch_size=4, steps=30, learning_rate=0.01)
    imported, tuned = (trained_model.load_model(tmp_path / name) for name in ("run", "tuned"))
    assert tuned.run.vocabulary == imported.run.vocabulary
    assert tuned.run.model == imported.run.model and tuned.run.data.layout == "windows"
    assert (
        not tuned.run.training.clip_norm and not tuned.run.training.drop_remainder and not tuned.run.data.val_fraction
    )
    assert tuned.evaluate_text("bay! " * 9).loss < imported.evaluate_text("bay! " * 9).loss
    for call, way_out in [
        (lambda: setup.train_model(tmp_path / "run", resume=True, quiet=True), "--init_from="),
        (imported.evaluate_split, "--input"),
    ]:
        with pytest.raises(UserError, match=way_out):
            call()
