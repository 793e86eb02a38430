"""A text read in one piece: whatever it is cut into, and whatever stands beside it, the loss is the same."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_layout_evaluation import CHARACTERS, TEXT, nats, trained

from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.inference import eval_inputs, evaluation
from tfcharrnn.layouts import LAYOUTS

LONG = "".join(np.random.default_rng(3).choice(list(CHARACTERS), 2600))
SETTINGS = {"sequences": {"seq_length": 8}, "stream": {"seq_length": 5}, "windows": {"seq_length": 5}, "lines": {}}


@pytest.mark.parametrize("layout", ["sequences", "stream"])
def test_the_state_is_carried_over_the_whole_text(layout):
    model = trained(layout, **SETTINGS[layout])
    ids = model.run.vocabulary.encode(LONG).tolist()
    expected = nats(model, [0, *ids] if layout == "sequences" else ids)
    result = model.evaluate_text(LONG)
    assert result.characters == len(expected) == len(LONG) - (layout == "stream")
    assert result.loss == pytest.approx(expected.mean(), rel=1e-6)


@pytest.mark.parametrize("layout", SETTINGS)
def test_pieces_and_batch_sizes_change_nothing(layout):
    model = trained(layout, **SETTINGS[layout])
    text = {"lines": LONG[:250].replace("a", "\n"), "windows": LONG[:250]}.get(layout, LONG)
    whole = model.evaluate_text(text)
    cuts = [round(share * len(text)) for share in (0, 0.004, 0.01, 0.02, 0.31, 0.6, 0.99, 1)]
    pieces = [text[first:last] for first, last in itertools.pairwise(cuts)]
    assert len(pieces) == 7 and all(pieces)
    results = [model.evaluate_text(pieces)]
    results += [model.evaluate_text(text, batch_size=size) for size in (1, 5, 64)]
    for result in results:
        assert result.loss == pytest.approx(whole.loss, rel=1e-6)
        assert (result.characters, result.accuracy) == (whole.characters, whole.accuracy)


def test_examples_begin_anew_if_asked_for():
    model = trained("sequences", **SETTINGS["sequences"])
    ids = model.run.vocabulary.encode(LONG)
    expected = np.concatenate([nats(model, [0, *ids[at : at + 7]]) for at in range(0, len(ids), 7)])
    result = model.evaluate_text(LONG, read="examples")
    assert result.characters == len(LONG)
    assert result.loss == pytest.approx(expected.mean(), rel=1e-6)
    assert abs(result.loss - model.evaluate_text(LONG).loss) > 1e-3


@pytest.mark.parametrize(
    ("layout", "read", "able"),
    [("lines", "whole", "examples"), ("windows", "whole", "examples"), ("stream", "examples", "whole")],
)
def test_a_layout_that_cannot_be_read_so_says_how_it_can(layout, read, able):
    with pytest.raises(ConfigError, match=f"--read must be {able} for --layout={layout}"):
        trained(layout, **SETTINGS[layout]).evaluate_text(TEXT, read=read)


@pytest.mark.parametrize("layout", SETTINGS)
def test_characters_outside_the_vocabulary_are_skipped_and_counted_if_asked_for(layout):
    model = trained(layout, **SETTINGS[layout])
    odd = "é".join([TEXT[:10], TEXT[10:30], TEXT[30:]]) + "🙂x"
    if layout == "lines":
        odd += "\nxxx\n"
    with pytest.raises(UserError, match=r"^odd\.txt: .*'é'.*; --unknown=skip ignores such characters$"):
        model.evaluate_text(odd, "odd.txt")
    result, plain = model.evaluate_text(odd, unknown="skip"), model.evaluate_text(TEXT)
    assert result.unknown == (7 if layout == "lines" else 4) and plain.unknown == 0
    assert result.loss == pytest.approx(plain.loss, rel=1e-7) and result.characters == plain.characters
    with pytest.raises(ConfigError, match="--unknown"):
        model.evaluate_text(odd, unknown="perhaps")
    with pytest.raises(UserError, match="no text to evaluate"):
        model.evaluate_text("éx", unknown="skip")


@pytest.mark.parametrize("layout", SETTINGS)
def test_accuracy_and_the_loss_of_each_kind_add_up(layout):
    model = trained(layout, **SETTINGS[layout])
    text = LONG[:400].replace("aa", "\n") if layout == "lines" else LONG[:400]
    result = model.evaluate_text(text)
    kinds = result.by_class(model.run.vocabulary)
    assert set(kinds) == ({"lower", "end"} if layout == "lines" else {"lower"})
    assert sum(kind["characters"] for kind in kinds.values()) == result.characters
    for key, expected in (("loss", result.loss), ("accuracy", result.accuracy)):
        total = sum(kind[key] * kind["characters"] for kind in kinds.values())
        assert total / result.characters == pytest.approx(expected, rel=1e-12)
    json.dumps([kinds, result.to_dict()])


def test_accuracy_is_the_share_of_the_likeliest():
    """A model without weights but a bias always takes the same character, and never `<S>`, however likely."""
    model = trained("sequences", seq_length=9)
    saved = [variable.numpy() for variable in model.model.trainable_variables]
    try:
        for variable in model.model.trainable_variables:
            variable.assign(np.zeros(variable.shape))
        model.model.output_bias.assign([9.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0])
        result = model.evaluate_text(LONG)
    finally:
        for variable, value in zip(model.model.trainable_variables, saved, strict=True):
            variable.assign(value)
    assert result.accuracy == pytest.approx(LONG.count("b") / len(LONG), rel=1e-12)


@pytest.mark.parametrize(
    ("symbol", "kind"),
    [
        ("a", "lower"), ("é", "lower"), ("Z", "upper"), ("Ω", "upper"), ("7", "digit"), ("٣", "digit"),
        (" ", "space"), ("\t", "space"), ("\u00a0", "space"), ("\n", "newline"), (".", "punctuation"),
        ("+", "punctuation"), ("—", "punctuation"), ("🙂", "punctuation"), ("漢", "other"), ("\u0301", "other"),
        ("</S>", "end"), ("<S>", "other"),
    ],
)  # fmt: skip
def test_kinds_of_characters(symbol, kind):
    assert evaluation.classify_symbol(symbol) == kind


@given(st.text("abcdef\n", min_size=1, max_size=120), st.sampled_from(sorted(LAYOUTS)), st.data())
def test_the_characters_of_a_split_are_found_again_each_once(text, layout, data):
    settings = {} if layout == "lines" else {"seq_length": data.draw(st.integers(2, 9))}
    if layout == "sequences":
        settings["overlap"] = data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.8]))
    try:
        config = DataConfig(layout=layout, **settings)
        chunking.sequence_stride(config.seq_length, config.overlap)
    except ConfigError:
        return
    vocabulary = Vocabulary.from_text("abcdef\n", LAYOUTS[layout].special)
    part = chunking.split_lines(text, config)[0] if layout == "lines" else text
    blocks = list(chunking.cut_records(part, vocabulary, config))
    if not chunking.count_records(len(part), config):
        return
    assert len(blocks) == 1
    eval_input = eval_inputs.make_split_input(blocks[0], vocabulary, config)
    found = eval_input.text(vocabulary)
    if layout == "lines":
        assert found == "\n".join(part) + "\n"
        assert len(found) == len(eval_input.ids)
    elif layout == "sequences":
        assert text.startswith(found) and len(text) - len(found) < config.seq_length - 1
    else:
        assert found == text
    if layout in ("sequences", "stream"):
        whole = eval_inputs.make_split_input(blocks[0], vocabulary, config, "whole")
        assert whole.in_order and (whole.examples.lengths - 1).sum() == len(found) - (layout == "stream")
        assert vocabulary.decode(whole.examples.pad()) == found
