"""What can be said of each character of a text, to compare a unit's activations with.

A feature is a function from a text to one number for each of its characters, true of the text up to and including the
character, as a unit's activation after reading it can know. Where only what follows decides (whether a quote is ever
closed, whether a line is a heading), the feature says what a reader of the whole text would.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# A quotation ends in its own paragraph, so that a quote which is never closed does not turn all that follows inside
# out. A single quote opens only where no word stands before it, and closes only where none follows: it may be an
# apostrophe.
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
_TAB = 4  # columns that a tab counts as, in an indentation

# Below so many separate stretches of a text, a feature that was found there is not measured: any unit that happens to
# be high once would seem to track it.
MIN_STRETCHES = 3


def inside_quotes(text: str) -> Array:
    """1 from an opening quote to the character before the closing one."""
    return _spans(text, _QUOTATION, closing=1)


def inside_brackets(text: str) -> Array:
    """How many (), [] and {} are open; one that is never closed, or never opened, does not count."""
    change, waiting = np.zeros(len(text) + 1), []
    for index, character in enumerate(text):
        if character in _BRACKETS.values():
            waiting.append(index)
        elif character in _BRACKETS:
            # what was opened within and not closed is passed over
            depth = len(waiting)
            while depth and text[waiting[depth - 1]] != _BRACKETS[character]:
                depth -= 1
            if depth:
                change[waiting[depth - 1]] += 1
                change[index] -= 1
                del waiting[depth - 1 :]
    return np.cumsum(change)[: len(text)]


def position_in_line(text: str) -> Array:
    """Characters since the last newline."""
    return _since(text, lambda index: text[index] == "\n")


def indentation(text: str) -> Array:
    """How far the line is indented, in columns; within the indentation itself, so far."""
    depth, result, leading = 0, np.zeros(len(text)), True
    for index, character in enumerate(text):
        if character == "\n":
            depth, leading = 0, True
        elif leading and character in " \t":
            depth += _TAB if character == "\t" else 1
        else:
            leading = False
        result[index] = depth
    return result


def inside_heading(text: str) -> Array:
    """1 in a short line that begins with a letter and ends with a colon, such as a speaker's name in a play."""
    return _spans(text, _HEADING)


def inside_comment(text: str) -> Array:
    """1 from # or // to the end of the line, where it stands at the line's beginning or after a blank."""
    return _spans(text, _COMMENT)


def position_in_word(text: str) -> Array:
    """Letters, digits and underscores of the word so far; 0 between words."""
    return _since(text, lambda index: not (text[index].isalnum() or text[index] == "_"))


def position_in_sentence(text: str) -> Array:
    """Characters since the last . ! or ? or blank line."""
    return _since(text, lambda index: text[index] in ".!?" or text[max(index - 1, 0) : index + 1] == "\n\n")


def lines_since_blank(text: str) -> Array:
    """Newlines since the last blank line, such as the verse of a stanza."""
    count, result = 0, np.zeros(len(text))
    for index, character in enumerate(text):
        if character == "\n":
            count = 0 if text[max(index - 1, 0)] == "\n" else count + 1
        result[index] = count
    return result


def _each(text: str, is_so: Callable[[str], bool]) -> Array:
    return np.array([is_so(character) for character in text], np.float64)


def _spans(text: str, pattern: re.Pattern[str], closing: int = 0) -> Array:
    """1 in every match, but for its last `closing` characters."""
    result = np.zeros(len(text))
    for match in pattern.finditer(text):
        result[match.start() : match.end() - closing] = 1.0
    return result


def _since(text: str, begins_anew: Callable[[int], bool]) -> Array:
    """Counts characters from 1 on; 0 at one where it begins anew."""
    count, result = 0, np.zeros(len(text))
    for index in range(len(text)):
        count = 0 if begins_anew(index) else count + 1
        result[index] = count
    return result


@dataclasses.dataclass(frozen=True)
class Feature:
    """A property of the characters of a text.

    Attributes:
        name: for people.
        remembered: it cannot be told from the character alone, so a unit that tracks it remembers something.
        measure: gives it for each character of a text.
    """

    name: str
    remembered: bool
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
    Feature("newline", False, lambda text: _each(text, lambda c: c == "\n")),
    Feature("space", False, lambda text: _each(text, lambda c: c == " ")),
    Feature("vowel", False, lambda text: _each(text, lambda c: c in "aeiouAEIOU")),
    Feature("capital letter", False, lambda text: _each(text, str.isupper)),
    Feature("digit", False, lambda text: _each(text, str.isdigit)),
    Feature("punctuation", False, lambda text: _each(text, lambda c: not (c.isalnum() or c.isspace()))),
)


def measured(text: str, features: tuple[Feature, ...] = FEATURES) -> dict[Feature, Array]:
    """Each feature's value at each character, of those that the text has enough of; see `MIN_STRETCHES`."""
    values = {feature: feature.measure(text) for feature in features}
    return {feature: value for feature, value in values.items() if _stretches(value) >= MIN_STRETCHES}


def _stretches(values: Array) -> int:
    """How many times a feature begins to be found."""
    found = np.concatenate([[False], values > 0])
    return int(np.count_nonzero(found[1:] & ~found[:-1]))
