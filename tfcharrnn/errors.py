"""The errors that a user can mend, each told in one line."""

from __future__ import annotations

import re
import sys
from typing import Any

# what ends a line, steers a terminal or is no text, as the name of a folder or a damaged file may hold it
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# where in a graph TensorFlow met an error
_PLACE = re.compile(r"\{\{.*?\}\}\s*")
_SHORT, _LONG, _LONGEST = 200, 500, 2000


class UserError(Exception):
    """A job that could not be done; the message says what, where and how to mend it.

    The commands print the message alone, without a traceback, and exit with code 1.
    """

    def __init__(self, message: str):
        """Takes the message; control characters in it, line ends too, and surrogates are written as escapes.

        Of a message that a damaged file made endless, the middle is left out.
        """
        message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], message)
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        super().__init__(message)


def first_line(error: BaseException) -> str:
    """What an error from elsewhere says, in one line: its first, or its kind if it says nothing."""
    line = (_PLACE.sub("", str(error)).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= _LONG else line[:_LONG] + "..."


def short(value: Any) -> str:
    """A value from elsewhere as Python writes it, cut where it is long."""
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        shown = f"a {type(value).__name__}"
    return shown if len(shown) <= _SHORT else f"{shown[:_SHORT]}... ({len(shown)} characters)"


class ConfigError(UserError):
    """A setting whose value is not allowed; the message begins with the flag's name.

    The commands exit with code 2 when it comes from the command line.
    """


def warn(message: str) -> None:
    """Tells the person at the terminal, in one line on standard error, of something that does not stop the work."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
