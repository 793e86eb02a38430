"""The output layer that shares its weights with the embedding."""

import numpy as np
import pytest
import tensorflow as tf

from tfcharrnn.config import ModelConfig
from tfcharrnn.errors import ConfigError
from tfcharrnn.model.char_rnn import CharRNN, variable_shapes
from tfcharrnn.model.stepper import make_stepper

VOCABULARY, HIDDEN = 7, 5


def make(tie_embedding):
    config = ModelConfig(cell="gru", hidden_size=HIDDEN, embedding_size=HIDDEN, tie_embedding=tie_embedding)
    return CharRNN(config, VOCABULARY, dtype=tf.float64)


def test_a_tied_model_is_the_untied_one_with_equal_weights_and_the_sum_of_both_gradients():
    tied, untied = make(True), make(False)
    generator = np.random.default_rng(0)
    for name, variable in tied.named_variables.items():
        variable.assign(generator.normal(0.0, 0.5, variable.shape))
        untied.named_variables[name].assign(variable)
    untied.output_kernel.assign(tf.transpose(tied.embedding))
    ids = tf.constant(generator.integers(0, VOCABULARY, (3, 6)), tf.int32)
    gradients = {}
    for model in (tied, untied):
        with tf.GradientTape() as tape:
            loss = model.loss(ids)
        gradients[model] = tape.gradient(loss, model.named_variables)
        np.testing.assert_allclose(loss, untied.loss(ids), rtol=1e-14)
    both = tf.convert_to_tensor(gradients[untied]["embedding"]) + tf.transpose(gradients[untied]["output_kernel"])
    np.testing.assert_allclose(tf.convert_to_tensor(gradients[tied]["embedding"]), both, rtol=1e-12)


def test_a_tied_model_has_one_matrix_less_and_begins_with_a_nearly_uniform_guess():
    model = make(True)
    assert "output_kernel" not in model.named_variables and len(model.trainable_variables) == 5
    shapes = {name: tuple(variable.shape) for name, variable in model.named_variables.items()}
    assert shapes == variable_shapes(model.config, VOCABULARY)
    ids = tf.constant(np.random.default_rng(0).integers(0, VOCABULARY, (4, 20)), tf.int32)
    assert abs(float(model.loss(ids)) - np.log(VOCABULARY)) < 0.2


def test_the_stepper_of_a_tied_model_reads_as_the_model_does():
    model = make(True)
    ids = tf.constant([[1, 4, 2]], tf.int32)
    logits, _ = model(ids)
    stepper, state = make_stepper(model), model.initial_state(1)
    for t in range(3):
        state = stepper.advance(ids[:, t], state)
        np.testing.assert_allclose(stepper.logits(state), logits[:, t], rtol=1e-12)


def test_a_tied_model_needs_an_embedding_of_the_size_of_the_hidden_layer():
    with pytest.raises(ConfigError, match="--tie_embedding: needs --embedding_size equal to --hidden_size"):
        ModelConfig(hidden_size=8, embedding_size=4, tie_embedding=True)
