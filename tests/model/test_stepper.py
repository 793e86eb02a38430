"""The sums of a step of a single text, split into halves, are those of any number of texts."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.cell_registry import BUILT_IN
from tfcharrnn.config import ModelConfig
from tfcharrnn.model import stepper
from tfcharrnn.model.cells import get_cell_class
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.model.stepper import make_stepper

VOCABULARY, TIME, HIDDEN = 7, 5, 6


@pytest.fixture
def splits(monkeypatch):
    """The shapes of the matrices of each split product; even small ones are split."""
    shapes, make = [], stepper._make_split_products

    def record(matrices, *arguments):
        shapes.append([tuple(matrix.shape) for matrix in matrices])
        return make(matrices, *arguments)

    monkeypatch.setattr(stepper, "_MIN_SIZE_TO_SPLIT", 1)
    monkeypatch.setattr(stepper, "_make_split_products", record)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda _: [])
    return shapes


def make_model(cell, **settings):
    model = CharRNN(ModelConfig(cell=cell, **{"hidden_size": HIDDEN, **settings}), VOCABULARY, dtype=tf.float64)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


def read(model, ids, batch_size):
    (advance, logits), state, read_logits = make_stepper(model, batch_size), model.initial_state(len(ids)), []
    for t in range(ids.shape[1]):
        state = advance(ids[:, t], state)
        read_logits.append(logits(state))
    return tf.stack(read_logits, 1)


@pytest.mark.parametrize("settings", [{}, {"embedding_size": 3, "residual": True, "layer_norm": True}])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_one_text_is_read_as_the_model_does(splits, cell, settings):
    model, cell_class = make_model(cell, num_layers=2, **settings), get_cell_class(cell)
    ids = tf.constant(np.random.default_rng(1).integers(0, VOCABULARY, (1, TIME)), tf.int32)
    np.testing.assert_allclose(read(model, ids, 1), model(ids)[0], rtol=1e-11, atol=1e-12)
    kernel, recurrent = ((HIDDEN, HIDDEN * n) for n in (cell_class.num_gates, cell_class.num_recurrent_gates))
    of_first = [[recurrent]] if cell_class.num_recurrent_gates else []
    of_second = [kernel, recurrent] if cell_class.num_recurrent_gates else [kernel]
    assert splits == of_first + ([of_second] if len(set(of_second)) == 1 else [])


@pytest.mark.parametrize(
    ("batch_size", "texts", "settings"), [(None, 1, {}), (2, 2, {}), (1, 1, {"hidden_size": 5, "cell": "rnn"})]
)
def test_other_steps_are_not_split(splits, batch_size, texts, settings):
    model = make_model(**{"cell": "gru", "num_layers": 2, **settings})
    ids = tf.constant(np.random.default_rng(1).integers(0, VOCABULARY, (texts, TIME)), tf.int32)
    np.testing.assert_allclose(read(model, ids, batch_size), model(ids)[0], rtol=1e-11, atol=1e-12)
    assert not splits


def test_small_layers_are_not_split(monkeypatch):
    monkeypatch.setattr(stepper, "_make_split_products", None)
    make_stepper(make_model("lstm", num_layers=2), 1)
