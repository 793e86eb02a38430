"""The model on padding, carried states, windows and `--zero_start`."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.cell_registry import BUILT_IN
from tfcharrnn.config import ModelConfig
from tfcharrnn.errors import ConfigError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.backends import LIBRARY_CELLS
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.model.stepper import make_stepper
from tfcharrnn.verification import numpy_reference

VOCABULARY, HIDDEN = 8, 5
BACKENDS = [(cell, name) for cell in LIBRARY_CELLS for name in ("custom", "keras")]
BACKENDS += [(cell, "custom") for cell in BUILT_IN if cell not in LIBRARY_CELLS]


def make_model(layout, dtype=tf.float64, seed=0, **config):
    """A model whose weights are all random, biases included."""
    config = ModelConfig(**{"hidden_size": HIDDEN, **config})
    model, rng = CharRNN(config, VOCABULARY, dtype=dtype, layout=LAYOUTS[layout]), np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.0, 0.6, variable.shape))
    return model


def lines(lengths, width):
    """Lines as a batch: <S> (1), characters, </S> (2) and padding (0)."""
    rng, ids = np.random.default_rng(1), np.zeros((len(lengths), width), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = [1, *rng.integers(3, VOCABULARY, length - 2), 2]
    return tf.constant(ids)


def loss_and_gradients(model, ids):
    with tf.GradientTape() as tape:
        loss = model.loss(ids)
    gradients = tape.gradient(loss, numpy_reference.variables(model))
    return float(loss), {name: tf.convert_to_tensor(gradient).numpy() for name, gradient in gradients.items()}


# Padding


@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float32, 1e-6), (tf.float64, 1e-12)])
@pytest.mark.parametrize(("cell", "implementation"), BACKENDS)
def test_padding_changes_neither_loss_nor_gradients(cell, implementation, dtype, tolerance):
    model = make_model("lines", dtype, cell=cell, implementation=implementation, num_layers=2)
    ids, padded = lines([9, 4, 3, 7], 9), lines([9, 4, 3, 7], 18)
    (loss, gradients), (padded_loss, padded_gradients) = (loss_and_gradients(model, batch) for batch in (ids, padded))
    assert padded_loss == pytest.approx(loss, rel=tolerance)
    assert float(model.count_targets(padded)) == float(model.count_targets(ids)) == 8 + 3 + 2 + 6
    for name, gradient in gradients.items():
        assert numpy_reference.relative_error(padded_gradients[name], gradient) < tolerance, name
        assert np.any(gradient), name


@pytest.mark.parametrize(("cell", "implementation"), [*BACKENDS[:6], ("mlstm", "custom"), ("sru", "custom")])
def test_the_state_carried_from_a_padded_line_is_that_after_its_last_character(cell, implementation):
    lengths = [9, 4, 3, 7] * 4  # enough rows for two halves
    model = make_model("lines", cell=cell, implementation=implementation, num_layers=2)
    ids, rng = lines(lengths, 12), np.random.default_rng(3)
    before = tf.nest.map_structure(lambda s: tf.constant(rng.normal(size=s.shape)), model.initial_state(len(lengths)))
    weights = tf.nest.map_structure(lambda s: tf.constant(rng.normal(size=s.shape)), before)

    def differentiate(ids, before, weights):
        """Returns the state after, and the gradient of a function of it and the losses."""
        with tf.GradientTape() as tape:
            tape.watch(before)
            losses, after = model.losses(ids, before)
            parts = tf.nest.map_structure(lambda s, w: tf.reduce_sum(s * w), after, weights)
            loss = tf.reduce_sum(losses) + tf.add_n(tf.nest.flatten(parts))
        return tf.nest.flatten(after), tf.nest.flatten(tape.gradient(loss, before))

    after, gradients = differentiate(ids, before, weights)
    for row, length in enumerate(lengths):
        alone = [tf.nest.map_structure(lambda s, row=row: s[row : row + 1], states) for states in (before, weights)]
        want_after, want_gradients = differentiate(ids[row : row + 1, :length], *alone)
        for array, want in zip([*after, *gradients], [*want_after, *want_gradients], strict=True):
            np.testing.assert_allclose(array[row : row + 1], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", BUILT_IN)
def test_the_loss_of_lines_is_that_of_the_reference(cell):
    """The mean over all characters and ends of the lines, each computed alone."""
    model = make_model("lines", cell=cell, num_layers=2, embedding_size=3)
    lengths, ids = [9, 4, 3, 7], lines([9, 4, 3, 7], 12).numpy()
    parameters = {name: variable.numpy() for name, variable in numpy_reference.variables(model).items()}
    expected = np.zeros((4, 11))
    for row, length in enumerate(lengths):
        line = ids[row : row + 1, :length].T
        logits = numpy_reference.run_model(cell, parameters, line[:-1], line[1:]).logits
        expected[row, : length - 1] = numpy_reference.cross_entropy(logits, line[1:])[0][:, 0]
    np.testing.assert_allclose(model.losses(tf.constant(ids))[0], expected, rtol=1e-11, atol=1e-13)
    assert float(model.loss(tf.constant(ids))) == pytest.approx(expected.sum() / (23 - 4), rel=1e-12)


def test_windows_have_a_loss_of_their_last_character_only():
    windows, plain = (make_model(layout, cell="lstm", num_layers=2) for layout in ("windows", "stream"))
    ids = tf.constant(np.random.default_rng(2).integers(0, VOCABULARY, (20, 7)), tf.int32)
    losses, state = windows.losses(ids)
    all_losses, expected_state = plain.losses(ids)
    np.testing.assert_allclose(losses, all_losses[:, -1:], rtol=1e-12)
    for got, want in zip(tf.nest.flatten(state), tf.nest.flatten(expected_state), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)
    assert float(windows.count_targets(ids)) == 20.0 and float(plain.count_targets(ids)) == 120.0
    assert float(windows.loss(ids)) == pytest.approx(float(tf.reduce_mean(losses)), rel=1e-12)


# A stream in pieces


@pytest.mark.parametrize(("layers", "embedding"), [(1, 3), (2, 0)])
@pytest.mark.parametrize(("cell", "implementation"), BACKENDS)
def test_uneven_pieces_with_the_carried_state_are_the_whole_stream(cell, implementation, layers, embedding):
    sizes = {"num_layers": layers, "embedding_size": embedding}
    model = make_model("stream", tf.float32, cell=cell, implementation=implementation, **sizes)
    ids = tf.constant(np.random.default_rng(3).integers(0, VOCABULARY, (3, 25)), tf.int32)
    whole, last = model(ids[:, :-1])
    losses, _ = model.losses(ids)
    state, logits, parts = None, [], []
    for start, end in [(0, 1), (1, 6), (6, 8), (8, 24)]:
        piece, after = model(ids[:, start:end], state)
        part, state = model.losses(ids[:, start : end + 1], state)
        logits.append(piece)
        parts.append(part)
        for got, want in zip(tf.nest.flatten(state), tf.nest.flatten(after), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(tf.concat(logits, 1), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tf.concat(parts, 1), losses, rtol=1e-5, atol=1e-5)
    for got, want in zip(tf.nest.flatten(state), tf.nest.flatten(last), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert not np.allclose(model(ids[:, 8:24])[0], logits[-1], atol=1e-3), "the state matters"


# <S> as a vector of zeros


@pytest.mark.parametrize("layout", ["sequences", "lines"])
@pytest.mark.parametrize("embedding", [0, 3], ids=["one-hot", "embedding"])
@pytest.mark.parametrize("implementation", ["custom", "keras"])
@pytest.mark.parametrize("cell", LIBRARY_CELLS)
def test_zero_start_is_a_row_of_zeros(cell, implementation, embedding, layout):
    """The row of <S> is ignored, acts as zeros, and gets no gradient."""
    sizes = {"num_layers": 2, "embedding_size": embedding}
    model = make_model(layout, cell=cell, implementation=implementation, zero_start=True, **sizes)
    plain = make_model(layout, cell=cell, implementation=implementation, **sizes)
    start = LAYOUTS[layout].start_id
    row_of = lambda m: m.embedding if embedding else m.cells[0].kernel  # noqa: E731
    row_of(plain).assign(
        tf.tensor_scatter_nd_update(row_of(plain), [[start]], [tf.zeros(row_of(plain).shape[1:], tf.float64)])
    )
    for size, ids in [("long", lines([9, 4, 3, 7], 9)), ("short", lines([3, 4], 4))]:
        if layout == "sequences":
            ids = tf.where(ids == 1, 0, tf.maximum(ids, 1))
        (loss, gradients), (plain_loss, plain_gradients) = (loss_and_gradients(m, ids) for m in (model, plain))
        assert loss == pytest.approx(plain_loss, rel=1e-12), size
        name = "embedding" if embedding else "cells/0/kernel"
        assert not np.any(gradients[name][start])
        assert np.any(plain_gradients[name][start])
        plain_gradients[name][start] = 0.0
        for name, gradient in gradients.items():
            assert numpy_reference.relative_error(gradient, plain_gradients[name]) < 1e-11, (size, name)

    advance, logits = make_stepper(model)
    ids = tf.constant([[start, 3, 4], [start, 5, 3]])
    state = model.initial_state(2)
    for t in range(3):
        state = advance(ids[:, t], state)
        np.testing.assert_allclose(logits(state), plain(ids[:, : t + 1])[0][:, -1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layout", ["stream", "windows"])
def test_zero_start_needs_a_start(layout):
    with pytest.raises(ConfigError, match=rf"^--zero_start .*--layout={layout} does not have$"):
        CharRNN(ModelConfig(zero_start=True), VOCABULARY, layout=LAYOUTS[layout])


def test_the_zero_id_of_a_stepper_is_a_vector_of_zeros():
    model = make_model("windows", cell="gru", embedding_size=3)
    advance, _ = make_stepper(model)
    without = make_model("windows", cell="gru", embedding_size=3)
    without.embedding.assign(tf.zeros_like(without.embedding))
    got = advance(tf.fill([2], VOCABULARY), model.initial_state(2))
    expected = make_stepper(without)[0](tf.fill([2], 0), without.initial_state(2))
    np.testing.assert_allclose(got[0][0], expected[0][0], rtol=1e-12)


# Initial weights


@pytest.mark.parametrize(
    ("initializer", "scale"), [("normal", 0.01), ("normal", 0.5), ("uniform", 0.01), ("uniform", 0.4)]
)
def test_initial_weights_follow_the_initializer(initializer, scale):
    config = ModelConfig(cell="lstm", hidden_size=60, num_layers=2, embedding_size=40, initializer=initializer)
    model = CharRNN(dataclasses.replace(config, initializer_scale=scale), 50)
    matrices = [model.embedding, model.output_kernel]
    for cell in model.cells:
        matrices += [cell.kernel, cell.recurrent_kernel]
        np.testing.assert_array_equal(cell.bias, np.repeat([0.0, 1.0, 0.0, 0.0], 60))
    np.testing.assert_array_equal(model.output_bias, np.zeros(50))
    mean, deviation = (0.0, scale) if initializer == "normal" else (scale / 2, scale / np.sqrt(12))
    for matrix in matrices:
        values = matrix.numpy()
        assert abs(values.mean() - mean) < 5 * deviation / np.sqrt(values.size)
        assert values.std() == pytest.approx(deviation, rel=0.1)
        if initializer == "uniform":
            assert 0.0 <= values.min() < 0.02 * scale and 0.98 * scale < values.max() <= scale
        else:
            assert values.min() < -2.5 * scale and values.max() > 2.5 * scale
    assert len({matrix.numpy().ravel()[0] for matrix in matrices}) == len(matrices)
