"""Errors that the user can fix, each reported in one line."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

# line ends, terminal controls and surrogates, which a folder name or a damaged file may contain
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# the graph location in a TensorFlow error
_PLACE = re.compile(r"\{\{.*?\}\}\s*")
_SHORT, _LONG, _LONGEST = 200, 500, 2000
_PACKAGE = Path(__file__).parent
# how this process was started, to name other commands in the same way
_command_prefix = "python -m tfcharrnn."


class UserError(Exception):
    """A task that failed; the message says what failed, where, and how to fix it.

    The commands print only the message, without a traceback, and exit with code 1.
    """

    def __init__(self, message: str):
        """Escapes control characters, line ends and surrogates in the message, and shortens a very long one."""
        message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], message)
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        super().__init__(message)


def first_line(error: BaseException) -> str:
    """Returns the first line of another library's error, or its type name if the message is empty."""
    line = (_PLACE.sub("", str(error)).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= _LONG else line[:_LONG] + "..."


def shorten(value: Any) -> str:
    """Returns the repr of an untrusted value, shortened where it is long."""
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number with too many digits
        shown = f"a {type(value).__name__}"
    return shown if len(shown) <= _SHORT else f"{shown[:_SHORT]}... ({len(shown)} characters)"


class ConfigError(UserError):
    """A setting with an invalid value; the message starts with the flag's name.

    The commands exit with code 2 when it comes from the command line.
    """


class CellError(UserError, TypeError):
    """A cell whose code does not do what a cell must; the message names its class."""


def find_place(error: BaseException) -> str:
    """Finds where in a user's code an error arose: `FILE, line N`, or "" if it arose elsewhere.

    That is the innermost line of the first module outside this package, or of one beside it, that the traceback visits.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shorten_path(error.filename)}, line {error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != importlib.__file__
        and not frame.filename.startswith("<frozen")
        and not Path(frame.filename).is_relative_to(_PACKAGE)
    ]
    if not frames:
        return ""
    folder = Path(frames[0].filename).parent
    place = [frame for frame in frames if Path(frame.filename).parent == folder][-1]
    return f"{_shorten_path(place.filename)}, line {place.lineno}"


def _shorten_path(path: str) -> str:
    """Returns a path relative to the working directory if it is in it."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def set_command_prefix(prefix: str) -> None:
    """Sets what `command_line` puts in front of a command's name."""
    global _command_prefix
    _command_prefix = prefix


def command_line(command: str) -> str:
    """Returns how to start a command, for a message: `python -m tfcharrnn.train` or `tfcharrnn train`."""
    return _command_prefix + command


def warn(message: str) -> None:
    """Prints a warning in one line on standard error."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
