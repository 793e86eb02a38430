"""What is said of each character of a text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcharrnn.analysis import text_features


def drawn(values):
    """One digit a character."""
    return "".join(f"{value:.0f}" for value in values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a "bc" d', "00111000"),
        ("a 'bc' d", "00111000"),
        ("don't, can't", "000000000000"),
        ("a 'don't' b", "00111111000"),
        ('never "closed\n\nand "so" on', "000000000000000000011100" + "00"),
        ('"""a "b" c""" d', "111111111111000"),
        ("“a” «b»", "1100110"),
    ],
)
def test_inside_quotes(text, expected):
    assert drawn(text_features.inside_quotes(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a(b[c]d)e", "011221100"),
        ("(a", "00"),
        ("a)b", "000"),
        ("(a]b)", "11110"),
        ("(a[b)c", "111100"),
        ("({[]})", "123210"),
    ],
)
def test_inside_brackets(text, expected):
    assert drawn(text_features.inside_brackets(text)) == expected


def test_positions_count_from_where_they_begin():
    assert drawn(text_features.position_in_line("ab\n\nc")) == "12001"
    assert drawn(text_features.position_in_word("ab, c_1")) == "1200123"
    assert drawn(text_features.position_in_sentence("ab. c\n\nd")) == "12012301"
    assert drawn(text_features.lines_since_blank("a\nb\n\nc\nd")) == "01120011"


def test_an_indentation_lasts_to_the_end_of_its_line():
    assert drawn(text_features.indentation("a\n  b c\n\td\n")) == "00" + "122220" + "440"


def test_a_heading_is_a_short_line_with_a_colon_at_its_end():
    text = "\nKING HENRY V:\nSo: it is.\nno heading here. so:\n"
    values = text_features.inside_heading(text)
    assert "".join(c for c, value in zip(text, values, strict=True) if value) == "KING HENRY V:"


def test_a_comment_ends_with_its_line():
    assert drawn(text_features.inside_comment("a # b\nc#d\n# e")) == "0011100000111"


@given(st.text(alphabet="ab'\"()[]{} \n\t.:#“”«»", max_size=60))
def test_every_feature_is_one_finite_number_for_each_character(text):
    for feature in text_features.FEATURES:
        values = feature.measure(text)
        assert values.shape == (len(text),)
        assert np.isfinite(values).all() and (values >= 0).all()


def test_what_stands_in_a_text_too_seldom_is_not_measured():
    text = "a (b) c (d) e\n"
    names = {feature.name for feature in text_features.measure_features(text)}
    assert "inside brackets" not in names and "space" in names
    assert "inside brackets" in {feature.name for feature in text_features.measure_features(2 * text)}
