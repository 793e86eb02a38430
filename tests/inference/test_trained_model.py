"""What a trained model computes about a text, and that it can be generated from, copied and pickled."""

import copy
import pickle
import shutil

import numpy as np
import pytest
import tensorflow as tf
from paths import GOLDEN

import tfcharrnn
from tfcharrnn.analysis import unit_activations

TEXT = "the dog sat. the hen ate the egg.\n" * 20
DEEP = {
    "cell": "lstm",
    "hidden_size": 5,
    "num_layers": 2,
    "embedding_size": 3,
    "residual": True,
    "layer_norm": True,
    "zero_start": True,
    "learned_initial_state": True,
    "seq_length": 21,
    "batch_size": 4,
    "learning_rate": 0.1,
}


@pytest.fixture(scope="module")
def runs(own_cache, tmp_path_factory):
    """A run of two residual layers, and the golden runs, of which one reads a stream."""
    path = tmp_path_factory.mktemp("runs") / "deep"
    tfcharrnn.train_model(path, text=TEXT, steps=3, checkpoint_every=1, keep_checkpoints=0, quiet=True, **DEEP)
    return {"deep": path, **{name: GOLDEN / name for name in ("rnn", "lstm", "gru")}}


@pytest.fixture(scope="module", params=["deep", "rnn", "lstm", "gru"])
def trained(request, runs):
    return tfcharrnn.load_model(runs[request.param])


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_activations_are_those_of_the_model(trained):
    ids, logits, states, embeddings = trained.compute_activations("the dog")
    model, vocabulary, config = trained.model, trained.run.vocabulary, trained.run.model
    has_start = model.layout.start_id is not None
    assert vocabulary.decode(ids[has_start:]) == "the dog"
    assert not has_start or ids[0] == vocabulary.start_id
    expected, last = model(tf.constant(ids[np.newaxis]))
    np.testing.assert_allclose(logits, expected[0], rtol=1e-4, atol=1e-5)
    assert logits.shape == (len(ids), len(vocabulary))
    assert len(states) == config.num_layers
    for layer, cell, expected_layer in zip(states, model.cells, last, strict=True):
        assert [values.shape for values in layer] == [(len(ids), config.hidden_size)] * cell.num_state_tensors
        for values, value in zip(layer, expected_layer, strict=True):
            np.testing.assert_allclose(values[-1], value[0], rtol=1e-4, atol=1e-5)
    if not config.embedding_size:
        assert embeddings is None
    else:
        np.testing.assert_array_equal(embeddings[has_start:], model.embedding.numpy()[ids[has_start:]])
        assert not (config.zero_start and embeddings[0].any())


def test_their_loss_is_the_one_that_is_evaluated(trained):
    text = "the dog sat"
    activations = trained.compute_activations(text)
    predicted = log_softmax(activations.logits[:-1])[np.arange(len(activations.ids) - 1), activations.ids[1:]]
    read = "" if trained.run.data.layout == "lines" else "whole"
    result = trained.evaluate_text(text, read=read)
    count = result.characters  # of lines also the end, which follows the text
    if count == len(predicted):
        assert -predicted.mean() == pytest.approx(result.loss, abs=1e-5)
    else:
        end = log_softmax(activations.logits[-1])[trained.run.vocabulary.end_id]
        assert -(predicted.sum() + end) / count == pytest.approx(result.loss, abs=1e-5)


def test_the_report_traces_a_residual_model_as_it_is(runs):
    trained = tfcharrnn.load_model(runs["deep"])
    trace = unit_activations.trace_text(trained.model, trained.run.vocabulary, "the dog sat")
    loss = trained.evaluate_text("the dog sat", read="whole").loss
    assert float(np.mean(trace.losses)) == pytest.approx(loss, abs=1e-5)


def test_what_cannot_be_read_is_told(runs):
    with pytest.raises(tfcharrnn.UserError, match=r"^poem: .*does not have 'Q'"):
        tfcharrnn.load_model(runs["deep"]).compute_activations("Q", "poem")
    with pytest.raises(tfcharrnn.UserError, match=r"^text: is empty"):
        tfcharrnn.load_model(runs["lstm"]).compute_activations("")


def test_several_samples_are_a_list_and_one_is_a_text(trained):
    texts = trained.generate("the ", num_samples=3, length=8, seed=2)
    assert isinstance(texts, list)
    assert [text[:4] for text in texts] == ["the "] * 3
    text = trained.generate("the ", length=8, seed=2)
    assert text == trained.generate(prime="the ", length=8, seed=2, num_samples=1)
    assert isinstance(text, str)
    with pytest.raises(tfcharrnn.ConfigError, match=r"^there is no setting 'prompt'; did you mean prime\?$"):
        trained.generate(prompt="the ")


def test_a_model_is_copied_and_pickled_with_its_weights(trained):
    for other in (copy.copy(trained), copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert other.run == trained.run or other.run.path == trained.run.path
        assert other.checkpoint == trained.checkpoint
        for name, variable in trained.model.named_variables.items():
            np.testing.assert_array_equal(other.model.named_variables[name], variable)
        other.model.output_bias.assign_add(tf.range(trained.model.vocabulary_size, dtype=tf.float32))
        changed = pickle.loads(pickle.dumps(other))
        np.testing.assert_array_equal(changed.model.output_bias, other.model.output_bias)
    prime = "" if trained.run.data.layout != "windows" else "the "
    assert copy.copy(trained).generate(prime, length=9) == trained.generate(prime, length=9)


def test_a_pickle_needs_no_run_folder(runs, tmp_path):
    shutil.copytree(runs["gru"], tmp_path / "run")
    trained = tfcharrnn.load_model(tmp_path / "run")
    pickled = pickle.dumps(trained)
    shutil.rmtree(tmp_path / "run")
    assert pickle.loads(pickled).generate("the ", length=9) == trained.generate("the ", length=9)


def test_a_checkpoint_is_named_by_its_step(runs, tmp_path):
    for step in (1, "1", runs["deep"] / "checkpoints" / "step-00000001"):
        assert tfcharrnn.load_model(runs["deep"], checkpoint=step).checkpoint.step == 1
    with pytest.raises(tfcharrnn.UserError, match=r"^--checkpoint=7: no such checkpoint; .*step-00000002"):
        tfcharrnn.load_model(runs["deep"], checkpoint=7)
    tfcharrnn.export_model(runs["deep"], "npz", tmp_path / "npz", checkpoint=1)
    (path,) = (tmp_path / "npz").glob("*.npz")
    expected = tfcharrnn.load_model(runs["deep"], checkpoint=1).model.output_bias
    np.testing.assert_array_equal(np.load(path)["output_bias"], expected)


def test_a_report_takes_a_folder_or_a_model(runs, tmp_path):
    trained = tfcharrnn.load_model(runs["gru"])
    by_folder = tfcharrnn.write_report(runs["gru"], tmp_path / "a.html", split="none", characters=20)
    by_model = tfcharrnn.write_report(trained, tmp_path / "b.html", split="none", characters=20)
    assert by_folder.read_bytes() == by_model.read_bytes()
    with pytest.raises(tfcharrnn.UserError, match="not a run folder"):
        tfcharrnn.write_report(tmp_path)


def test_a_model_shows_itself_in_a_line_and_in_a_notebook(runs):
    trained = tfcharrnn.load_model(runs["deep"], 2)
    sizes = f"lstm, 2 x 5 units, {trained.model.num_parameters:,} parameters"
    assert repr(trained) == f"<TrainedModel {sizes}, from {runs['deep']} at step 2>"
    assert repr(trained.run) == f"<Run {runs['deep']}: lstm, 2 x 5 units>"
    assert repr(trained.run.vocabulary).startswith("<Vocabulary of 13 symbols: ")
    page = trained._repr_html_()
    assert "<td" in page and "lstm, 2 x 5 units" in page and "step 2" in page and "not measured" in page
    assert "<svg" in tfcharrnn.load_model(runs["deep"])._repr_html_()


def test_a_model_whose_run_is_gone_shows_itself_without_a_curve(runs, tmp_path):
    shutil.copytree(runs["rnn"], tmp_path / "run")
    trained = tfcharrnn.load_model(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    assert "<svg" not in trained._repr_html_() and "rnn, 1 x" in trained._repr_html_()
