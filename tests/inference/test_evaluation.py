"""Evaluation against plain NumPy, in batches of any size."""

import math

import numpy as np
import pytest

from tfcharrnn.config import ModelConfig
from tfcharrnn.data.examples import Examples
from tfcharrnn.errors import UserError
from tfcharrnn.inference.evaluation import Evaluation, Evaluator
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.verification import numpy_reference

RECORDS, SEQ_LENGTH, VOCABULARY = 7, 9, 6


def make_model(implementation="custom"):
    config = ModelConfig(
        cell="lstm", implementation=implementation, hidden_size=8, num_layers=2, embedding_size=3, dropout=0.5
    )
    model, rng = CharRNN(config, VOCABULARY), np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.0, 0.6, variable.shape))
    return model


def random_sequences():
    return np.random.default_rng(1).integers(0, VOCABULARY, (RECORDS, SEQ_LENGTH)).astype(np.int32)


def cut_short(sequences, lengths):
    """Examples that are the beginnings of some sequences; the rest of each stands between them."""
    return Examples(sequences.ravel(), np.arange(len(sequences)) * SEQ_LENGTH, lengths)


def expected_losses(model, sequences):
    """Nats of every target, `[records, seq_length - 1]`."""
    parameters = {name: np.float64(variable.numpy()) for name, variable in numpy_reference.variables(model).items()}
    inputs, targets = sequences.T[:-1], sequences.T[1:]
    result = numpy_reference.run_model("lstm", parameters, inputs, targets)
    return numpy_reference.cross_entropy(result.logits, targets)[0].T


@pytest.mark.parametrize("implementation", ["custom", "keras"])
@pytest.mark.parametrize("batch_size", [1, 3, RECORDS, 100])
def test_the_loss_is_the_mean_over_all_targets_whatever_the_batch(implementation, batch_size):
    """Also where the last batch is not full; and without dropout."""
    model, sequences = make_model(implementation), random_sequences()
    result = Evaluator(model)(Examples.from_rows(sequences), batch_size)
    assert result.characters == RECORDS * (SEQ_LENGTH - 1)
    assert result.loss == pytest.approx(expected_losses(model, sequences).mean(), rel=1e-6)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_only_real_symbols_count(batch_size):
    """What stands after the end of a sequence changes nothing; a sequence of one symbol predicts nothing."""
    model, sequences = make_model(), random_sequences()
    lengths = np.array([9, 9, 4, 2, 1, 9, 8])
    real = np.arange(1, SEQ_LENGTH) < lengths[:, None]
    result = Evaluator(model)(cut_short(sequences, lengths), batch_size)
    assert result.characters == (lengths - 1).sum() == real.sum()
    assert result.loss == pytest.approx(expected_losses(model, sequences)[real].mean(), rel=1e-6)
    other = sequences.copy()
    other[:, 1:][~real] = (other[:, 1:][~real] + 1) % VOCABULARY
    assert Evaluator(model)(cut_short(other, lengths), batch_size).loss == pytest.approx(result.loss, rel=1e-7)


def test_an_evaluator_sees_the_weights_of_the_moment():
    model, sequences = make_model(), Examples.from_rows(random_sequences())
    evaluator = Evaluator(model)
    before = evaluator(sequences, 4).loss
    for variable in model.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    assert evaluator(sequences, 4).loss == pytest.approx(math.log(VOCABULARY), rel=1e-6) != before


def test_nothing_to_evaluate():
    with pytest.raises(UserError, match="no text"):
        Evaluator(make_model())(Examples.from_rows(np.zeros((0, SEQ_LENGTH), np.int32)), 4)


def test_units():
    coin = Evaluation(loss=math.log(2.0), characters=10)
    assert coin.bits_per_char == pytest.approx(1.0) and coin.perplexity == pytest.approx(2.0)
    assert Evaluation(loss=1e4, characters=1).perplexity == math.inf
    assert coin.to_dict() == {
        "loss": coin.loss,
        "bits_per_char": coin.bits_per_char,
        "perplexity": coin.perplexity,
        "characters": 10,
    }
