"""Holds back what TensorFlow's libraries print as they start: about oneDNN, CUDA, XLA and their own logging."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

from tfcharrnn.errors import ConfigError

VERBOSITIES = ("info", "debug")
# TensorFlow's libraries read it once, when they are loaded; with 3 they are silent from then on
LEVEL_VARIABLE = "TF_CPP_MIN_LOG_LEVEL"
SILENT = "3"

_verbosity = "info"
# two threads that redirect one descriptor would restore it in the wrong order
_lock = threading.RLock()


def set_verbosity(level: str) -> None:
    """Sets whether TensorFlow's start-up notices are shown; to be called before anything else of `tfcharrnn` is used.

    Args:
        level: `debug` shows them. `info`, the default, does not, except where they are the caller's own: with
            `TF_CPP_MIN_LOG_LEVEL` set to less than 3, or with TensorFlow imported before.

    Raises:
        ConfigError: there is no such level.
    """
    global _verbosity
    if level not in VERBOSITIES:
        raise ConfigError(f"set_verbosity: the level must be one of {', '.join(VERBOSITIES)}. Received: {level!r}")
    _verbosity = level


@contextlib.contextmanager
def hold_notices() -> Iterator[None]:
    """Keeps the first import of TensorFlow silent, if the body imports it; otherwise changes nothing.

    Whatever else is written to file descriptor 2 during that import is lost as well. The environment is restored, so
    that other programs print what they always do.
    """
    is_shown = _verbosity == "debug" or os.environ.get(LEVEL_VARIABLE, SILENT) < SILENT
    if is_shown or "tensorflow" in sys.modules:
        yield
        return
    given = os.environ.get(LEVEL_VARIABLE)
    os.environ[LEVEL_VARIABLE] = SILENT
    try:
        with hold_stderr():
            yield
    finally:
        if given is None:
            del os.environ[LEVEL_VARIABLE]
        else:
            os.environ[LEVEL_VARIABLE] = given


@contextlib.contextmanager
def hold_stderr() -> Iterator[None]:
    """Buffers what is written to file descriptor 2; prints it if the body fails or does not import TensorFlow."""
    with _lock, contextlib.ExitStack() as stack:
        _flush()
        try:
            stderr = os.dup(2)
        except OSError:  # it is closed, so nothing can be printed
            yield
            return
        stack.callback(os.close, stderr)
        held = stack.enter_context(tempfile.TemporaryFile())
        os.dup2(held.fileno(), 2)
        is_done = False
        try:
            yield
            is_done = "tensorflow" in sys.modules
        finally:
            _flush()
            os.dup2(stderr, 2)
            if not is_done:
                held.seek(0)
                os.write(2, held.read())


def _flush() -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            sys.stderr.flush()
