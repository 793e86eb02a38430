"""A layer over a sequence: the hand-written backward pass, the tape and the reference agree."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.cell_registry import BUILT_IN
from tfcharrnn.config import ModelConfig
from tfcharrnn.model import backends, input_projection, linear_recurrence, recurrence
from tfcharrnn.model.backends import LIBRARY_CELLS
from tfcharrnn.model.cells import get_cell_class
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.model.input_projection import SymbolInput
from tfcharrnn.verification import numpy_reference

TIME, BATCH, INPUT, HIDDEN = 6, 3, 4, 5


def run_layer_by_tape(cell, x, state, mask=None):
    """`recurrence.run_layer` one step at a time, differentiated by the tape."""
    projected, outputs = input_projection.project_inputs(cell, x).source, []
    for t in range(len(projected)):
        after = cell.step(projected[t], cell.recur(state[0]), state)
        if mask is not None:
            after = tuple(tf.where(mask[t][:, tf.newaxis], new, old) for new, old in zip(after, state, strict=True))
        state = after
        outputs.append(state[0])
    return tf.stack(outputs), state


def run_layer(cell, x, state, mask=None):
    """The layer as a model runs it."""
    return backends.run_custom(cell, x, state, None, mask)


RUNS = {"custom": recurrence.run_layer, "tape": run_layer_by_tape, "at once": linear_recurrence.run_linear_layer}


def random_cell(rng, name, input_size=INPUT, dtype=tf.float64):
    cell = get_cell_class(name)(input_size, HIDDEN, rng, dtype)
    for variable in cell.trainable_variables:
        variable.assign(rng.normal(0.0, 0.6, variable.shape))
    return cell


def random_state(rng, cell):
    return tuple(
        tf.constant(rng.normal(0.0, 0.5, (BATCH, HIDDEN)), cell.kernel.dtype) for _ in range(cell.num_state_tensors)
    )


def random_mask(rng):
    """Skips random steps; all steps of the second text and none of the third."""
    mask = rng.random((TIME, BATCH)) < 0.5
    mask[:, 1], mask[:, 2] = False, True
    return mask


def run_and_differentiate(run, cell, x, state, mask, d_outputs, d_last, jit_compile):
    """Outputs, last state and the gradients of sum(d_outputs * outputs) + sum(d_last * last) in one flat list.

    With `jit_compile` None they are computed eagerly.
    """

    def call(x, state, d_outputs, d_last):
        watched = (x, *state, *cell.named_variables.values())
        with tf.GradientTape() as tape:
            tape.watch((x, state))
            outputs, last = run(cell, x, state, mask=mask)
            loss = tf.reduce_sum(outputs * d_outputs)
            for tensor, d in zip(last, d_last, strict=True):
                loss += tf.reduce_sum(tensor * d)
        return [outputs, *last, *tape.gradient(loss, watched, unconnected_gradients=tf.UnconnectedGradients.ZERO)]

    if jit_compile is not None:
        call = tf.function(call, jit_compile=jit_compile)
    return [np.asarray(tensor) for tensor in call(x, state, d_outputs, d_last)]


def run_reference(name, cell, x, state, mask, d_outputs, d_last):
    """What `run_and_differentiate` returns, by the reference."""
    weights = {key: variable.numpy().astype(np.float64) for key, variable in cell.named_variables.items()}
    outputs, last, caches = numpy_reference.layer_forward(name, x, state, weights, mask)
    d_x, d_state, gradients = numpy_reference.layer_backward(name, d_outputs, d_last, caches, weights, mask)
    return [outputs, *last, d_x, *d_state, *(gradients[key] for key in weights)]


OTHERS = [name for name in BUILT_IN if name not in LIBRARY_CELLS]
CASES = [
    (name, run, masked, jit)
    for name in LIBRARY_CELLS
    for run in ("custom", "tape")
    for masked in ("whole", "masked")
    for jit in (False, True)
]
# compiling takes long, so the others are compiled once each
RUNS_OF_OTHERS = [(name, run) for name in OTHERS for run in ("custom", "tape")]
RUNS_OF_OTHERS += [(name, "at once") for name in ("mingru", "minlstm", "sru")]
CASES += [(name, run, masked, None) for name, run in RUNS_OF_OTHERS for masked in ("whole", "masked")]
COMPILED = [("lnlstm", "custom"), ("mlstm", "custom"), ("mingru", "custom"), ("sru", "at once")]
CASES += [(name, run, "masked", True) for name, run in COMPILED]


@pytest.mark.parametrize(
    ("name", "run", "masked", "jit_compile"),
    CASES,
    ids=lambda v: {None: "eager", False: "graph", True: "xla"}.get(v, v),
)
def test_equals_the_reference(name, run, masked, jit_compile):
    """All gradients, of a loss that depends on the outputs and the last state."""
    rng = np.random.default_rng(5)
    cell = random_cell(rng, name)
    x, state = rng.normal(size=(TIME, BATCH, INPUT)), random_state(rng, cell)
    mask = random_mask(rng) if masked == "masked" else None
    d_outputs = rng.normal(size=(TIME, BATCH, HIDDEN))
    d_last = tuple(rng.normal(size=(BATCH, HIDDEN)) for _ in state)
    expected = run_reference(name, cell, x, tuple(map(np.asarray, state)), mask, d_outputs, d_last)
    tensors = (tf.constant(x), state, None if mask is None else tf.constant(mask))
    got = run_and_differentiate(
        RUNS[run], cell, *tensors, tf.constant(d_outputs), tuple(map(tf.constant, d_last)), jit_compile
    )
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == np.float64
        assert numpy_reference.relative_error(g, e) < 1e-12


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("name", BUILT_IN)
def test_two_pieces_are_one_sequence(name, dtype):
    """Outputs, and gradients that flow back from the second piece into the first through the carried state."""
    rng = np.random.default_rng(2)
    cell = random_cell(rng, name, dtype=dtype)
    x = tf.constant(rng.normal(size=(TIME, BATCH, INPUT)), dtype)
    state, cut = random_state(rng, cell), 2

    def gradients(run):
        with tf.GradientTape() as tape:
            tape.watch((x, state))
            outputs, last = run()
            loss = tf.reduce_sum(outputs[-1] ** 2) + tf.reduce_sum(last[-1])
        sources = (x, *state, *cell.named_variables.values())
        return [outputs, *last, *tape.gradient(loss, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)]

    def whole():
        return run_layer(cell, x, state)

    def pieces():
        first, carried = run_layer(cell, x[:cut], state)
        second, last = run_layer(cell, x[cut:], carried)
        return tf.concat([first, second], 0), last

    tolerance = 1e-5 if dtype == tf.float32 else 1e-12
    for g, e in zip(gradients(pieces), gradients(whole), strict=True):
        np.testing.assert_allclose(g, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_initial_state_has_a_gradient(name):
    rng = np.random.default_rng(4)
    cell = random_cell(rng, name)
    x, state = tf.constant(rng.normal(size=(TIME, BATCH, INPUT))), random_state(rng, cell)
    with tf.GradientTape() as tape:
        tape.watch(state)
        outputs, _ = run_layer(cell, x, state)
    gradients = tape.gradient(outputs[-1], state)
    if name == "sru":  # does not read its output
        assert not np.any(gradients[0])
        gradients = gradients[1:]
    for gradient in gradients:
        assert np.all(gradient != 0.0)


@pytest.mark.parametrize("unroll", [2, 5, 8])
@pytest.mark.parametrize("name", ["lstm", "mlstm"])
def test_several_steps_a_turn_are_the_same_steps(name, unroll):
    """With a last turn that is not full, or no full turn at all; outputs, last state and every gradient."""
    rng = np.random.default_rng(6)
    cell = random_cell(rng, name)
    x, state = tf.constant(rng.normal(size=(7, BATCH, INPUT))), random_state(rng, cell)
    mask = tf.constant(rng.random((7, BATCH)) < 0.7)

    @tf.function
    def run_and_differentiate(unroll):
        with tf.GradientTape() as tape:
            tape.watch([x, *state])
            outputs, last = recurrence.run_layer(cell, x, state, None, mask, unroll)
            total = tf.reduce_sum(outputs**2) + tf.reduce_sum(last[-1])
        return outputs, last, tape.gradient(total, [x, *state, *cell.trainable_variables])

    got, expected = (tf.nest.flatten(run_and_differentiate(number)) for number in (unroll, 1))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


def test_the_loop_has_fewer_turns(monkeypatch):
    turns = []
    loop = tf.while_loop
    monkeypatch.setattr(tf, "while_loop", lambda *a, maximum_iterations: turns.append(maximum_iterations) or loop(*a))
    model = CharRNN(ModelConfig(cell="gru", hidden_size=3, unroll=4), 7)
    with tf.GradientTape() as tape:
        loss = model.loss(tf.ones([2, 11], tf.int32))
    tape.gradient(loss, model.trainable_variables)
    assert turns == [2, 2]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_sequence_of_one_step(name):
    rng = np.random.default_rng(6)
    cell = random_cell(rng, name)
    x, state = tf.constant(rng.normal(size=(1, BATCH, INPUT))), random_state(rng, cell)
    outputs, last = run_layer(cell, x, state)
    projected = input_projection.project_inputs(cell, x).source
    for got, expected in zip(last, cell.step(projected[0], cell.recur(state[0]), state), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-14)
    np.testing.assert_array_equal(outputs[0], last[0])


@pytest.mark.parametrize("name", [*LIBRARY_CELLS, "lnlstm", "sru"])
def test_rounding_errors_stay_small_over_a_long_sequence(name):
    """In float32 over 1000 steps, with the weights a model starts with, it stays near the reference in float64."""
    rng = np.random.default_rng(8)
    cell = get_cell_class(name)(INPUT, HIDDEN, rng)
    x, zeros = rng.normal(size=(1000, BATCH, INPUT)), (np.zeros((BATCH, HIDDEN)),) * cell.num_state_tensors
    d_outputs = rng.normal(size=(1000, BATCH, HIDDEN))
    expected = run_reference(name, cell, x, zeros, None, d_outputs, zeros)
    x, zeros, d_outputs = (
        tf.nest.map_structure(lambda a: tf.constant(a, tf.float32), v) for v in (x, zeros, d_outputs)
    )
    got = run_and_differentiate(run_layer, cell, x, zeros, None, d_outputs, zeros, jit_compile=False)
    for g, e in zip(got, expected, strict=True):
        # normalisation divides by small deviations, which enlarges rounding errors
        assert numpy_reference.relative_error(g, e) < (1e-4 if name == "lnlstm" else 1e-5)


# The products that enter a layer


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("limit", [0, 10**6], ids=["scattered", "one-hot"])
def test_lookup_is_a_product_with_one_hot_vectors(monkeypatch, limit, jit_compile):
    """Both forms of the gradient are correct for symbols that occur twice or never."""
    monkeypatch.setattr(input_projection, "_MAX_ONE_HOT", limit)
    rng = np.random.default_rng(0)
    table, d_rows = tf.constant(rng.normal(size=(7, 4))), tf.constant(rng.normal(size=(5, 3, 4)))
    ids = tf.constant(rng.integers(0, 6, (5, 3)), tf.int32)
    one_hot = np.eye(7)[ids.numpy()]

    @tf.function(jit_compile=jit_compile)
    def rows_and_gradient(table, ids, d_rows):
        with tf.GradientTape() as tape:
            tape.watch(table)
            rows = input_projection.gather_rows(table, ids)
        return rows, tape.gradient(rows, table, output_gradients=d_rows)

    rows, gradient = rows_and_gradient(table, ids, d_rows)
    np.testing.assert_array_equal(rows, one_hot @ table.numpy())
    np.testing.assert_allclose(gradient, np.einsum("tbs,tbc->sc", one_hot, d_rows), rtol=1e-12, atol=1e-14)
    assert not np.any(gradient[6])


@pytest.mark.parametrize("embedding_size", [0, 3])
@pytest.mark.parametrize("size", [7, 40], ids=["fewer-symbols-than-positions", "more-symbols-than-positions"])
@pytest.mark.parametrize("name", [*LIBRARY_CELLS, "lnlstm"])
def test_symbols_are_projected_as_their_vectors(name, size, embedding_size):
    """With an embedding, one of the sizes looks up rows of E W, the other multiplies rows of E."""
    rng = np.random.default_rng(1)
    cell = random_cell(rng, name, embedding_size or size)
    embedding = tf.Variable(rng.normal(size=(size, embedding_size))) if embedding_size else None
    ids = tf.constant(rng.integers(0, size, (TIME, BATCH)), tf.int32)
    d_projected = tf.constant(rng.normal(size=(TIME, BATCH, cell.kernel.shape[1])))
    variables = [v for v in (cell.kernel, cell.bias, embedding) if v is not None]

    def values(dense):
        with tf.GradientTape() as tape:
            symbols = SymbolInput(ids, size, None if embedding is None else tf.convert_to_tensor(embedding))
            inputs = symbols.to_vectors(tf.float64) if dense else symbols
            projected, row_ids = input_projection.project_inputs(cell, inputs)
            if row_ids is not None:
                projected = input_projection.gather_rows(projected, row_ids)
        gradients = tape.gradient(projected, variables, output_gradients=d_projected)
        return [projected, *map(tf.convert_to_tensor, gradients)]

    for got, expected in zip(values(dense=False), values(dense=True), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_projection_has_the_bias_of_the_input_alone():
    rng = np.random.default_rng(9)
    cell = random_cell(rng, "gru")
    projected = input_projection.project_inputs(cell, tf.zeros([TIME, BATCH, INPUT], tf.float64)).source
    np.testing.assert_array_equal(projected[0, 0], cell.bias[0])
