"""The vocabulary of a model: its symbols and their ids."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfcharrnn.errors import UserError, shorten
from tfcharrnn.files import read_json, write_json
from tfcharrnn.layouts import END, START
from tfcharrnn.symbols import SPECIAL, is_character, quote_symbols

FORMAT = 1
_NUM_CODE_POINTS = 0x110000
_NUM_BYTES = 256
# characters processed at a time: few enough for their code points to stay in the processor's cache
_BLOCK_SIZE = 2**16


class Vocabulary:
    """An ordered set of symbols: special ones first, then single characters by code point.

    Attributes:
        symbols: all symbols, in id order.
        num_special: number of special symbols.
        of_bytes: whether its characters are bytes; see `tfcharrnn.symbols`.
    """

    def __init__(self, symbols: Sequence[str], *, of_bytes: bool = False):
        """Makes a vocabulary of symbols in id order.

        Raises:
            UserError: a duplicate, a symbol that is neither special nor a single character or byte, or a wrong order.
        """
        self.symbols = tuple(symbols)
        self.of_bytes = of_bytes
        self.num_special = 0
        while self.num_special < len(self.symbols) and self.symbols[self.num_special] in SPECIAL:
            self.num_special += 1
        special, characters = self.symbols[: self.num_special], self.symbols[self.num_special :]
        for symbol in characters:
            if not is_character(symbol):
                raise UserError(f"vocabulary: {shorten(symbol)} is neither a character nor one of {', '.join(SPECIAL)}")
        if not characters:
            raise UserError("vocabulary: it has no characters")
        if len(set(special)) < len(special):
            raise UserError(f"vocabulary: duplicate special symbol in {special}")
        self._code_points = np.array([ord(character) for character in characters], np.int32)
        steps = np.diff(self._code_points)
        if np.any(steps <= 0):
            index = int(np.argmax(steps <= 0))
            raise UserError(
                f"vocabulary: {characters[index + 1]!r} after {characters[index]!r}: "
                "characters must be unique and sorted by code point"
            )
        if of_bytes and self._code_points[-1] >= _NUM_BYTES:
            raise UserError(
                f"vocabulary: {characters[-1]!r} is not a byte, and its text was prepared with --encoding=bytes"
            )
        self._ids = np.full(_NUM_CODE_POINTS, -1, np.int32)
        self._ids[self._code_points] = np.arange(self.num_special, len(self.symbols), dtype=np.int32)

    @classmethod
    def from_text(cls, text: str, special: Iterable[str] = (START,)) -> Vocabulary:
        """Makes a vocabulary of the special symbols and the characters of a text."""
        characters = CharacterSet()
        characters.add(text)
        return cls([*special, *map(chr, characters.code_points())])

    @classmethod
    def load(cls, path: Path, *, of_bytes: bool = False) -> Vocabulary:
        """Reads `vocab.json`.

        Args:
            path: the file.
            of_bytes: whether its characters are bytes.

        Raises:
            UserError: the file is missing, damaged or has another format.
        """
        value = read_json(path)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise UserError(f"{path}: not a vocabulary of format {FORMAT}; was it written by a newer version?")
        symbols = value.get("symbols")
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            raise UserError(f"{path}: 'symbols' is not a list of strings; the file is damaged")
        try:
            return cls(symbols, of_bytes=of_bytes)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Writes `vocab.json`."""
        write_json(path, {"format": FORMAT, "symbols": list(self.symbols)})

    def __len__(self) -> int:
        return len(self.symbols)

    def __repr__(self) -> str:
        return f"<Vocabulary of {len(self)} symbols: {self.describe()}>"

    def __reduce__(self) -> tuple[Any, tuple[Sequence[str]]]:
        # making the tables is faster than sending them to another process
        return functools.partial(type(self), of_bytes=self.of_bytes), (self.symbols,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.symbols == other.symbols and self.of_bytes == other.of_bytes

    def __hash__(self) -> int:
        return hash(self.symbols)

    @property
    def start_id(self) -> int:
        """The id of `<S>`, the first symbol of an example.

        Raises:
            UserError: the vocabulary does not have it.
        """
        if START not in self.symbols[: self.num_special]:
            raise UserError(f"vocabulary: it has no {START}, the first symbol of an example; prepare the data again")
        return self.symbols.index(START)

    @property
    def end_id(self) -> int | None:
        """The id of `</S>`, the end of a line, or None if the vocabulary does not have it."""
        return self.symbols.index(END) if END in self.symbols[: self.num_special] else None

    @property
    def is_of_lines(self) -> bool:
        """Whether a generated text is one line: it ends with `</S>`, and no character is a line end."""
        return self.end_id is not None and "\n" not in self.symbols

    def encode(self, text: str, what: str = "text") -> npt.NDArray[np.int32]:
        """Returns the ids of the characters of a text, `[len(text)]`.

        Raises:
            UserError: characters outside the vocabulary; the message names them and `what` the text is.
        """
        ids = np.empty(len(text), np.int32)
        start = 0
        for block in _iterate_code_points(text):
            self._ids.take(block, out=ids[start : start + len(block)], mode="clip")
            start += len(block)
        if len(ids) and ids.min() < 0:
            unknown = sorted(set(text).difference(self.symbols))
            shown = ", ".join(quote_symbols(character, self.of_bytes) for character in unknown[:10])
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            raise UserError(f"{what}: the model's vocabulary does not have {shown}{more}; it has {self.describe()}")
        return ids

    def drop_unknown(self, text: str) -> str:
        """Returns a text without the characters outside the vocabulary."""
        unknown = set(text).difference(self.symbols)
        return text.translate({ord(character): None for character in unknown}) if unknown else text

    def decode(self, ids: npt.ArrayLike) -> str:
        """Returns the text of ids, without special symbols.

        Raises:
            UserError: an id outside the vocabulary.
        """
        array = np.asarray(ids, np.int64)
        if array.size and (array.min() < 0 or array.max() >= len(self)):
            raise UserError(f"ids must be between 0 and {len(self) - 1}. Received: {array.min()} to {array.max()}")
        characters = self._code_points[array[array >= self.num_special] - self.num_special]
        return characters.astype("<u4").tobytes().decode("utf-32-le")

    def describe(self) -> str:
        """Describes the characters for messages: all of them, or the first forty."""
        characters = "".join(self.symbols[self.num_special :])
        shown = quote_symbols(characters[:40], self.of_bytes)
        if len(characters) <= 40:
            return shown
        return f"{len(characters)} {'bytes' if self.of_bytes else 'characters'}, {shown} and more"


class CharacterSet:
    """The set of characters of a text, collected part by part."""

    def __init__(self) -> None:
        self._present = np.zeros(_NUM_CODE_POINTS, bool)
        self._ascii = b""

    def add(self, text: str) -> None:
        """Adds the characters of part of a text."""
        if text.isascii():
            # deleting known characters at once is much faster than looking at each
            unknown = text.encode("ascii").translate(None, self._ascii)
            while unknown:
                first = bytes(set(unknown[:_BLOCK_SIZE]))
                self._ascii += first
                unknown = unknown.translate(None, first)
            return
        for block in _iterate_code_points(text):
            if not self._present.take(block, mode="clip").all():  # reading is faster than writing
                self._present[block] = True

    def code_points(self) -> list[int]:
        """Returns the code points of all characters so far, in order."""
        self._present[np.frombuffer(self._ascii, np.uint8)] = True
        return np.flatnonzero(self._present).tolist()


def find_symbol_order(symbols: Sequence[str], special: Sequence[str] = ()) -> list[int]:
    """Returns the ids of symbols in a vocabulary's order: special symbols first, then characters by code point."""
    ranks = {symbol: index for index, symbol in enumerate(special)}
    return sorted(range(len(symbols)), key=lambda index: (ranks.get(symbols[index], len(ranks)), symbols[index]))


def _iterate_code_points(text: str) -> Iterator[npt.NDArray[np.uint32]]:
    """Yields the code points of a text in blocks."""
    for start in range(0, len(text), _BLOCK_SIZE):
        # a lone surrogate, which can come from a command line, passes here and is then reported as unknown
        yield np.frombuffer(text[start : start + _BLOCK_SIZE].encode("utf-32-le", "surrogatepass"), "<u4")
