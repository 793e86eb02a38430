"""Measures how much of a text is copied from another: shares of n-grams in common, and the longest common span."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LENGTHS = (4, 6, 8, 10, 12, 16, 20, 25, 30, 40, 50)


class CopiedSpan(NamedTuple):
    """A span of the generated text that also occurs in the training text.

    Attributes:
        length: its number of characters; 0 if the texts have nothing in common.
        position: index of its first character in the generated text.
        training_position: index of its first occurrence in the training text.
    """

    length: int
    position: int
    training_position: int


class SpanIndex:
    """Finds equal spans of two texts by prefix doubling (Karp, Miller and Rosenberg 1972).

    Spans of 2k characters get the same number if and only if their first halves and their second halves do. A span of
    any length n is covered by two spans, which may overlap, of the largest power of 2 up to n.
    """

    def __init__(self, generated: str, training: str):
        self._sizes = len(generated), len(training)
        points = np.frombuffer((generated + training).encode("utf-32-le"), "<u4")
        # [k] holds the number of the span of 2^k characters at each position of the concatenated texts
        self._numbers = [np.unique(points, return_inverse=True)[1].astype(np.int32)]

    def mark_copied(self, n: int) -> npt.NDArray[np.bool_]:
        """Returns for each n-gram of the generated text whether the training text has it, `[generated - n + 1]`."""
        size, training = self._sizes
        if n > size or n > training:
            return np.zeros(max(size - n + 1, 0), bool)
        keys = self._number_ngrams(n)
        return np.isin(keys[: size - n + 1], keys[size:])

    def find_longest(self) -> CopiedSpan:
        """Finds the longest copied span."""
        # spans of `low` characters are copied; spans of `high` are not, once the first loop ends
        low, high = 0, 1
        while self.mark_copied(high).any():
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self.mark_copied(middle).any():
                low = middle
            else:
                high = middle
        if not low:
            return CopiedSpan(0, 0, 0)
        position = int(np.argmax(self.mark_copied(low)))
        keys = self._number_ngrams(low)
        return CopiedSpan(low, position, int(np.argmax(keys[self._sizes[0] :] == keys[position])))

    def _number_ngrams(self, n: int) -> npt.NDArray[np.int64]:
        """Returns a number for the n-gram at each position of the concatenated texts; equal n-grams have equal ones."""
        level = n.bit_length() - 1
        while len(self._numbers) <= level:
            half = 2 ** (len(self._numbers) - 1)
            numbers = np.unique(self._combine_spans(half, 2 * half), return_inverse=True)[1]
            self._numbers.append(numbers.astype(np.int32))
        return self._combine_spans(2**level, n)

    def _combine_spans(self, span: int, n: int) -> npt.NDArray[np.int64]:
        """Combines the numbers of the first and the last `span` characters of the n-gram at each position."""
        numbers = self._numbers[span.bit_length() - 1].astype(np.int64)
        count = sum(self._sizes) - n + 1
        return numbers[:count] * len(numbers) + numbers[n - span : n - span + count]


@dataclasses.dataclass(frozen=True)
class Novelty:
    """What a text has in common with the training text.

    Attributes:
        characters: number of characters of the text.
        longest: number of characters of the longest copied span.
        place: position of that span in the text.
        training_place: position of its first occurrence in the training text.
        span: the span.
        copied: for each n the share of n-grams that are copied; None if the text is shorter than n.
    """

    characters: int
    longest: int
    place: int
    training_place: int
    span: str
    copied: dict[int, float | None]


def measure(generated: str, training: str, lengths: tuple[int, ...] = LENGTHS) -> Novelty:
    """Compares a text with the training text."""
    index = SpanIndex(generated, training)
    shares: dict[int, float | None] = {}
    for n in lengths:
        copied = index.mark_copied(n)
        shares[n] = float(copied.mean()) if len(copied) else None
    longest = index.find_longest()
    span = generated[longest.position : longest.position + longest.length]
    return Novelty(len(generated), *longest, span, shares)


def format_table(texts: dict[str, Novelty]) -> str:
    """Formats the results of several texts as a table with a column for each."""
    width = max(12, *map(len, texts)) + 2
    lines = [" " * 22 + "".join(f"{name:>{width}}" for name in texts)]
    lines.append(f"{'characters':22}" + "".join(f"{text.characters:>{width},}" for text in texts.values()))
    lines.append(f"{'longest copied span':22}" + "".join(f"{text.longest:>{width},}" for text in texts.values()))
    for n in next(iter(texts.values())).copied:
        cells = ["-" if text.copied[n] is None else f"{text.copied[n]:.2%}" for text in texts.values()]
        lines.append(f"{f'{n}-grams copied':22}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)
