"""Features of the characters of a text, to correlate with the activations of units.

A feature maps a text to one number for each character. It describes the text up to and including that character, which
is what a unit can know after reading it. Whether a quote is closed or a line is a heading depends on the characters
that follow; there the feature uses the whole text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# A quotation ends within its paragraph, so that an unclosed quote does not invert the rest of the text. A single quote
# may be an apostrophe: it opens a quotation only if no word precedes it, and closes one only if no word follows.
_QUOTATION = re.compile(
    r'"""[\s\S]*?"""'
    r"|'''[\s\S]*?'''"
    r'|"(?:[^"\n]|\n(?!\s*\n))*"'
    r"|“(?:[^”\n]|\n(?!\s*\n))*”"
    r"|«(?:[^»\n]|\n(?!\s*\n))*»"
    r"|(?<!\w)'(?!\s)(?:[^'\n]|'(?=\w))*'(?!\w)"
)
_BRACKETS = {")": "(", "]": "[", "}": "{"}
_HEADING = re.compile(r"^[^\W\d_][^\n:.!?]{0,39}:$", re.MULTILINE)
_COMMENT = re.compile(r"(?:^|(?<=\s))(?:#|//)[^\n]*", re.MULTILINE)
_TAB_WIDTH = 4  # columns of indentation per tab

# A feature that is positive in fewer separate runs is ignored: a unit that happens to be high once would seem to track
# it.
MIN_RUNS = 3


def inside_quotes(text: str) -> Array:
    """Marks the characters from an opening quote to the character before the closing one."""
    return _mark_matches(text, _QUOTATION, num_excluded=1)


def inside_brackets(text: str) -> Array:
    """Counts the open (), [] and {}, ignoring unmatched ones."""
    change, opened = np.zeros(len(text) + 1), []
    for index, character in enumerate(text):
        if character in _BRACKETS.values():
            opened.append(index)
        elif character in _BRACKETS:
            # skip brackets that were opened inside this pair and not closed
            depth = len(opened)
            while depth and text[opened[depth - 1]] != _BRACKETS[character]:
                depth -= 1
            if depth:
                change[opened[depth - 1]] += 1
                change[index] -= 1
                del opened[depth - 1 :]
    return np.cumsum(change)[: len(text)]


def position_in_line(text: str) -> Array:
    """Counts the characters since the last newline."""
    return _count_since(text, lambda index: text[index] == "\n")


def indentation(text: str) -> Array:
    """Counts the columns that the line is indented by; within the indentation, the columns so far."""
    depth, result, is_leading = 0, np.zeros(len(text)), True
    for index, character in enumerate(text):
        if character == "\n":
            depth, is_leading = 0, True
        elif is_leading and character in " \t":
            depth += _TAB_WIDTH if character == "\t" else 1
        else:
            is_leading = False
        result[index] = depth
    return result


def inside_heading(text: str) -> Array:
    """Marks short lines that start with a letter and end with a colon, such as a speaker's name in a play."""
    return _mark_matches(text, _HEADING)


def inside_comment(text: str) -> Array:
    """Marks the characters from # or // to the end of the line, if it starts the line or follows whitespace."""
    return _mark_matches(text, _COMMENT)


def position_in_word(text: str) -> Array:
    """Counts the letters, digits and underscores of the word so far; 0 between words."""
    return _count_since(text, lambda index: not (text[index].isalnum() or text[index] == "_"))


def position_in_sentence(text: str) -> Array:
    """Counts the characters since the last . ! or ? or blank line."""
    return _count_since(text, lambda index: text[index] in ".!?" or text[max(index - 1, 0) : index + 1] == "\n\n")


def lines_since_blank(text: str) -> Array:
    """Counts the newlines since the last blank line, such as the verses of a stanza."""
    count, result = 0, np.zeros(len(text))
    for index, character in enumerate(text):
        if character == "\n":
            count = 0 if text[max(index - 1, 0)] == "\n" else count + 1
        result[index] = count
    return result


def _mark_characters(text: str, predicate: Callable[[str], bool]) -> Array:
    return np.array([predicate(character) for character in text], np.float64)


def _mark_matches(text: str, pattern: re.Pattern[str], num_excluded: int = 0) -> Array:
    """Marks the matches of a pattern with 1, except for the last `num_excluded` characters of each."""
    result = np.zeros(len(text))
    for match in pattern.finditer(text):
        result[match.start() : match.end() - num_excluded] = 1.0
    return result


def _count_since(text: str, is_reset: Callable[[int], bool]) -> Array:
    """Counts the characters after the last index for which `is_reset` is true."""
    count, result = 0, np.zeros(len(text))
    for index in range(len(text)):
        count = 0 if is_reset(index) else count + 1
        result[index] = count
    return result


@dataclasses.dataclass(frozen=True)
class Feature:
    """A property of the characters of a text.

    Attributes:
        name: name for display.
        needs_memory: the character alone does not determine it, so a unit that tracks it has a memory.
        measure: computes it for each character of a text.
    """

    name: str
    needs_memory: bool
    measure: Callable[[str], Array]


FEATURES = (
    Feature("inside quotes", True, inside_quotes),
    Feature("inside brackets", True, inside_brackets),
    Feature("position in line", True, position_in_line),
    Feature("indentation", True, indentation),
    Feature("inside a heading", True, inside_heading),
    Feature("inside a comment", True, inside_comment),
    Feature("position in word", True, position_in_word),
    Feature("position in sentence", True, position_in_sentence),
    Feature("lines since a blank line", True, lines_since_blank),
    Feature("newline", False, lambda text: _mark_characters(text, lambda c: c == "\n")),
    Feature("space", False, lambda text: _mark_characters(text, lambda c: c == " ")),
    Feature("vowel", False, lambda text: _mark_characters(text, lambda c: c in "aeiouAEIOU")),
    Feature("capital letter", False, lambda text: _mark_characters(text, str.isupper)),
    Feature("digit", False, lambda text: _mark_characters(text, str.isdigit)),
    Feature("punctuation", False, lambda text: _mark_characters(text, lambda c: not (c.isalnum() or c.isspace()))),
)


def measure_features(text: str, features: tuple[Feature, ...] = FEATURES) -> dict[Feature, Array]:
    """Computes the features that are positive in at least `MIN_RUNS` separate runs of characters."""
    values = {feature: feature.measure(text) for feature in features}
    return {feature: value for feature, value in values.items() if _count_runs(value) >= MIN_RUNS}


def _count_runs(values: Array) -> int:
    """Counts the maximal runs of positive values."""
    is_positive = np.concatenate([[False], values > 0])
    return int(np.count_nonzero(is_positive[1:] & ~is_positive[:-1]))
