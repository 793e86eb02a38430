"""Dynamic evaluation against a loop by hand, and windows against the same text cut by hand."""

import numpy as np
import pytest
import tensorflow as tf

import tfcharrnn
from tfcharrnn.config import ModelConfig
from tfcharrnn.data.examples import Examples
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.inference import dynamic_evaluation
from tfcharrnn.inference.dynamic_evaluation import PIECE_LENGTH, RATES, DynamicEvaluator
from tfcharrnn.inference.evaluation import Evaluator
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN

TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(200))


def make_model(layout="stream"):
    config = ModelConfig(cell="gru", hidden_size=8, num_layers=2, embedding_size=3, learned_initial_state=True)
    model, rng = CharRNN(config, 7, dtype=tf.float64, layout=LAYOUTS[layout]), np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.0, 0.5, variable.shape))
    return model


def make_ids(size=3 * PIECE_LENGTH + 20):
    return np.random.default_rng(1).integers(1, 7, size).astype(np.int32)


class ByHand:
    """Both rules, one piece after another."""

    def __init__(self, learner, rule, rate):
        self.variables, self.rule, self.rate = learner.trainable_variables, rule, rate
        self.trained = [variable.numpy() for variable in self.variables]
        self.squares = [[] for _ in self.variables]

    def follow(self, gradients):
        gradients = [
            np.zeros(v.shape) if g is None else g.numpy() for v, g in zip(self.variables, gradients, strict=True)
        ]
        for squares, gradient in zip(self.squares, gradients, strict=True):
            squares.append(gradient**2)
        roots = [np.sqrt(np.mean(squares, axis=0)) for squares in self.squares]
        mean = np.mean(np.concatenate([root.ravel() for root in roots]))
        for variable, trained, gradient, root in zip(self.variables, self.trained, gradients, roots, strict=True):
            if self.rule == "sgd":
                variable.assign_sub(self.rate * gradient)
            else:
                step = self.rate * min(1.0, len(self.squares[0]) / 20) * gradient / (root + 0.3 * mean)
                variable.assign(variable - step + np.minimum(0.002 * root / mean, 1.0) * (trained - variable))


@pytest.mark.parametrize(("layout", "rule", "rate"), [("stream", "sgd", 0.3), ("sequences", "rms", 0.05)])
def test_each_piece_is_counted_before_it_is_learnt(layout, rule, rate):
    model, ids = make_model(layout), make_ids()
    before = [variable.numpy() for variable in model.variables]
    got = DynamicEvaluator(model, rule).evaluate(ids, rate)
    learner, state, losses = model.copy(), model.initial_state(1), []
    by_hand = ByHand(learner, rule, rate)
    text = ids if layout == "stream" else np.concatenate([[0], ids])
    for first in range(0, len(text) - 1, PIECE_LENGTH):
        with tf.GradientTape() as tape:
            piece, state = learner.losses(tf.constant(text[np.newaxis, first : first + PIECE_LENGTH + 1]), state)
            loss = tf.reduce_mean(piece)
        losses += piece.numpy().ravel().tolist()
        by_hand.follow(tape.gradient(loss, learner.trainable_variables))
    assert got.characters == len(losses) == len(text) - 1
    assert got.loss == pytest.approx(np.mean(losses), rel=1e-9)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_rate_of_nearly_nothing_is_the_plain_loss_and_every_evaluation_starts_anew():
    model, ids = make_model(), make_ids()
    evaluator = DynamicEvaluator(model, "sgd")
    plain = Evaluator(model)(Examples.from_rows(ids[np.newaxis]), 1).loss
    assert evaluator.evaluate(ids, 0.5).loss != pytest.approx(plain, rel=1e-4)
    assert evaluator.evaluate(ids, 1e-12).loss == pytest.approx(plain, rel=1e-9)


def test_the_rate_is_the_best_of_some_and_diverging_ones_are_not(monkeypatch):
    losses = dict(zip(RATES["sgd"], [2.0, 1.5, 1.2, np.nan, 1.1, 1.0], strict=True))
    evaluator = DynamicEvaluator(make_model(), "sgd")
    monkeypatch.setattr(evaluator, "evaluate", lambda ids, rate: dynamic_evaluation.Evaluation(losses[rate], len(ids)))
    assert evaluator.choose_rate(make_ids()) == RATES["sgd"][2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(TEXT)
    settings = {"layout": "stream", "cell": "gru", "hidden_size": 16, "seq_length": 20, "batch_size": 8}
    settings |= {"learning_rate": 0.02, "steps": 60, "val_fraction": 0.1, "quiet": True}
    tfcharrnn.train_model(folder / "r", input=[str(folder / "text.txt")], **settings)
    return tfcharrnn.load_model(folder / "r")


@pytest.mark.parametrize(("rule", "gain"), [("sgd", 0.05), ("rms", 0.02)])
def test_a_model_that_goes_on_learning_predicts_better(trained, rule, gain):
    """The text has seven pieces, in which the rule rms has just begun to take whole steps."""
    eval_input = trained.make_split_input("val")
    plain, (dynamic, rate) = trained.evaluate(eval_input), trained.evaluate_dynamic(eval_input, rule=rule)
    assert rate in RATES[rule] and dynamic.characters == plain.characters
    assert dynamic.loss < plain.loss - gain


@pytest.mark.parametrize("size", [5, 32, 10**4])
def test_windows_are_read_from_the_initial_state(trained, size):
    eval_input = trained.make_split_input("val")
    windows = [eval_input.ids[first : first + size + 1] for first in range(0, len(eval_input.ids) - 1, size)]
    sums = [
        float(Evaluator(trained.model).sum_losses(Examples.from_rows(window[np.newaxis]), 1)[0]) for window in windows
    ]
    got = trained.evaluate_windows(eval_input, size)
    assert got.characters == len(eval_input.ids) - 1
    assert got.loss == pytest.approx(sum(sums) / got.characters, rel=1e-5)


def test_lines_are_no_continuous_text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    settings = {"layout": "lines", "hidden_size": 4, "batch_size": 8, "steps": 1, "quiet": True, "val_fraction": 0.0}
    tfcharrnn.train_model(tmp_path / "r", input=[str(tmp_path / "text.txt")], **settings)
    model = tfcharrnn.load_model(tmp_path / "r")
    with pytest.raises(ConfigError, match="--dynamic: reads one continuous text"):
        model.evaluate_dynamic(model.make_text_input(TEXT), 0.1)
    with pytest.raises(ConfigError, match="--window: reads one continuous text"):
        model.evaluate_windows(model.make_text_input(TEXT), 10)


def test_without_a_validation_split_the_rate_must_be_given(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    settings = {"hidden_size": 4, "seq_length": 20, "batch_size": 8, "steps": 1, "quiet": True, "val_fraction": 0.0}
    tfcharrnn.train_model(tmp_path / "r", input=[str(tmp_path / "text.txt")], **settings)
    model = tfcharrnn.load_model(tmp_path / "r")
    with pytest.raises(UserError, match="--dynamic_rate"):
        model.evaluate_dynamic(model.make_text_input(TEXT))
    assert np.isfinite(model.evaluate_dynamic(model.make_text_input(TEXT), 0.1)[0].loss)
