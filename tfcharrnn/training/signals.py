"""Ending a training run early without losing it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interruption:
    """While it is entered, the first SIGINT (Ctrl-C), SIGTERM or SIGHUP is only noted, to end at a good place.

    A second SIGINT acts as usual and stops at once. Outside the main thread, where Python allows no signal handlers,
    it does nothing.

    Attributes:
        requested: a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, b"stopping, with a checkpoint; Ctrl-C again stops at once\n")  # safe in a handler
