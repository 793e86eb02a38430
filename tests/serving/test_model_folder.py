"""Model folders: written by `export --format=safetensors`, read by everything that reads a run folder."""

import json
import math
import struct
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy

from tfcharrnn.config import ModelConfig
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.inference import trained_model
from tfcharrnn.runs import model_folder, run_folder
from tfcharrnn.serving import export_formats, model_card, run_writer
from tfcharrnn.training import setup

GOLDEN = Path(__file__).parents[1] / "golden"
CELLS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
WEIGHTS = "model.safetensors"


def same(first, second):
    """Whether two models have the same bits, symbols and settings, and carry the same stream over."""
    a, b = first.copy_weights(), second.copy_weights()
    assert a.variables.keys() == b.variables.keys() and len(a.carried) == len(b.carried)
    for left, right in zip([*a.variables.values(), *a.carried], [*b.variables.values(), *b.carried], strict=True):
        assert left.dtype == right.dtype and left.tobytes() == right.tobytes()
    assert first.run.vocabulary.symbols == second.run.vocabulary.symbols
    return first.run.model == second.run.model and first.checkpoint.losses == second.checkpoint.losses


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """A run on a stream, with a validation loss, and the folder that was exported from it."""
    path = tmp_path_factory.mktemp("stream")
    (path / "private name.txt").write_text("the cat sat on the mat, and so did the dog.\n" * 40)
    settings = {"cell": "lnlstm", "hidden_size": 6, "embedding_size": 3, "layout": "stream", "seq_length": 10}
    setup.train_model(
        path / "my run", input=path / "private name.txt", steps=3, batch_size=4, eval_every=3, quiet=True, **settings
    )
    export_formats.export_model(path / "my run", "safetensors", path / "shared", license="cc-by-4.0")
    return path


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_comes_back_with_the_same_bits(tmp_path, cell):
    trained = trained_model.load_model(GOLDEN / cell)
    path = export_formats.export_model(GOLDEN / cell, "safetensors", tmp_path / "shared")
    shared = trained_model.load_model(path)
    assert same(trained, shared)
    run_writer.write_copy(shared, tmp_path / "run")
    copy = trained_model.load_model(tmp_path / "run")
    assert same(trained, copy)
    assert trained.generate(length=30, seed=2) == copy.generate(length=30, seed=2)


def test_a_stream_goes_on_where_training_ended(stream):
    trained, shared = trained_model.load_model(stream / "my run"), trained_model.load_model(stream / "shared")
    assert same(trained, shared) and shared.checkpoint.step == 3
    assert trained.generate(num_samples=5, length=40) == shared.generate(num_samples=5, length=40)
    run_writer.write_copy(shared, stream / "copy")
    assert same(trained, trained_model.load_model(stream / "copy"))


def test_weights_of_float64_and_float16_are_read(stream, tmp_path):
    run = run_folder.load(stream / "shared")
    weights = model_folder.read_weights(run)
    model_folder.write(
        tmp_path, run, model_folder.read_checkpoint(stream / "shared"), model_folder.round_weights(weights)
    )
    kernel = trained_model.load_model(tmp_path).copy_weights().variables["cells/0/recurrent_kernel"]
    expected = weights.variables["cells/0/recurrent_kernel"].astype(np.float16)
    assert kernel.dtype == np.float32 and (kernel == expected).all()


def test_another_run_starts_from_it(stream):
    settings = {"text": "the dog sat on the cat. " * 40, "seq_length": 10, "batch_size": 2, "learning_rate": 1e-9}
    result = setup.train_model(
        stream / "next", init_from=stream / "shared", steps=1, val_fraction=0.0, quiet=True, **settings
    )
    before, after = (trained_model.load_model(path).copy_weights() for path in (stream / "shared", result.run_dir))
    for name, value in before.variables.items():
        np.testing.assert_allclose(after.variables[name], value, atol=1e-6)
    with pytest.raises(UserError, match="nothing to resume; start a run with --init_from"):
        setup.train_model(stream / "shared", resume=True, steps=5, quiet=True)


def test_the_folder_holds_no_path(stream):
    assert sorted(path.name for path in (stream / "shared").iterdir()) == [
        "README.md",
        "config.json",
        WEIGHTS,
        "vocab.json",
    ]
    for path in (stream / "shared").iterdir():
        assert str(stream).encode() not in path.read_bytes()


def test_the_card_is_one_of_the_hub(stream):
    card = huggingface_hub.ModelCard((stream / "shared" / "README.md").read_text(encoding="utf-8"))
    data = card.data.to_dict()
    assert (data["library_name"], data["license"]) == ("tfcharrnn", "cc-by-4.0")
    assert data["pipeline_tag"] == "text-generation" and "lnlstm" in data["tags"]
    loss = trained_model.load_model(stream / "my run").checkpoint.losses.val
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures == {"loss": round(loss, 4), "bits_per_character": round(loss / math.log(2), 4)}
    (result, _) = card.data.eval_results
    assert result.dataset_name == "private name.txt" and card.data.model_name == "my run"
    assert "# my run" in card.text and "tfcharrnn generate --run_dir=FOLDER" in card.text


@pytest.mark.parametrize("name", ["yes", "a: b", '"', "- x", "größe\n---\n", "#", "\udcff", "<b>`[x]"])
def test_any_name_makes_a_valid_card(stream, tmp_path, name):
    trained = trained_model.load_model(stream / "shared")
    model_card.write_card(trained, tmp_path / "README.md", "unknown", name=name)
    card = huggingface_hub.ModelCard((tmp_path / "README.md").read_text(encoding="utf-8"))
    assert card.data.model_name and card.data.model_name in card.text


def test_a_model_without_a_loss_has_no_figures(tmp_path):
    path = export_formats.export_model(GOLDEN / "rnn", "safetensors", tmp_path / "shared")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"val_loss": None, "smooth_loss": None}))
    model_card.write_card(trained_model.load_model(path), path / "README.md", "mit")
    assert "model-index" not in (path / "README.md").read_text()


@pytest.mark.parametrize(
    ("format", "license", "reason"),
    [("npz", "mit", "is for the model card"), ("safetensors", "My License", "identifier of the Hugging Face hub")],
)
def test_a_wrong_license_is_refused(tmp_path, format, license, reason):
    with pytest.raises(ConfigError, match=reason):
        export_formats.export_model(GOLDEN / "rnn", format, tmp_path / "out", license=license)
    assert not (tmp_path / "out").exists()


def damage(stream, tmp_path, change):
    """The error of reading a folder whose weights were changed."""
    for path in (stream / "shared").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path)
    with pytest.raises(UserError) as caught:
        trained_model.load_model(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message
    return message


def change_arrays(folder, **changed):
    arrays = safetensors.numpy.load_file(folder / WEIGHTS)
    arrays = {name: value for name, value in (arrays | changed).items() if value is not None}
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save(arrays))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"output_bias": None}, "the array 'output_bias' is missing"),
        ({"extra": np.zeros(2, np.float32)}, "the array 'extra' is unknown"),
        ({"output_bias": np.zeros(2, np.float32)}, "output_bias: has shape (2,), but needs"),
        ({"embedding": np.full((21, 3), np.nan, np.float32)}, "embedding: has values that are not finite"),
        ({"output_bias": np.zeros(21, np.complex64)}, "output_bias: holds 'C64'"),
        ({"carried.symbols": None}, "the array 'carried.symbols' is missing"),
        ({"carried.symbols": np.full(4, 99, np.int32)}, "symbols outside vocab.json"),
        ({"carried.symbols": np.zeros(4, np.float32)}, "has the type float32"),
    ],
)
def test_wrong_arrays_are_refused(stream, tmp_path, changed, reason):
    vocabulary_size = len(run_folder.load(stream / "shared").vocabulary)
    for name, value in changed.items():
        if value is not None and len(value) == 21:  # stands for the size of the vocabulary
            changed = changed | {name: np.resize(value, (vocabulary_size, *value.shape[1:]))}
    assert reason in damage(stream, tmp_path, lambda folder: change_arrays(folder, **changed))


def test_a_stream_may_have_nothing_to_continue(stream, tmp_path):
    names = ["carried.symbols", "carried.state.0.0", "carried.state.0.1"]
    for path in (stream / "shared").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change_arrays(tmp_path, **dict.fromkeys(names))
    shared = trained_model.load_model(tmp_path)
    assert len(shared.generate("the", length=5)) == 8
    with pytest.raises(UserError, match="--prime is missing"):
        shared.generate(length=5)
    run_writer.write_copy(shared, tmp_path / "run")
    assert trained_model.load_model(tmp_path / "run").generate("the", length=9) == shared.generate("the", length=9)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged"),
        (struct.pack("<Q", 2**60) + b"{}", "a header of"),
        (struct.pack("<Q", 2) + b"{]", "damaged"),
        (b"\0" * 3_000_000, "too many for the model"),
    ],
)
def test_a_damaged_file_is_refused(stream, tmp_path, data, reason):
    assert reason in damage(stream, tmp_path, lambda folder: (folder / WEIGHTS).write_bytes(data))


def test_a_model_that_is_too_large_is_not_made(stream, tmp_path):
    def enlarge(folder):
        config = json.loads((folder / "config.json").read_text())
        config["model"] |= ModelConfig(cell="lnlstm", hidden_size=60_000, embedding_size=3).__dict__
        (folder / "config.json").write_text(json.dumps(config))

    assert "has shape" in damage(stream, tmp_path, enlarge)


def test_it_has_one_checkpoint(stream):
    with pytest.raises(UserError, match="has only one; leave the flag out"):
        trained_model.load_model(stream / "shared", checkpoint=100)
