"""What a model did with a text, against the model itself."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.analysis import unit_activations
from tfcharrnn.analysis.unit_activations import LayerActivations, Trace
from tfcharrnn.config import ModelConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.cells import Cell, register_cell
from tfcharrnn.model.char_rnn import CharRNN

CHARACTERS = "abcdef"


@register_cell("three_states")
class ThreeStates(Cell):
    """An Elman network that remembers its last two outputs."""

    num_gates = 1
    num_state_tensors = 3

    @classmethod
    def forward(cls, p, q, state):
        h, c, d = state
        return tf.tanh(p + q + 0.5 * d), h, c


def make_model(layout, cell):
    vocabulary = Vocabulary.from_text(CHARACTERS, LAYOUTS[layout].special)
    config = ModelConfig(cell=cell, hidden_size=8, num_layers=2, embedding_size=3, learned_initial_state=True)
    model, rng = CharRNN(config, len(vocabulary), layout=LAYOUTS[layout]), np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.0, 0.6, variable.shape))
    return model, vocabulary


def losses(model, ids):
    """Of each symbol but the first."""
    return model.losses(tf.constant([ids]))[0].numpy()[0]


@pytest.mark.parametrize(
    ("layout", "cell", "before"),
    [("sequences", "rnn", [0]), ("stream", "lstm", []), ("windows", "gru", []), ("sequences", "three_states", [0])],
)
def test_a_text_is_read_on_and_on(layout, cell, before):
    model, vocabulary = make_model(layout, cell)
    text = "abcadefffba"
    ids = [*before, *vocabulary.encode(text)]
    trace = unit_activations.trace_text(model, vocabulary, text)
    assert trace.text == text
    logits, state = model(tf.constant([ids]))
    assert len(trace.layers) == sum(len(tensors) for tensors in state)
    for layer in trace.layers:
        last = state[layer.layer][["h", "c", "s2"].index(layer.part)]
        np.testing.assert_allclose(layer.values[-1], last.numpy()[0], atol=1e-5)
        assert layer.values.shape == (len(text), 8)
    probabilities = tf.nn.softmax(logits[0]).numpy()[:-1]
    start = 1 - len(before)  # the first character is predicted from <S>, or not at all
    assert np.isnan(trace.losses[:start]).all() and (trace.guesses[:start] == -1).all()
    expected = -np.log(probabilities[np.arange(len(ids) - 1), ids[1:]])
    np.testing.assert_allclose(trace.losses[start:], expected, atol=1e-5)
    np.testing.assert_array_equal(trace.guesses[start:], np.argsort(-probabilities)[:, :5])
    np.testing.assert_allclose(trace.probabilities[start:], -np.sort(-probabilities)[:, :5], atol=1e-6)


def test_lines_are_read_each_by_itself_and_their_ends_are_not_read():
    model, vocabulary = make_model("lines", "gru")
    lines = ["abc", "f", "deade"]
    trace = unit_activations.trace_text(model, vocabulary, lines)
    assert trace.text == "abc\nf\ndeade\n"
    expected = np.concatenate([losses(model, [1, *vocabulary.encode(line), 2]) for line in lines])
    np.testing.assert_allclose(trace.losses, expected, atol=1e-5)
    alone = unit_activations.trace_text(model, vocabulary, [lines[2]])
    ends = np.array([symbol == "</S>" for symbol in trace.symbols])
    for layer, other in zip(trace.layers, alone.layers, strict=True):
        np.testing.assert_array_equal(np.isnan(layer.values).all(axis=1), ends)
        np.testing.assert_allclose(layer.values[6:], other.values, atol=1e-6)


@pytest.mark.parametrize("layout", ["stream", "sequences", "lines"])
def test_nothing_can_be_read(layout):
    model, vocabulary = make_model(layout, "rnn")
    trace = unit_activations.trace_text(model, vocabulary, [] if layout == "lines" else "")
    assert not trace.symbols
    assert unit_activations.correlate_with_features(trace)[0] == ()
    with pytest.raises(UserError, match=r"story: .*'x'"):
        unit_activations.trace_text(model, vocabulary, ["x"] if layout == "lines" else "x", name="story")


def test_a_unit_that_tracks_a_feature_is_found():
    text = 'he said "so it is" and\n(went) "home"\n[and] slept (well) "or so"\n' * 5
    rng = np.random.default_rng(0)
    values = rng.normal(0.0, 0.1, [len(text), 12]).astype(np.float32)
    column = [len(text[: i + 1].rsplit("\n", 1)[-1]) for i in range(len(text))]
    values[:, 7] -= np.array(column) * 0.05
    quoted, inside = [], False
    for character in text:
        inside ^= character == '"'
        quoted.append(inside)
    values[:, 3] += quoted
    values[:, 5] = 0.25  # a dead one
    values[4] = np.nan
    trace = Trace(tuple(text), (LayerActivations(0, "h", values),), *np.zeros([3, len(text), 1]))
    found, (r,) = unit_activations.correlate_with_features(trace)
    names = [feature.name for feature in found]
    assert np.argmax(np.abs(r[names.index("inside quotes")])) == 3
    assert r[names.index("inside quotes"), 3] > 0.9
    assert np.argmax(np.abs(r[names.index("position in line")])) == 7
    assert r[names.index("position in line"), 7] < -0.9
    assert (r[:, 5] == 0).all() and np.isfinite(r).all()


def test_correlations_are_those_of_numpy():
    rng = np.random.default_rng(0)
    values, targets = rng.normal(size=[40, 3]), rng.normal(size=[2, 40])
    expected = np.corrcoef(np.concatenate([targets, values.T]))[:2, 2:]
    np.testing.assert_allclose(unit_activations.correlate(values, targets), expected, atol=1e-12)


def test_the_beginning_of_a_reading_is_whole():
    model, vocabulary = make_model("stream", "lstm")
    trace = unit_activations.trace_text(model, vocabulary, "abcdef")
    short = unit_activations.trace_text(model, vocabulary, "abc")
    for one, other in zip(dataclasses.astuple(trace.truncate(3)), dataclasses.astuple(short), strict=True):
        if isinstance(one, np.ndarray):
            np.testing.assert_allclose(one, other, atol=1e-6)
    assert trace.truncate(3).symbols == short.symbols


def test_a_byte_has_the_features_of_its_character():
    data, count = "“é”, “ß” — \udcff\nÉ “字”\n".encode("utf-8", "surrogateescape") * 3, 3
    symbols = tuple(data.decode("latin-1"))
    values = np.random.default_rng(0).normal(size=[len(symbols), count]).astype(np.float32)
    rest = (
        np.zeros(len(symbols), np.float32),
        np.zeros([len(symbols), 1], np.int32),
        np.zeros([len(symbols), 1], np.float32),
    )
    trace = Trace(symbols, (LayerActivations(0, "h", values),), *rest, of_bytes=True)
    features, (r,) = unit_activations.correlate_with_features(trace)
    names = [feature.name for feature in features]
    assert {"inside quotes", "capital letter", "space"} <= set(names)
    characters = data.decode("utf-8", "surrogateescape")
    is_capital = np.concatenate([[c == "É"] * len(c.encode("utf-8", "surrogateescape")) for c in characters])
    np.testing.assert_allclose(r[names.index("capital letter")], np.corrcoef(is_capital, values.T)[0, 1:], atol=1e-6)
