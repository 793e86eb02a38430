"""The loss on each layout, and the scores of lines, against plain NumPy."""

import functools
from pathlib import Path

import numpy as np
import pytest

from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.examples import Examples, cut_stream, make_evaluation_examples
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.inference.evaluation import Evaluator
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.inference.trained_model import TrainedModel
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.verification import numpy_reference

CHARACTERS = "abcdef"
CELLS = {"sequences": "rnn", "stream": "lstm", "lines": "gru", "windows": "lstm"}
TEXT = "".join(np.random.default_rng(0).choice(list(CHARACTERS), 53))


@functools.cache  # so that equal shapes are compiled once
def trained(layout, **settings):
    """A model with random weights, as it is restored from a run folder."""
    vocabulary = Vocabulary.from_text(CHARACTERS, LAYOUTS[layout].special)
    config = ModelConfig(cell=CELLS[layout], hidden_size=8, num_layers=2, embedding_size=3, dropout=0.5)
    model, rng = CharRNN(config, len(vocabulary), layout=LAYOUTS[layout]), np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.0, 0.6, variable.shape))
    data = DataConfig(layout=layout, **settings)
    run = Run(Path("run"), data, "", "", config, TrainingConfig(batch_size=4), vocabulary)
    return TrainedModel(run, None, model, Sampler(model, vocabulary), Evaluator(model))


def nats(model, ids):
    """The loss of each symbol but the first of one text, read from the initial state."""
    parameters = {
        name: np.float64(variable.numpy()) for name, variable in numpy_reference.variables(model.model).items()
    }
    column = np.array(ids)[:, np.newaxis]
    logits = numpy_reference.run_model(model.run.model.cell, parameters, column[:-1], column[1:]).logits
    return numpy_reference.cross_entropy(logits, column[1:])[0][:, 0]


@pytest.mark.parametrize("batch_size", [2, 100])
def test_the_loss_of_lines_is_the_mean_over_their_characters_and_ends(batch_size):
    model = trained("lines")
    lines = [TEXT[:2], TEXT[2:30], TEXT[30:31], TEXT[31:40], TEXT[40:]]
    examples = chunking.encode_lines(lines, model.run.vocabulary)
    expected = np.concatenate([nats(model, [1, *model.run.vocabulary.encode(line), 2]) for line in lines])
    result = model.evaluator(examples, batch_size)
    assert result.characters == len(expected) == 53 + 5
    assert result.loss == pytest.approx(expected.mean(), rel=1e-6)
    assert model.evaluate_text("\n\n".join(lines)).loss == pytest.approx(result.loss, rel=1e-6)


def test_a_text_of_lines_is_evaluated_line_by_line():
    model = trained("lines", delimiter=r"[ab]")
    expected = [
        nats(model, [1, *model.run.vocabulary.encode(line), 2]) for line in TEXT.replace("a", "b").split("b") if line
    ]
    result = model.evaluate_text(TEXT)
    assert result.characters == len(np.concatenate(expected))
    assert result.loss == pytest.approx(np.concatenate(expected).mean(), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_loss_of_windows_is_that_of_every_character_after_the_first_window(batch_size):
    model = trained("windows", seq_length=5, stride=4)
    ids = model.run.vocabulary.encode(TEXT)
    expected = [nats(model, ids[at : at + 6])[-1] for at in range(len(ids) - 5)]
    records = Examples.from_lengths(ids, np.array([20, 33]))
    result = model.evaluator(make_evaluation_examples(records, model.run.data), batch_size)
    assert result.characters == len(expected) == 48
    assert result.loss == pytest.approx(np.mean(expected), rel=1e-6)
    assert model.evaluate_text(TEXT).loss == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize("piece", [1, 7, 51, 1024])
def test_the_loss_of_a_stream_is_that_of_the_whole_whatever_the_pieces(piece):
    """The state goes from each piece to the next, and the batch size means nothing."""
    model = trained("stream", seq_length=5)
    ids = model.run.vocabulary.encode(TEXT)
    expected = nats(model, ids)
    pieces = cut_stream(ids, piece)
    for batch_size in (1, 4):
        result = model.evaluator(pieces, batch_size)
        assert result.characters == len(expected) == 52
        assert result.loss == pytest.approx(expected.mean(), rel=1e-6)
    sums = model.evaluator.sum_losses(pieces, 4)
    starts = np.arange(0, 52, piece)
    np.testing.assert_allclose(sums, np.add.reduceat(expected, starts), rtol=1e-6)


def test_a_long_stream_is_evaluated_in_pieces_of_one_shape():
    model = trained("stream", seq_length=5)
    text = "".join(np.random.default_rng(2).choice(list(CHARACTERS), 2500))
    result = model.evaluate_text(text)
    assert result.characters == 2499
    assert result.loss == pytest.approx(nats(model, model.run.vocabulary.encode(text)).mean(), rel=1e-6)


@pytest.mark.parametrize("layout", ["lines", "sequences"])
def test_a_score_is_the_log_probability_of_a_line(layout):
    """With its end where the model has ends; whatever else is scored beside it."""
    model = trained(layout)
    lines = ["a", "", TEXT, "fed", "fee", TEXT[:20], "b" * 40, "c"]
    encode, end = model.run.vocabulary.encode, [2] if layout == "lines" else []
    start = model.run.vocabulary.start_id
    expected = [-nats(model, [start, *encode(line), *end]).sum() if line or end else 0.0 for line in lines]
    scores = model.score(lines)
    assert scores == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert all(score < 0.0 or not line for line, score in zip(lines, scores, strict=True))
    for index in (1, 2):
        assert model.score([lines[index]]) == pytest.approx([scores[index]], rel=1e-5)
    assert model.score([]) == []


def test_scores_of_all_ends_of_a_prefix_sum_to_one():
    """A line of at most one character, or what goes on from its first: all of it together is certain."""
    model = trained("lines")
    short = np.exp(model.score(["", *CHARACTERS])).sum()
    parameters = {
        name: np.float64(variable.numpy()) for name, variable in numpy_reference.variables(model.model).items()
    }
    after = {}
    for character in CHARACTERS:
        ids = np.array([[1], model.run.vocabulary.encode(character)])
        logits = numpy_reference.run_model("gru", parameters, ids, ids).logits
        after[character] = np.exp(
            -numpy_reference.cross_entropy(np.repeat(logits, 9, 1), np.tile(np.arange(9), (2, 1)))[0]
        )
    first = after["a"][0]
    longer = sum(first[3 + index] * (1.0 - after[c][1][2]) for index, c in enumerate(CHARACTERS))
    assert short + longer + first[0] + first[1] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("layout", ["stream", "windows"])
def test_a_layout_without_a_beginning_has_no_scores(layout):
    with pytest.raises(UserError, match=rf"^run: the layout {layout} has no <S>.* --layout=sequences\|lines$"):
        trained(layout, seq_length=5).score(["a"])


def test_unknown_characters_of_a_line_are_named():
    with pytest.raises(UserError, match=r"^names\.txt: .*'x'"):
        trained("lines").score(["ab", "ax"], "names.txt")
