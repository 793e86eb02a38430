"""The symbols a model knows, and the way between text and their ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfcharrnn.errors import UserError, short
from tfcharrnn.files import read_json, write_json
from tfcharrnn.layouts import END, PAD, START

FORMAT = 1
# how a vocabulary file may name symbols that are no character
_SPECIAL = (START, PAD, END)
_CODE_POINTS = 0x110000
# characters looked at together: few enough that their code points stay in the processor's cache
_BLOCK = 2**16


class Vocabulary:
    """An ordered set of symbols: special ones first, then single characters by code point.

    Attributes:
        symbols: every symbol, in id order.
        num_special: how many of the first symbols are special.
    """

    def __init__(self, symbols: Sequence[str]):
        """Takes the symbols in id order.

        Raises:
            UserError: a symbol twice, one that is neither special nor a single character, or the wrong order.
        """
        self.symbols = tuple(symbols)
        self.num_special = 0
        while self.num_special < len(self.symbols) and self.symbols[self.num_special] in _SPECIAL:
            self.num_special += 1
        special, characters = self.symbols[: self.num_special], self.symbols[self.num_special :]
        for symbol in characters:
            if len(symbol) != 1 or 0xD800 <= ord(symbol) < 0xE000:
                raise UserError(f"vocabulary: {short(symbol)} is neither a character nor one of {', '.join(_SPECIAL)}")
        if not characters:
            raise UserError("vocabulary: it has no characters")
        if len(set(special)) < len(special):
            raise UserError(f"vocabulary: a special symbol stands twice in {special}")
        self._code_points = np.array([ord(character) for character in characters], np.int32)
        steps = np.diff(self._code_points)
        if np.any(steps <= 0):
            where = int(np.argmax(steps <= 0))
            raise UserError(
                f"vocabulary: {characters[where + 1]!r} after {characters[where]!r}: "
                "characters must stand once each, by code point"
            )
        self._ids = np.full(_CODE_POINTS, -1, np.int32)
        self._ids[self._code_points] = np.arange(self.num_special, len(self.symbols), dtype=np.int32)

    @classmethod
    def from_text(cls, text: str, special: Iterable[str] = (START,)) -> Vocabulary:
        """The vocabulary of every character in `text`, after the special symbols."""
        present = Present()
        present.add(text)
        return cls([*special, *map(chr, present.code_points())])

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Reads `vocab.json`.

        Raises:
            UserError: the file is missing, damaged or of another format.
        """
        value = read_json(path)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise UserError(f"{path}: not a vocabulary of format {FORMAT}; was it written by a newer version?")
        symbols = value.get("symbols")
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            raise UserError(f"{path}: 'symbols' is not a list of strings; the file is damaged")
        try:
            return cls(symbols)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Writes `vocab.json`."""
        write_json(path, {"format": FORMAT, "symbols": list(self.symbols)})

    def __len__(self) -> int:
        return len(self.symbols)

    def __reduce__(self) -> tuple[type, tuple[Sequence[str]]]:
        return type(self), (self.symbols,)  # the tables are quicker made than sent to another process

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.symbols == other.symbols

    def __hash__(self) -> int:
        return hash(self.symbols)

    @property
    def start_id(self) -> int:
        """The id of `<S>`, with which an example begins.

        Raises:
            UserError: the vocabulary does not have it.
        """
        if START not in self.symbols[: self.num_special]:
            raise UserError(f"vocabulary: it has no {START} to begin with; prepare the data again")
        return self.symbols.index(START)

    @property
    def end_id(self) -> int | None:
        """The id of `</S>`, with which a line ends, or None if the vocabulary does not have it."""
        return self.symbols.index(END) if END in self.symbols[: self.num_special] else None

    def encode(self, text: str, what: str = "text") -> npt.NDArray[np.int32]:
        """The ids of the characters of `text`, `[len(text)]`.

        Raises:
            UserError: characters outside the vocabulary; the message names them and `what`.
        """
        ids = np.empty(len(text), np.int32)
        start = 0
        for block in _code_points(text):
            self._ids.take(block, out=ids[start : start + len(block)], mode="clip")
            start += len(block)
        if len(ids) and ids.min() < 0:
            unknown = sorted(set(text).difference(self.symbols))
            shown = ", ".join(repr(character) for character in unknown[:10])
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            raise UserError(f"{what}: the model's vocabulary does not have {shown}{more}; it has {self.describe()}")
        return ids

    def known(self, text: str) -> str:
        """`text` without the characters outside the vocabulary."""
        unknown = set(text).difference(self.symbols)
        return text.translate({ord(character): None for character in unknown}) if unknown else text

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of `ids`; special symbols are left out.

        Raises:
            UserError: an id outside the vocabulary.
        """
        array = np.asarray(ids, np.int64)
        if array.size and (array.min() < 0 or array.max() >= len(self)):
            raise UserError(f"ids must be between 0 and {len(self) - 1}. Received: {array.min()} to {array.max()}")
        characters = self._code_points[array[array >= self.num_special] - self.num_special]
        return characters.astype("<u4").tobytes().decode("utf-32-le")

    def describe(self) -> str:
        """The characters in short, for messages: all, or the first forty."""
        characters = "".join(self.symbols[self.num_special :])
        if len(characters) <= 40:
            return repr(characters)
        return f"{len(characters)} characters, {characters[:40]!r} and more"


class Present:
    """Which characters a text has, gathered piece by piece."""

    def __init__(self) -> None:
        self._present = np.zeros(_CODE_POINTS, bool)
        self._ascii = b""

    def add(self, text: str) -> None:
        """Adds the characters of a piece."""
        if text.isascii():
            # what is known is left out at once, which is far quicker than to look at each character
            unknown = text.encode("ascii").translate(None, self._ascii)
            while unknown:
                first = bytes(set(unknown[:_BLOCK]))
                self._ascii += first
                unknown = unknown.translate(None, first)
            return
        for block in _code_points(text):
            if not self._present.take(block, mode="clip").all():  # to look is quicker than to write
                self._present[block] = True

    def code_points(self) -> list[int]:
        """Those of all characters so far, in order."""
        self._present[np.frombuffer(self._ascii, np.uint8)] = True
        return np.flatnonzero(self._present).tolist()


def is_symbol(symbol: str) -> bool:
    """Whether a vocabulary may have this: a special symbol, or a single character that is no lone surrogate."""
    return symbol in _SPECIAL or (len(symbol) == 1 and not 0xD800 <= ord(symbol) < 0xE000)


def _code_points(text: str) -> Iterator[npt.NDArray[np.uint32]]:
    """The code points of `text`, in blocks."""
    for start in range(0, len(text), _BLOCK):
        # a lone surrogate, as a command line can bring, is let through here to be named as unknown
        yield np.frombuffer(text[start : start + _BLOCK].encode("utf-32-le", "surrogatepass"), "<u4")
