"""Rendezvous of all workers before TensorFlow's own blocking wait.

While TensorFlow waits, it prints nothing, Python handles no signals, and a missing worker is noticed after an hour. The
workers therefore meet here first: the chief listens at its own address, the others connect, and when all are connected
the chief tells them to proceed to TensorFlow, which then uses the same addresses.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time
from collections.abc import Sequence

from tfcharrnn.errors import ConfigError, UserError

# seconds between connection attempts, and between messages on standard error
_RETRY_INTERVAL, _REPORT_INTERVAL = 0.3, 30.0
_PROCEED = b"tfcharrnn: go\n"


def wait_for_workers(addresses: Sequence[str], index: int, *, quiet: bool = False) -> None:
    """Blocks until every worker has called this.

    Args:
        addresses: `host:port` of every worker, the chief's first.
        index: index of this worker.
        quiet: print nothing.

    Raises:
        ConfigError: the chief's address is malformed, or its port cannot be opened.
        UserError: the chief is already training.
    """
    if len(addresses) == 1:
        return
    host, _, port = addresses[0].rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"TF_CONFIG: the address of the first worker must be host:port. Received: {addresses[0]}")
    reporter = _WaitReporter(f"worker {index} of {len(addresses)} at {addresses[index]}", quiet)
    if index == 0:
        _accept_workers(int(port), len(addresses), reporter)
    else:
        _connect_to_chief(host.strip("[]"), int(port), index, reporter)


class _WaitReporter:
    """Prints now and then which workers are missing."""

    def __init__(self, waiting_worker: str, quiet: bool):
        self._waiting_worker, self._quiet, self._next_report = waiting_worker, quiet, time.monotonic()

    def report(self, missing: str) -> None:
        if not self._quiet and time.monotonic() >= self._next_report:
            self._next_report = time.monotonic() + _REPORT_INTERVAL
            print(f"{self._waiting_worker} is waiting for {missing}", file=sys.stderr, flush=True)


def _accept_workers(port: int, num_workers: int, reporter: _WaitReporter) -> None:
    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise ConfigError(
            f"TF_CONFIG: cannot listen at port {port} ({error.strerror}); give the chief another port"
        ) from None
    connected: dict[int, socket.socket] = {}
    with server, selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        selector.register(server, selectors.EVENT_READ)
        while len(connected) < num_workers - 1:
            missing = ", ".join(str(index) for index in range(1, num_workers) if index not in connected)
            reporter.report(f"worker {missing}")
            for key, _ in selector.select(_RETRY_INTERVAL):
                if key.fileobj is server:
                    connection = stack.enter_context(server.accept()[0])
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj  # type: ignore[assignment]
                message = _receive(connection)
                index = int(message) if message.strip().isdigit() else 0
                if 0 < index < num_workers:
                    connected[index] = connection
                else:  # it has disconnected, or is not one of our workers
                    selector.unregister(connection)
                    connected = {other: its for other, its in connected.items() if its is not connection}
        for connection in connected.values():
            with contextlib.suppress(OSError):  # it has just disconnected, which TensorFlow will notice
                connection.sendall(_PROCEED)


def _connect_to_chief(host: str, port: int, index: int, reporter: _WaitReporter) -> None:
    while True:
        reporter.report("the others")
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(b"%d\n" % index)
            connection.settimeout(_RETRY_INTERVAL)
            while True:
                reporter.report("the others")
                try:
                    message = connection.recv(64)
                except TimeoutError:
                    continue
                if message == _PROCEED:
                    return
                if message:
                    raise UserError(
                        f"worker 0 at {host}:{port} is already training without worker {index}; stop all workers, and "
                        "start them again with --resume"
                    )
                break
        time.sleep(_RETRY_INTERVAL)


def _receive(connection: socket.socket) -> bytes:
    """Returns what a worker sent; nothing if it has disconnected."""
    try:
        return connection.recv(64)
    except OSError:
        return b""
