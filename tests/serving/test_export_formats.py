"""Exported models against the library's own, used in processes in which the library cannot be imported."""

import json
import re
import subprocess
import sys
from pathlib import Path

import commands
import folders
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from tfcharrnn.analysis import html_report
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.inference import trained_model
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN, StreamState
from tfcharrnn.runs import checkpoints
from tfcharrnn.runs.checkpoints import Losses
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.serving import export_formats, saved_model
from tfcharrnn.training import setup

TEXT = "LATIN SMALL LETTER A\nGREEK: Größe, naïve — 日本 🙂\n"
DEFAULTS = {"length": 40, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}


def write_run(path, layout="sequences", *, text=TEXT, data=None, seed=0, **model):
    """A run folder of a model with random weights, so large that what was read decides what comes."""
    config = ModelConfig(**{"cell": "gru", "hidden_size": 16, **model})
    data = DataConfig(**{"layout": layout, **(data or {})})
    symbols = Vocabulary.from_text(text, LAYOUTS[layout].special).symbols
    vocabulary = Vocabulary(symbols, of_bytes=data.of_bytes)
    run = Run(path, data, "", "", config, TrainingConfig(batch_size=3), vocabulary)
    network, rng = CharRNN(config, len(vocabulary), layout=LAYOUTS[layout]), np.random.default_rng(seed)
    for variable in network.trainable_variables:
        variable.assign(rng.normal(0.0, 0.7, variable.shape))
    objects = {"model": network}
    if LAYOUTS[layout].carries_state:
        objects["carried"] = StreamState(network, 3)
        for state in tf.nest.flatten(objects["carried"].state):
            state.assign(rng.uniform(-1.0, 1.0, state.shape))
        objects["carried"].symbols.assign([5, 6, 7])
    path.mkdir()
    checkpoints.save(path, objects, 0, Losses(None, None), {})
    run.save()
    return path


@pytest.fixture(scope="module")
def serve():
    """A function from a SavedModel and a request to the answer of a bare process."""
    command = [sys.executable, "-I", str(ROOT / "tests" / "bare_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as process:

        def ask(path, signature, instances=None, **inputs):
            body = {"signature_name": signature}
            body |= {"inputs": inputs} if instances is None else {"instances": instances}
            return send(path, body)

        def send(path, body):
            process.stdin.write(json.dumps([str(Path(path).absolute()), body]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        ask.send = send
        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A GRU after some steps of training, on text with characters of one to four bytes."""
    path = tmp_path_factory.mktemp("trained")
    (path / "text.txt").write_text(TEXT * 60, encoding="utf-8")
    settings = {"cell": "gru", "hidden_size": 32, "seq_length": 30, "batch_size": 8, "learning_rate": 0.01}
    setup.train_model(path / "run", input=(str(path / "text.txt"),), steps=40, quiet=True, **settings)
    return trained_model.load_model(path / "run")


@pytest.fixture(scope="module")
def exported(trained):
    return export_formats.export_model(trained.run.path)


# SavedModel


def test_a_bare_process_generates_the_same_thousand_characters(trained, exported, serve):
    assert exported == trained.run.path / "export" / "saved_model"
    for settings in [
        {"seed": 1},
        {"seed": 2, "prime": "GREEK: Größe 🙂", "temperature": 0.7},
        {"seed": 3, "prime": "LATIN ", "temperature": 1.5, "top_k": 4, "top_p": 0.9},
    ]:
        expected = trained.generate(length=1000, **settings)
        inputs = {"prime": "", **DEFAULTS, **settings, "length": 1000}
        assert serve(exported, "generate", **inputs | {"prime": [inputs["prime"]]}) == {"outputs": [expected]}
        assert serve(exported, "generate", [inputs]) == {"predictions": [expected]}
    assert len(expected) == 1006 and not expected.isascii()


def test_the_likeliest_are_taken_with_top_k_of_1(trained, exported, serve):
    answer = serve(exported, "generate", **DEFAULTS | {"prime": ["LATIN"], "top_k": 1, "length": 100})
    assert answer == {"outputs": [trained.generate(prime="LATIN", length=100, greedy=True)]}


def test_texts_of_a_batch_stand_alone(trained, exported, serve):
    rows = [
        {"prime": "", "length": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 3},
        {"prime": "GREEK", "length": 60, "temperature": 0.5, "top_k": 3, "top_p": 1.0, "seed": 2**31 - 1},
        {"prime": "日本", "length": 9, "temperature": 2.0, "top_k": 0, "top_p": 0.5, "seed": 0},
    ]
    expected = [trained.generate(**row) for row in rows]
    assert serve(exported, "generate", rows) == {"predictions": expected}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert serve(exported, "generate", **columns) == {"outputs": expected}


def test_the_default_signature_is_generate(trained, exported, serve):
    answer = serve.send(exported, {"inputs": {**DEFAULTS, "prime": ["LATIN"]}})
    assert answer == {"outputs": [trained.generate(**DEFAULTS, prime="LATIN")]}


def test_python_functions_of_the_loaded_model_do_the_same(trained, exported):
    loaded = tf.saved_model.load(str(exported))
    specs = loaded.signatures["generate"].structured_input_signature[1]
    inputs = {name: tf.constant(value, specs[name].dtype) for name, value in DEFAULTS.items()}
    text = loaded.signatures["generate"](prime=tf.constant(["LATIN"]), **inputs)["text"]
    assert text.numpy()[0].decode() == trained.generate(**DEFAULTS, prime="LATIN")


@pytest.mark.parametrize(
    ("layout", "model"),
    [("lines", {}), ("stream", {"cell": "lstm", "num_layers": 2, "embedding_size": 5}), ("windows", {"cell": "lstm"})],
)
def test_every_layout_begins_and_ends_as_it_does(tmp_path, serve, layout, model):
    data = {"seq_length": 5} if layout in ("stream", "windows") else {}
    run = write_run(tmp_path / "run", layout, data=data, **model)
    trained, path = trained_model.load_model(run), export_formats.export_model(run)
    rows = [{**DEFAULTS, "prime": prime, "seed": seed} for prime in ("", "LATIN A") for seed in range(8)]
    expected = [trained.generate(**row) for row in rows]
    assert serve(path, "generate", rows) == {"predictions": expected}
    sizes = {len(text) - len(row["prime"]) for text, row in zip(expected, rows, strict=True)}
    assert (min(sizes) < 40) == (layout == "lines"), "lines stop at </S>, and nothing else stops"
    assert len(set(expected[:8])) > 1


@pytest.mark.parametrize("model", [{"learned_initial_state": True}, {"zero_start": True}, {"cell": "rnn"}])
def test_what_else_a_model_may_have(tmp_path, serve, model):
    run = write_run(tmp_path / "run", **model)
    trained, path = trained_model.load_model(run), export_formats.export_model(run)
    expected = trained.generate(**DEFAULTS, prime="LATIN")
    assert serve(path, "generate", **DEFAULTS, prime=["LATIN"]) == {"outputs": [expected]}
    answer = serve(path, "score", text=["LATIN"])["outputs"]
    assert answer["log_probability"] == pytest.approx(trained.score(["LATIN"]), rel=1e-5)


@pytest.mark.parametrize("layout", ["sequences", "lines"])
def test_a_score_is_that_of_the_library(tmp_path, serve, layout):
    run = write_run(tmp_path / "run", layout)
    trained, path = trained_model.load_model(run), export_formats.export_model(run)
    lines = ["LATIN", "", "GREEK: Größe, naïve — 日本 🙂", "A", "LATIN SMALL LETTER A" * 20]
    answer = serve(path, "score", text=lines)["outputs"]
    assert answer["log_probability"] == pytest.approx(trained.score(lines), rel=1e-5)
    assert answer["characters"] == [len(line) + (layout == "lines") for line in lines]
    assert serve(path, "score", [{"text": "A"}])["predictions"] == [
        {"log_probability": pytest.approx(trained.score(["A"])[0], rel=1e-5), "characters": 1 + (layout == "lines")}
    ]


@pytest.mark.parametrize("layout", ["stream", "windows"])
def test_a_score_without_a_beginning_is_the_loss_of_what_follows(tmp_path, serve, layout):
    run = write_run(tmp_path / "run", layout, data={"seq_length": 5})
    trained, path = trained_model.load_model(run), export_formats.export_model(run)
    texts = ["LATIN SMALL", "GREEK: Größe, naïve — 日本 🙂\nLATIN"]
    results = [trained.evaluate_text(text) for text in texts]
    answer = serve(path, "score", text=[*texts, "A"])["outputs"]
    assert answer["characters"] == [*(result.characters for result in results), 0]
    expected = [-result.loss * result.characters for result in results]
    assert answer["log_probability"] == pytest.approx([*expected, 0.0], rel=1e-5)


def test_text_is_normalised_as_in_training(tmp_path, serve):
    text = "abci\u0307\nß σς"
    data = {"lowercase": True, "drop_digits": True, "drop_chars": "-_"}
    run = write_run(tmp_path / "run", text=text, data=data)
    trained, path = trained_model.load_model(run), export_formats.export_model(run)
    for prime in ["A-B\r\nC_1٣", "ΣAΣ", "İI", "cab"]:
        expected = trained.generate(**DEFAULTS, prime=prime)
        assert expected.startswith(prime)
        assert serve(path, "generate", **DEFAULTS, prime=[prime]) == {"outputs": [expected]}, prime
        assert serve(path, "score", text=[prime])["outputs"]["log_probability"] == pytest.approx(
            trained.score([prime]), rel=1e-5
        )


@pytest.mark.parametrize("layout", ["sequences", "lines"])
def test_a_model_of_bytes_takes_and_gives_text(tmp_path, serve, layout):
    # the symbols are many starts of characters and few other bytes, so that some of what is drawn is valid
    text = "aB\r\n\ufffd".encode() + bytes([0, 0x80, 0x9F, 0xBF, 0xC3, 0xC4, 0xE2, 0xED, 0xEF, 0xF0, 0xF4, 0xFF])
    run = write_run(tmp_path / "run", layout, text=text.decode("latin-1"), data={"encoding": "bytes"}, seed=2)
    trained, path = trained_model.load_model(run), export_formats.export_model(run)
    for prime in ["", "ß", "\ufffd", "aB\r\n"]:
        expected = trained.generate(**DEFAULTS | {"length": 500}, prime=prime)
        assert serve(path, "generate", **DEFAULTS | {"length": 500}, prime=[prime]) == {"outputs": [expected]}, prime
        score = serve(path, "score", text=[prime])["outputs"]["log_probability"]
        assert score == pytest.approx(trained.score([prime]), rel=1e-5)
    assert r"does not have] [\xa9 z]" in serve(path, "score", text=["éz"])["error"].replace("\\\\", "\\")


# bytes that start, continue and end characters of all sizes, or never occur
TRICKY = [*"aX\nß字\ufffd🙂".encode(), *b"\0\x80\x9f\xa0\xbf\xc0\xc1\xe0\xed\xee\xf1\xf4\xf5\xff"]


@given(st.binary(max_size=12) | st.lists(st.sampled_from(TRICKY), max_size=12).map(bytes), st.booleans())
def test_the_graph_decodes_bytes_as_python_does(data, lowercase):
    vocabulary = Vocabulary(["<S>", *map(chr, range(256))], of_bytes=True)
    codec = saved_model._ByteCodec(vocabulary, DataConfig(encoding="bytes", lowercase=lowercase, drop_chars="x"))
    ids = codec.encode(tf.constant([data, b"", bytes(range(256))]))
    expected = (data.lower() if lowercase else data).replace(b"x", b"")
    assert (ids[0].numpy() - 1).tolist() == list(expected) and not len(ids[1])
    shown = expected.decode("utf-8", "backslashreplace").encode()
    assert codec.decode(b"", tf.concat([[0], ids[0]], axis=0)).numpy() == shown
    given = data.decode("utf-8", "backslashreplace").encode()
    assert codec.decode(data, ids[1]).numpy() == given


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prime": ["LATIN", "xQ%"]}, r"vocabulary does not have\] \[x Q %\]"),
        ({"temperature": 0.0}, r"temperature must be at least 1e-06\. Received:\] \[0"),
        ({"temperature": [0.5, 1e7]}, "temperature must be at most"),
        ({"top_p": 0.0}, "top_p must be greater than 0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"length": -1}, "length must be at least 0"),
        ({"seed": 2**31}, "seed must be at most 2147483647"),
        ({"length": [1, 2, 3]}, "Incompatible shapes"),
        ({"length": 1.5}, "not of expected type: int32"),
    ],
)
def test_wrong_inputs_are_named(exported, serve, change, named):
    inputs = {**DEFAULTS, "prime": ["LATIN", "A"], **change}
    assert re.search(named, serve(exported, "generate", **inputs)["error"])


def test_unknown_characters_of_a_score_are_named(exported, serve):
    assert "does not have] [~]" in serve(exported, "score", text=["A~"])["error"]


def test_a_stream_without_text_to_go_on_from_asks_for_a_prime(tmp_path, serve):
    run = write_run(tmp_path / "run", "stream", data={"seq_length": 5})
    trained = trained_model.load_model(run)
    trained.sampler.carried = None
    (tmp_path / "out").mkdir()
    export_formats._write_saved_model(trained, tmp_path / "out")
    assert "this model needs one" in serve(tmp_path / "out", "generate", **DEFAULTS, prime=[""])["error"]
    expected = trained.generate(**DEFAULTS, prime="A")
    assert serve(tmp_path / "out", "generate", **DEFAULTS, prime=["A"]) == {"outputs": [expected]}


@pytest.mark.parametrize(
    "model",
    [
        *({"cell": cell} for cell in ("lnlstm", "mlstm", "mingru", "minlstm", "sru")),
        {"cell": "gru", "residual": True, "layer_norm": True, "num_layers": 3},
        {"cell": "sru", "residual": True, "layer_norm": True, "num_layers": 2, "embedding_size": 4},
    ],
    ids=lambda model: f"{model['cell']}-{model.get('num_layers', 1)}",
)
def test_every_cell_is_trained_evaluated_reported_and_exported(tmp_path, serve, model):
    (tmp_path / "text.txt").write_text(TEXT * 30, encoding="utf-8")
    settings = {"hidden_size": 12, "seq_length": 20, "batch_size": 8, "learning_rate": 0.01, "sample_length": 20}
    result = setup.train_model(
        tmp_path / "run", input=(str(tmp_path / "text.txt"),), steps=6, quiet=True, **settings, **model
    )
    trained = trained_model.load_model(tmp_path / "run")
    assert trained.evaluate_split("val").loss == pytest.approx(result.val_loss, rel=1e-5)
    assert html_report.write_report(trained, characters=50).stat().st_size > 10_000
    expected = trained.generate(length=300, seed=5, prime="LATIN")
    path = export_formats.export_model(tmp_path / "run")
    answer = serve(path, "generate", **DEFAULTS | {"length": 300, "seed": 5, "prime": ["LATIN"]})
    assert answer == {"outputs": [expected]}
    named = trained.model.named_variables
    with np.load(export_formats.export_model(tmp_path / "run", "npz") / "model.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {*named, "symbols", "config"}
        for name, variable in named.items():
            np.testing.assert_array_equal(arrays[name], variable.numpy())


def test_the_requests_of_the_recipe_are_answered(trained, exported, serve):
    recipe = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    bodies = [json.loads(body) for body in re.findall(r"-d '(.*?)'", recipe, re.DOTALL)]
    assert {body["signature_name"] for body in bodies} == {"generate", "score"}
    for body in bodies:
        answer = serve.send(exported, body)
        if body["signature_name"] == "score":
            (scores,) = answer.values()
            assert "error" not in answer and len(str(scores)) > 20
        elif "inputs" in body:
            inputs = dict(body["inputs"])
            (prime,) = inputs.pop("prime")
            assert answer == {"outputs": [trained.generate(prime=prime, **inputs)]}
        else:
            assert answer == {"predictions": [trained.generate(**row) for row in body["instances"]]}


# Keras and ONNX: the network alone

KERAS = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.modules["tfcharrnn"] = None
import keras, numpy as np
for path in sys.argv[1:]:
    np.save(path + "/logits.npy", keras.models.load_model(path + "/model.keras")(np.load(path + "/ids.npy")))
"""
NETWORKS = {
    "rnn": {"cell": "rnn"},
    "lstm": {"cell": "lstm", "num_layers": 2},
    "gru": {"cell": "gru", "embedding_size": 6},
    "zero_start": {"zero_start": True},
    "embedded_zero_start": {"zero_start": True, "embedding_size": 6},
    "hard": {"cell": "lstm", "recurrent_activation": "hard_sigmoid_6"},
    "residual": {"cell": "lstm", "num_layers": 3, "residual": True},
    "normalised": {"num_layers": 3, "residual": True, "layer_norm": True},
    "normalised_alone": {"cell": "rnn", "layer_norm": True},
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    home = tmp_path_factory.mktemp("networks")
    return {name: trained_model.load_model(write_run(home / name, **model)) for name, model in NETWORKS.items()}


def example(trained):
    """Ids with `<S>` at their beginning and once more, and the logits."""
    ids = np.random.default_rng(1).integers(1, len(trained.run.vocabulary), (3, 10), np.int32)
    ids[:, 0] = ids[1, 7] = trained.run.vocabulary.start_id
    return ids, trained.model(tf.constant(ids))[0].numpy()


def test_keras_loads_a_model_of_the_same_logits_in_a_bare_process(networks, tmp_path):
    paths = []
    for name, trained in networks.items():
        paths.append(export_formats.export_model(trained.run.path, "keras", tmp_path / name))
        np.save(paths[-1] / "ids.npy", example(trained)[0])
    subprocess.run([sys.executable, "-I", "-c", KERAS, *map(str, paths)], check=True, timeout=300, cwd="/")
    for path, trained in zip(paths, networks.values(), strict=True):
        np.testing.assert_allclose(np.load(path / "logits.npy"), example(trained)[1], rtol=0.0, atol=1e-5)
        assert Vocabulary.load(path / "vocab.json") == trained.run.vocabulary


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "zero_start", "normalised"])
def test_onnxruntime_gives_the_same_logits(networks, tmp_path, name):
    for module in ("onnx", "tf2onnx"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install '.[onnx]'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[onnx]'")
    path = export_formats.export_model(networks[name].run.path, "onnx", tmp_path / "out")
    ids, expected = example(networks[name])
    session = onnxruntime.InferenceSession(path / "model.onnx")
    assert [(value.name, value.shape[:2]) for value in (*session.get_inputs(), *session.get_outputs())] == [
        ("ids", ["batch", "time"]),
        ("logits", ["batch", "time"]),
    ]
    for rows in (3, 1):
        (logits,) = session.run(["logits"], {"ids": ids[:rows]})
        np.testing.assert_allclose(logits, expected[:rows], rtol=0.0, atol=1e-4)


def test_without_the_converter_the_way_out_is_named(networks, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'tfcharrnn\[onnx\]'"):
        export_formats.export_model(networks["rnn"].run.path, "onnx", tmp_path / "out")
    assert folders.names(tmp_path) == []


@pytest.mark.parametrize("format", ["keras", "onnx"])
@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"learned_initial_state": True}, "learned"),
        ({"recurrent_activation": "hard_sigmoid"}, "0.2 a"),
        ({"cell": "mingru"}, "Keras has no --cell=mingru; use --format=saved_model or npz"),
    ],
)
def test_what_keras_has_no_layers_for_is_refused(tmp_path, format, model, named):
    if format == "onnx":
        for module in ("onnx", "onnxruntime", "tf2onnx"):
            pytest.importorskip(module)
    run = write_run(tmp_path / "run", **model)
    with pytest.raises(UserError, match=named) as raised:
        export_formats.export_model(run, format)
    assert "\n" not in str(raised.value)
    assert not (run / "export").exists() or folders.names(run / "export") == []


def test_a_precision_that_keras_does_not_take_along_is_told(tmp_path, capsys):
    export_formats.export_model(write_run(tmp_path / "run", precision="bfloat16"), "keras")
    assert "bfloat16" in capsys.readouterr().err


# npz


@pytest.mark.parametrize("layout", ["sequences", "stream"])
def test_an_npz_has_every_array_by_its_name(tmp_path, layout):
    model = {"embedding_size": 4, "learned_initial_state": True, "num_layers": 2}
    run = write_run(tmp_path / "run", layout, data={"seq_length": 9}, **model)
    trained = trained_model.load_model(run)
    with np.load(export_formats.export_model(run, "npz") / "model.npz", allow_pickle=False) as arrays:
        assert tuple(arrays["symbols"]) == trained.run.vocabulary.symbols
        config = json.loads(str(arrays["config"]))
        assert config["model"]["num_layers"] == 2 and config["data"]["seq_length"] == 9 and config["step"] == 0
        named = trained.model.named_variables
        for name, variable in named.items():
            np.testing.assert_array_equal(arrays[name], variable.numpy())
        assert "cells/1/recurrent_kernel" in named and "initial_states/0/0" in named
        rest = {"carried/symbols", "carried/state/0/0", "carried/state/1/0"} if layout == "stream" else set()
        assert set(arrays) - set(named) == {"symbols", "config"} | rest


# The command


def test_the_command_writes_a_whole_new_folder_or_nothing(networks, tmp_path):
    run_dir = networks["rnn"].run.path

    def export(*flags):
        return commands.run("export", f"--run_dir={run_dir}", *flags, cwd=tmp_path, text=True)

    done = export("--format=npz", "--output=out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "")
    before = folders.contents(tmp_path)
    again = export("--format=npz", "--output=out")
    assert again.returncode == 1 and again.stderr.count("\n") == 1 and "--overwrite" in again.stderr
    assert folders.contents(tmp_path) == before
    export_formats.export_model(run_dir, "keras", tmp_path / "out", overwrite=True)
    assert folders.names(tmp_path / "out") == ["config.json", "model.keras", "vocab.json"]
    wrong = export("--format=pickle")
    assert wrong.returncode == 2 and "saved_model" in wrong.stderr


def test_the_format_is_checked_in_python_too(tmp_path):
    with pytest.raises(ConfigError, match="--format must be one of saved_model"):
        export_formats.export_model(tmp_path, "h5")


def test_no_path_of_this_machine_goes_out_with_a_model(trained, exported):
    home = str(trained.run.path.parent).encode()
    contents = folders.contents(exported)
    assert json.loads(contents["assets.extra/config.json"])["data"]["seq_length"] == 30
    for name, content in contents.items():
        assert home not in content, name
        assert str(ROOT).encode() not in content, name
