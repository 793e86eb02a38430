"""Signals that end a training run early, after a checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

from tfcharrnn.portability import STOP_SIGNALS


class StopSignals:
    """A context in which the first SIGINT (Ctrl-C), SIGTERM or SIGHUP only sets `requested`.

    A second SIGINT raises KeyboardInterrupt as usual. Outside the main thread, where Python allows no signal handlers,
    the context does nothing.

    Attributes:
        requested: a signal has arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, b"stopping after a checkpoint; press Ctrl-C again to stop at once\n")  # safe in a handler
