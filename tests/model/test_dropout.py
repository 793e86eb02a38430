"""Locked dropout, dropped weights and symbols: what their masks depend on, and the model that has them."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn import rng
from tfcharrnn.config import ModelConfig
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.model.backends import LIBRARY_CELLS
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.model.dropout import Dropout

TIME, BATCH, SIZE = 40, 30, 50
KEY = rng.key(3, rng.Purpose.DROPOUT, 7)
ONES = tf.ones([TIME, BATCH, SIZE], tf.float64)


def drop(rows=range(BATCH), *, key=KEY, layer=1, rate=0.3, is_locked=True):
    x = tf.ones([TIME, len(rows), SIZE], tf.float64)
    return Dropout(key, rows, BATCH, is_locked).drop_activations(x, layer, rate).numpy()


def test_a_locked_mask_is_that_of_every_step():
    mask = drop()
    np.testing.assert_array_equal(mask, np.broadcast_to(mask[:1], mask.shape))
    dropped = mask[0] == 0.0
    np.testing.assert_allclose(mask[0][~dropped], 1.0 / 0.7, rtol=1e-12)
    for share, size in ((dropped.mean(), dropped.size), *((row.mean(), SIZE) for row in dropped)):
        assert abs(share - 0.3) < 4.5 * np.sqrt(0.3 * 0.7 / size)
    assert np.any(drop(is_locked=False) != mask)


@pytest.mark.parametrize("is_locked", [True, False])
def test_a_row_has_the_same_mask_wherever_it_is_computed(is_locked):
    whole = drop(is_locked=is_locked)
    for rows in (range(0, 10), range(10, BATCH), range(29, 30)):
        np.testing.assert_array_equal(drop(rows, is_locked=is_locked), whole[:, rows.start : rows.stop])


def test_masks_differ_by_layer_and_step():
    others = [drop(layer=2), drop(layer=0), drop(key=rng.key(3, rng.Purpose.DROPOUT, 8))]
    assert all(np.any(other != drop()) for other in others)


def test_dropped_weights_and_symbols():
    dropout = Dropout(KEY, range(2), BATCH)
    kernel = dropout.drop_recurrent_kernel(tf.ones([200, 300]), 0, 0.25).numpy()
    np.testing.assert_allclose(np.unique(kernel), [0.0, 1.0 / 0.75], rtol=1e-6)
    assert abs((kernel == 0.0).mean() - 0.25) < 0.01
    np.testing.assert_array_equal(Dropout(KEY, range(9), 9).drop_recurrent_kernel(tf.ones([200, 300]), 0, 0.25), kernel)
    assert np.any(dropout.drop_recurrent_kernel(tf.ones([200, 300]), 1, 0.25).numpy() != kernel)
    embedding = dropout.drop_symbols(tf.ones([400, 3]), 0.25).numpy()
    np.testing.assert_array_equal(embedding, np.repeat(embedding[:, :1], 3, axis=1))
    assert abs((embedding == 0.0).mean() - 0.25) < 0.1


def test_without_a_key_or_a_rate_nothing_is_dropped():
    for dropout, rate in ((Dropout(None, range(2), 2), 0.5), (Dropout(KEY, range(2), 2), 0.0)):
        assert dropout.drop_activations(ONES, 1, rate) is ONES
        assert dropout.drop_recurrent_kernel(ONES[0], 0, rate) is not None
        np.testing.assert_array_equal(dropout.drop_symbols(ONES[0], rate), ONES[0])


@pytest.mark.parametrize(
    ("cell", "implementation"),
    [
        *((cell, name) for cell in LIBRARY_CELLS for name in ("custom", "keras")),
        ("lnlstm", "custom"),
        ("mlstm", "custom"),
    ],
)
def test_a_model_with_dropped_weights_is_one_whose_kernel_lacks_them(cell, implementation):
    config = ModelConfig(cell=cell, implementation=implementation, hidden_size=12, weight_drop=0.5)
    model = CharRNN(config, 7, dtype=tf.float64)
    ids = tf.constant(np.random.default_rng(0).integers(0, 7, (4, 9)), tf.int32)
    with tf.GradientTape() as tape:
        losses, _ = model.losses(ids, None, KEY)
    gradient = tape.gradient(losses, model.cells[0].recurrent_kernel)
    mask = Dropout(KEY, range(4), 4).drop_recurrent_kernel(tf.ones_like(gradient), 0, 0.5)
    plain = CharRNN(ModelConfig(cell=cell, hidden_size=12, implementation="custom"), 7, dtype=tf.float64)
    plain.cells[0].recurrent_kernel.assign(model.cells[0].recurrent_kernel * mask)
    np.testing.assert_allclose(losses, plain.losses(ids)[0], rtol=1e-10)
    assert np.all((gradient.numpy() == 0.0) == (mask.numpy() == 0.0))


@pytest.mark.parametrize("cell", ["mingru", "minlstm", "sru"])
def test_a_cell_without_recurrent_kernel_has_no_weights_to_drop(cell):
    with pytest.raises(UserError, match=rf"^--weight_drop: --cell={cell} has no recurrent kernel"):
        CharRNN(ModelConfig(cell=cell, weight_drop=0.1), 7)


@pytest.mark.parametrize("cell", ["lnlstm", "sru"])
def test_locked_dropout_drops_the_same_units_at_every_step(cell):
    """Also between layers that are normalised; a unit of the output that is dropped has no output weights to learn."""
    config = ModelConfig(
        cell=cell, hidden_size=12, num_layers=2, dropout=0.3, output_dropout=0.5, locked_dropout=True, layer_norm=True
    )
    model = CharRNN(config, 7, dtype=tf.float64)
    ids = tf.constant(np.random.default_rng(0).integers(0, 7, (1, 9)), tf.int32)
    with tf.GradientTape() as tape:
        loss = model.loss(ids, KEY)
    gradient = tape.gradient(loss, model.output_kernel).numpy()
    dropped = Dropout(KEY, range(1), 1, True).drop_activations(tf.ones([8, 1, 12], tf.float64), 2, 0.5)[0, 0] == 0.0
    assert 0 < np.sum(dropped) < 12
    np.testing.assert_array_equal(np.all(gradient == 0.0, axis=1), dropped)


@pytest.mark.parametrize("name", ["input_dropout", "embedding_dropout"])
def test_dropout_of_an_embedding_needs_one(name):
    with pytest.raises(ConfigError, match=f"--{name}: acts on the embedding"):
        ModelConfig(**{name: 0.1})


def test_input_dropout_is_that_of_the_embedded_symbols():
    model = CharRNN(ModelConfig(hidden_size=12, embedding_size=5, input_dropout=0.4), 7, dtype=tf.float64)
    ids = tf.constant(np.random.default_rng(0).integers(0, 7, (4, 9)), tf.int32)
    with tf.GradientTape() as tape:
        loss = model.loss(ids, KEY)
    assert np.all(np.isfinite(tape.gradient(loss, model.embedding)))
    assert float(loss) != float(model.loss(ids))
    assert float(loss) == float(model.loss(ids, KEY))
