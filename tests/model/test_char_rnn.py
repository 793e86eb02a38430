"""The language model against the NumPy reference; dropout, losses, the stepper, halved batches."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn import rng
from tfcharrnn.cell_registry import BUILT_IN
from tfcharrnn.config import ModelConfig
from tfcharrnn.model.backends import LIBRARY_CELLS
from tfcharrnn.model.char_rnn import CharRNN, split_batch, variable_shapes
from tfcharrnn.model.stepper import make_stepper
from tfcharrnn.verification import numpy_reference

TIME, BATCH, VOCABULARY, HIDDEN = 6, 3, 7, 5
OTHERS = [cell for cell in BUILT_IN if cell not in LIBRARY_CELLS]
BOTH = {"residual": True, "layer_norm": True}


def random_model(rng, dtype=tf.float64, **config):
    """A model whose weights are all random, biases included."""
    model = CharRNN(ModelConfig(**{"hidden_size": HIDDEN, **config}), VOCABULARY, dtype=dtype)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.0, 0.6, variable.shape))
    return model


def parameters(model):
    return {name: variable.numpy() for name, variable in numpy_reference.variables(model).items()}


def random_state(rng, model):
    return tuple(tuple(tf.constant(rng.normal(0, 0.5, t.shape)) for t in s) for s in model.initial_state(BATCH))


def random_ids(rng, time=TIME, batch=BATCH):
    return tf.constant(rng.integers(0, VOCABULARY, (batch, time)), tf.int32)


def check_against_reference(cell, implementation, layers, embedding, jit_compile, **config):
    """Checks outputs, loss, last state and all gradients; computes eagerly if `jit_compile` is None."""
    rng = np.random.default_rng(11)
    sizes = {"num_layers": layers, "embedding_size": embedding}
    model = random_model(rng, cell=cell, implementation=implementation, **sizes, **config)
    state, inputs, targets = random_state(rng, model), random_ids(rng), random_ids(rng)
    named = numpy_reference.variables(model)

    def compute(inputs, targets, state):
        with tf.GradientTape() as tape:
            tape.watch(state)
            logits, last = model(inputs, state)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits))
        gradients, d_state = tape.gradient(loss, (named, state), unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return loss, logits, last, {name: tf.convert_to_tensor(g) for name, g in gradients.items()}, d_state

    if jit_compile is not None:
        compute = tf.function(compute, jit_compile=jit_compile)
    loss, logits, last, gradients, d_state = compute(inputs, targets, state)
    arrays = [tuple(map(np.asarray, s)) for s in state]
    expected = numpy_reference.run_model(
        cell,
        parameters(model),
        inputs.numpy().T,
        targets.numpy().T,
        state=arrays,
        residual=model.config.residual,
    )
    assert float(loss) == pytest.approx(expected.loss, rel=1e-12)
    assert numpy_reference.relative_error(tf.transpose(logits, [1, 0, 2]), expected.logits) < 1e-12
    assert gradients.keys() == expected.gradients.keys()
    for name, gradient in gradients.items():
        assert numpy_reference.relative_error(gradient, expected.gradients[name]) < 1e-11, name
    for got, want in [(last, expected.state), (d_state, expected.state_gradients)]:
        for g, w in zip(tf.nest.flatten(got), tf.nest.flatten(want), strict=True):
            assert numpy_reference.relative_error(g, w) < 1e-11


@pytest.mark.parametrize("embedding", [0, 3])
@pytest.mark.parametrize("more", [False, True], ids=["plain", "learned-state-layer-norm"])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_the_shapes_are_known_without_a_model(cell, more, embedding):
    sizes = {"hidden_size": 5, "num_layers": 2, "embedding_size": embedding}
    config = ModelConfig(cell=cell, learned_initial_state=more, layer_norm=more, **sizes)
    expected = {name: tuple(variable.shape) for name, variable in CharRNN(config, 7).named_variables.items()}
    assert variable_shapes(config, 7) == expected


@pytest.mark.parametrize("embedding", [0, 3], ids=["one-hot", "embedding"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("implementation", ["custom", "keras"])
@pytest.mark.parametrize("cell", LIBRARY_CELLS)
def test_equals_the_reference(cell, implementation, layers, embedding):
    check_against_reference(cell, implementation, layers, embedding, jit_compile=False)


@pytest.mark.parametrize(("layers", "embedding"), [(1, 0), (2, 3)])
@pytest.mark.parametrize("implementation", ["custom", "keras"])
@pytest.mark.parametrize("cell", LIBRARY_CELLS)
def test_equals_the_reference_when_compiled_by_xla(cell, implementation, layers, embedding):
    check_against_reference(cell, implementation, layers, embedding, jit_compile=True)


@pytest.mark.parametrize(
    ("layers", "embedding", "config"),
    [(1, 0, {}), (1, 3, {"layer_norm": True}), (2, 3, {}), (2, 0, BOTH)],
    ids=["one", "norm", "two", "both"],
)
@pytest.mark.parametrize("cell", OTHERS)
def test_the_other_cells_equal_the_reference(cell, layers, embedding, config):
    check_against_reference(cell, "custom", layers, embedding, None, **config)


@pytest.mark.parametrize("config", [{"residual": True}, {"layer_norm": True}, BOTH], ids=["residual", "norm", "both"])
@pytest.mark.parametrize(("cell", "implementation"), [("rnn", "custom"), ("gru", "keras")])
def test_residual_connections_and_normalisation_equal_the_reference(cell, implementation, config):
    check_against_reference(cell, implementation, 3, 3, None, **config)


@pytest.mark.parametrize("cell", ["lnlstm", "minlstm"])
def test_a_whole_model_compiled_by_xla_equals_the_reference(cell):
    check_against_reference(cell, "custom", 2, 3, True, **BOTH)


def test_a_new_normalisation_has_no_gain_and_no_shift():
    model = CharRNN(ModelConfig(hidden_size=40, num_layers=2, layer_norm=True), VOCABULARY)
    for norm in model.norms:
        x = tf.constant(np.random.default_rng(0).normal(3.0, 5.0, (4, 40)), tf.float32)
        np.testing.assert_allclose(tf.reduce_mean(norm(x), -1), np.zeros(4), atol=1e-6)
        np.testing.assert_allclose(tf.math.reduce_std(norm(x), -1), np.ones(4), rtol=1e-5)


@pytest.mark.parametrize("cell", LIBRARY_CELLS)
def test_more_symbols_than_positions(cell):
    """With an embedding and a large vocabulary, embedded symbols are multiplied; the result is the same."""
    rng = np.random.default_rng(12)
    model = random_model(rng, cell=cell, embedding_size=3)
    ids = random_ids(rng, time=3, batch=2)
    assert VOCABULARY > 2 * 2
    with tf.GradientTape() as tape:
        loss = model.loss(ids)
    named = numpy_reference.variables(model)
    expected = numpy_reference.run_model(cell, parameters(model), ids.numpy().T[:-1], ids.numpy().T[1:])
    assert float(loss) == pytest.approx(expected.loss, rel=1e-12)
    for name, gradient in tape.gradient(loss, named).items():
        assert numpy_reference.relative_error(tf.convert_to_tensor(gradient), expected.gradients[name]) < 1e-11, name


@pytest.mark.parametrize("cell", BUILT_IN)
def test_losses_are_of_every_next_symbol(cell):
    rng = np.random.default_rng(13)
    model = random_model(rng, cell=cell, num_layers=2)
    ids = random_ids(rng)
    losses, last = model.losses(ids)
    time_major = ids.numpy().T
    expected = numpy_reference.run_model(cell, parameters(model), time_major[:-1], time_major[1:])
    np.testing.assert_allclose(
        losses, numpy_reference.cross_entropy(expected.logits, time_major[1:])[0].T, rtol=1e-11, atol=1e-13
    )
    assert losses.shape == (BATCH, TIME - 1)
    for got, want in zip(tf.nest.flatten(last), tf.nest.flatten(expected.state), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)
    assert float(model.loss(ids)) == pytest.approx(expected.loss, rel=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float32, 1e-5), (tf.float64, 1e-12)])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_two_pieces_with_the_carried_state_are_one_text(cell, dtype, tolerance):
    rng = np.random.default_rng(14)
    model = random_model(rng, dtype, cell=cell, num_layers=2)
    ids = random_ids(rng)
    whole, last = model(ids)
    first, carried = model(ids[:, :2])
    second, last_of_second = model(ids[:, 2:], carried)
    np.testing.assert_allclose(tf.concat([first, second], 1), whole, rtol=tolerance, atol=tolerance)
    for got, expected in zip(tf.nest.flatten(last_of_second), tf.nest.flatten(last), strict=True):
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    assert not np.allclose(model(ids[:, 2:])[0], second)


@pytest.mark.parametrize(("embedding", "config"), [(0, {}), (3, {}), (3, BOTH)], ids=["one-hot", "embedding", "both"])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_stepper_reads_as_the_model_does(cell, embedding, config):
    rng = np.random.default_rng(15)
    model = random_model(rng, cell=cell, num_layers=2, embedding_size=embedding, **config)
    ids, state = random_ids(rng), random_state(rng, model)
    expected, expected_last = model(ids, state)
    advance, logits = make_stepper(model)
    for t in range(TIME):
        state = advance(ids[:, t], state)
        np.testing.assert_allclose(logits(state), expected[:, t], rtol=1e-11, atol=1e-12)
    for got, want in zip(tf.nest.flatten(state), tf.nest.flatten(expected_last), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


def test_shapes_and_number_of_parameters():
    model = CharRNN(ModelConfig(cell="gru", hidden_size=5, num_layers=2, embedding_size=3), VOCABULARY)
    assert model.embedding.shape == (7, 3)
    assert [cell.kernel.shape.as_list() for cell in model.cells] == [[3, 15], [5, 15]]
    assert model.output_kernel.shape == (5, 7) and model.output_bias.shape == (7,)
    assert model.num_parameters == 7 * 3 + (3 + 5 + 2) * 15 + (5 + 5 + 2) * 15 + 5 * 7 + 7
    one_hot = CharRNN(ModelConfig(cell="lstm", hidden_size=5), VOCABULARY)
    assert one_hot.embedding is None and one_hot.cells[0].kernel.shape == (7, 20)
    assert set(map(id, numpy_reference.variables(model).values())) == set(map(id, model.trainable_variables))


def test_a_new_model_predicts_nearly_uniformly():
    rng = np.random.default_rng(16)
    model = CharRNN(ModelConfig(cell="lstm", hidden_size=32), VOCABULARY)
    assert float(model.loss(random_ids(rng, 40, 16))) == pytest.approx(np.log(VOCABULARY), abs=0.15)


def test_importing_the_model_imports_little_else():
    """At most 15 modules of the package, none of which prepares, reads or trains on data."""
    code = "import sys, tfcharrnn.model; print(*(name for name in sys.modules if name.split('.')[0] == 'tfcharrnn'))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "tfcharrnn.model.char_rnn" in names and len(names) <= 15
    floors = {name.split(".")[1] for name in names if "." in name}
    assert floors <= {"model", "cell_registry", "errors", "layouts", "rng"}


def test_split_batch_pairs_each_symbol_with_the_next():
    inputs, targets = split_batch(tf.constant([[0, 1, 2], [0, 3, 4]]))
    assert inputs.numpy().tolist() == [[0, 1], [0, 3]]
    assert targets.numpy().tolist() == [[1, 2], [3, 4]]


# Dropout


def dropout_key(step):
    return rng.key(3, rng.Purpose.DROPOUT, step)


def watch_layers(model, ids, key, state=None):
    """Returns the logits, and the inputs and outputs of every layer as the backend sees them."""
    seen, backend = [], model.backend

    def watched(cell, inputs, *rest):
        result = backend.run_layer(cell, inputs, *rest)
        seen.append((inputs, result[0]))
        return result

    model.backend = dataclasses.replace(backend, run_layer=watched)
    try:
        logits, _ = model(ids, state, key)
    finally:
        model.backend = backend
    return logits, seen


def factors(model, ids, key):
    """Returns the factors that dropout applied between each two layers, `[time, batch, hidden]`."""
    _, seen = watch_layers(model, ids, key)
    return [after[0].numpy() / before[1].numpy() for before, after in itertools.pairwise(seen)]


@pytest.mark.parametrize(
    ("cell", "implementation"), [(cell, "custom") for cell in BUILT_IN] + [(cell, "keras") for cell in LIBRARY_CELLS]
)
def test_dropout_equals_the_reference_with_the_same_mask(cell, implementation):
    rng = np.random.default_rng(17)
    model = random_model(rng, cell=cell, implementation=implementation, num_layers=3, dropout=0.4)
    ids, key = random_ids(rng), dropout_key(5)
    time_major = ids.numpy().T
    masks = factors(model, ids[:, :-1], key)
    with tf.GradientTape() as tape:
        loss = model.loss(ids, key)
    expected = numpy_reference.run_model(cell, parameters(model), time_major[:-1], time_major[1:], dropout=masks)
    assert float(loss) == pytest.approx(expected.loss, rel=1e-12)
    for name, gradient in tape.gradient(loss, numpy_reference.variables(model)).items():
        assert numpy_reference.relative_error(tf.convert_to_tensor(gradient), expected.gradients[name]) < 1e-11, name


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    rng = np.random.default_rng(18)
    model = random_model(rng, num_layers=2, hidden_size=50, dropout=0.3)
    (mask,) = factors(model, random_ids(rng, 20, 20), dropout_key(0))
    dropped = mask == 0.0
    np.testing.assert_allclose(mask[~dropped], 1.0 / 0.7, rtol=1e-12)
    assert abs(dropped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / dropped.size)
    # independent over time, texts and units: the share of each varies as it should and no more
    for axes in [(0, 1), (0, 2), (1, 2)]:
        shares = dropped.mean(axes)
        assert np.abs(shares - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / (dropped.size / len(shares)))


def test_dropout_follows_its_key():
    rng = np.random.default_rng(19)
    model, ids = random_model(rng, num_layers=3, dropout=0.5), random_ids(rng)
    first, second = factors(model, ids, dropout_key(1))
    np.testing.assert_array_equal(first, factors(model, ids, dropout_key(1))[0])
    assert np.any(first != factors(model, ids, dropout_key(2))[0])
    assert np.any(first != second)


def test_dropout_is_applied_between_layers_only():
    """Not before the first, and not after the last."""
    rng = np.random.default_rng(20)
    ids, key = random_ids(rng), dropout_key(0)
    single = random_model(rng, num_layers=1, dropout=0.5)
    np.testing.assert_array_equal(single(ids, None, key)[0], single(ids)[0])
    model = random_model(rng, num_layers=2, dropout=0.5)
    logits, seen = watch_layers(model, ids, key)
    output = tf.transpose(seen[-1][1], [1, 0, 2])
    np.testing.assert_allclose(logits, output @ model.output_kernel + model.output_bias, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(seen[0][1], watch_layers(model, ids, None)[1][0][1])


def test_without_a_key_there_is_no_dropout():
    rng = np.random.default_rng(21)
    model, ids = random_model(rng, num_layers=2, dropout=0.5), random_ids(rng)
    assert all(np.all(mask == 1.0) for mask in factors(model, ids, None))
    assert np.any(model(ids, None, dropout_key(0))[0] != model(ids)[0])


# Halves of a batch


@pytest.mark.parametrize(("cell", "batch"), [(cell, 7) for cell in BUILT_IN] + [("gru", 6)])
def test_two_halves_of_a_batch_are_the_whole(cell, batch, monkeypatch):
    """Losses, gradients and what dropout drops do not depend on whether a batch is divided."""
    config = ModelConfig(cell=cell, hidden_size=5, num_layers=2, dropout=0.3, implementation="custom", **BOTH)
    model = CharRNN(config, VOCABULARY, dtype=tf.float64)
    assert model.backend.halves_batch
    ids = random_ids(np.random.default_rng(0), 9, batch)

    def losses_and_gradients(smallest):
        monkeypatch.setattr("tfcharrnn.model.char_rnn._MIN_BATCH_TO_HALVE", smallest)
        with tf.GradientTape() as tape:
            losses, state = model.losses(ids, None, dropout_key(1))
        return [
            losses,
            *tf.nest.flatten(state),
            *map(tf.convert_to_tensor, tape.gradient(losses, model.trainable_variables)),
        ]

    for half, whole in zip(losses_and_gradients(2), losses_and_gradients(100), strict=True):
        np.testing.assert_allclose(half, whole, rtol=1e-10, atol=1e-13)


# A learned initial state


@pytest.mark.parametrize("cell", BUILT_IN)
def test_a_learned_initial_state_starts_at_zero_and_is_learned(cell):
    config = ModelConfig(cell=cell, hidden_size=5, num_layers=2, learned_initial_state=True)
    model, plain = (
        CharRNN(config, VOCABULARY),
        CharRNN(dataclasses.replace(config, learned_initial_state=False), VOCABULARY),
    )
    ids = random_ids(np.random.default_rng(0), 9, 4)
    np.testing.assert_array_equal(model.losses(ids)[0], plain.losses(ids)[0])
    firsts = [first for state in model.initial_states for first in state]
    assert len(firsts) == 2 * model.cells[0].num_state_tensors
    assert model.num_parameters == plain.num_parameters + 5 * len(firsts)
    rng = np.random.default_rng(1)
    for first in firsts:
        first.assign(rng.normal(size=first.shape))
    given = tuple(tuple(tf.tile(first[tf.newaxis], [4, 1]) for first in state) for state in model.initial_states)
    np.testing.assert_allclose(model(ids)[0], plain(ids, given)[0], rtol=1e-6)
    with tf.GradientTape() as tape:
        loss = model.loss(ids)
    for first, gradient in zip(firsts, tape.gradient(loss, firsts), strict=True):
        is_unread = cell == "sru" and any(first is state[0] for state in model.initial_states)  # it reads c alone
        assert np.any(gradient) != is_unread
