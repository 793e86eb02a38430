r"""Converts between text and symbols: the characters of a text or, with `--encoding=bytes`, its UTF-8 bytes.

The symbol of a byte is the character with its number, as in Latin-1. So vocabularies, records and models treat bytes
like characters; only where text is given to a model or shown by it, is it converted. Bytes that are not valid UTF-8 are
shown escaped, as in `\xff`.
"""

from __future__ import annotations

import codecs
import re
from typing import TextIO

from tfcharrnn.config import BYTES
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import END, PAD, START

SPECIAL = (START, PAD, END)
# what a terminal acts upon, except for newlines and tabs
_TERMINAL_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_symbol(symbol: str) -> bool:
    """Returns whether a vocabulary can have a symbol: a special one, or a single character."""
    return symbol in SPECIAL or is_character(symbol)


def is_character(symbol: str) -> bool:
    """Returns whether a symbol is a single character and not a lone surrogate."""
    return len(symbol) == 1 and not 0xD800 <= ord(symbol) < 0xE000


def choose_codec(encoding: str) -> str:
    """Returns the codec that decodes a file in an encoding to symbols."""
    return "latin-1" if encoding == BYTES else encoding


def text_to_symbols(text: str, of_bytes: bool, name: str = "text") -> str:
    """Returns the symbols of a text, the inverse of `symbols_to_text` with `errors="surrogateescape"`.

    Args:
        text: the text; Python represents a byte of a command line that is not UTF-8 as a lone surrogate.
        of_bytes: whether symbols are bytes.
        name: the name of the text, for errors.

    Raises:
        UserError: the text has another lone surrogate, so it has no bytes.
    """
    if not of_bytes:
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: the lone surrogate {text[error.start]!r} is not valid text") from None


def symbols_to_text(symbols: str, of_bytes: bool, errors: str = "backslashreplace") -> str:
    """Returns the text of symbols.

    Args:
        symbols: the symbols.
        of_bytes: whether they are bytes.
        errors: Python's error handler for bytes that are not UTF-8.
    """
    return symbols.encode("latin-1").decode("utf-8", errors) if of_bytes else symbols


def symbols_to_bytes(symbols: str, of_bytes: bool) -> bytes:
    """Returns the bytes of symbols: as they are, or of characters in UTF-8."""
    return symbols.encode("latin-1" if of_bytes else "utf-8")


def escape_for(stream: TextIO, text: str) -> str:
    r"""Returns a text as it is written to a stream: for a terminal with control characters escaped, as in `\x1b`.

    A model writes whatever it has learned, and a terminal would act upon it. A file or pipe gets the text unchanged.
    """
    if not stream.isatty():
        return text
    return _TERMINAL_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def quote_symbols(symbols: str, of_bytes: bool) -> str:
    r"""Quotes symbols for a message: as text, or as in `b'\xff'` if they are bytes that are not UTF-8."""
    try:
        return repr(symbols_to_text(symbols, of_bytes, "strict"))
    except UnicodeDecodeError:
        return repr(symbols.encode("latin-1"))


def group_characters(symbols: str, of_bytes: bool) -> tuple[str, list[int]]:
    """Returns the characters of symbols, and the number of symbols of each.

    A byte that is not UTF-8 is a character of its own, U+DC00 plus its number.
    """
    if not of_bytes:
        return symbols, [1] * len(symbols)
    text = symbols_to_text(symbols, of_bytes, "surrogateescape")
    return text, [len(text_to_symbols(character, of_bytes)) for character in text]


class TextDecoder:
    """Decodes symbols that arrive in pieces, such as one byte of a character and then the others."""

    def __init__(self, of_bytes: bool):
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace") if of_bytes else None

    def decode(self, symbols: str, *, is_last: bool = False) -> str:
        """Returns the text of the next symbols; the bytes of an incomplete character wait for the rest of it.

        Args:
            symbols: the next symbols.
            is_last: whether no more will follow.
        """
        return self._decoder.decode(symbols.encode("latin-1"), is_last) if self._decoder else symbols
