"""Waiting for the other workers, before TensorFlow does.

TensorFlow waits where Python hears no signal, without a word, and for a worker that will never come for an hour. So the
workers first meet here: the chief listens at its own address, the others call there, and when all are on the line it
lets them go on to TensorFlow, which then listens at the same addresses.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time
from collections.abc import Sequence

from tfcharrnn.errors import ConfigError, UserError

# How often a call is tried again, and how often the person at the terminal is told, in seconds.
_AGAIN, _SAY_EVERY = 0.3, 30.0
_GO = b"tfcharrnn: go\n"


def meet(addresses: Sequence[str], index: int, *, quiet: bool = False) -> None:
    """Returns when all workers have called this, however long that takes.

    Args:
        addresses: of all workers, `host:port`, the chief's first.
        index: which of them this one is.
        quiet: say nothing.

    Raises:
        ConfigError: the chief's address is none, or not one of this machine.
        UserError: the chief is at work already.
    """
    if len(addresses) == 1:
        return
    host, _, port = addresses[0].rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"TF_CONFIG: the address of the first worker must be host:port. Received: {addresses[0]}")
    waiting = _Waiting(f"worker {index} of {len(addresses)} at {addresses[index]}", quiet)
    if index == 0:
        _listen(int(port), len(addresses), waiting)
    else:
        _call(host.strip("[]"), int(port), index, waiting)


class _Waiting:
    """Says now and then that others are waited for."""

    def __init__(self, who: str, quiet: bool):
        self._who, self._quiet, self._next = who, quiet, time.monotonic()

    def say(self, for_whom: str) -> None:
        if not self._quiet and time.monotonic() >= self._next:
            self._next = time.monotonic() + _SAY_EVERY
            print(f"{self._who} waits for {for_whom}", file=sys.stderr, flush=True)


def _listen(port: int, count: int, waiting: _Waiting) -> None:
    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise ConfigError(
            f"TF_CONFIG: cannot listen at port {port} ({error.strerror}); give the chief another"
        ) from None
    here: dict[int, socket.socket] = {}
    with server, selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        selector.register(server, selectors.EVENT_READ)
        while len(here) < count - 1:
            missing = ", ".join(str(index) for index in range(1, count) if index not in here)
            waiting.say(f"worker {missing}")
            for key, _ in selector.select(_AGAIN):
                if key.fileobj is server:
                    line = stack.enter_context(server.accept()[0])
                    selector.register(line, selectors.EVENT_READ)
                    continue
                line = key.fileobj  # type: ignore[assignment]
                said = _received(line)
                index = int(said) if said.strip().isdigit() else 0
                if 0 < index < count:
                    here[index] = line
                else:  # it has hung up, or was somebody else
                    selector.unregister(line)
                    here = {other: its for other, its in here.items() if its is not line}
        for line in here.values():
            with contextlib.suppress(OSError):  # it has gone this moment; TensorFlow will notice
                line.sendall(_GO)


def _call(host: str, port: int, index: int, waiting: _Waiting) -> None:
    while True:
        waiting.say("the others")
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as line:
            line.sendall(b"%d\n" % index)
            line.settimeout(_AGAIN)
            while True:
                waiting.say("the others")
                try:
                    said = line.recv(64)
                except TimeoutError:
                    continue
                if said == _GO:
                    return
                if said:
                    raise UserError(
                        f"worker 0 at {host}:{port} is at work already, without worker {index}; stop all of them, and "
                        "start them again with --resume"
                    )
                break
        time.sleep(_AGAIN)


def _received(line: socket.socket) -> bytes:
    try:
        return line.recv(64)
    except OSError:
        return b""
