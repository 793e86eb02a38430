"""Rendezvous of all workers before TensorFlow's own blocking wait.

While TensorFlow waits, it prints nothing, and a missing worker is noticed after an hour. The workers therefore meet
here first: the chief listens at its own address, and the others connect. Both sides prove that they know the token of
`membership`, and the chief compares everybody's settings with its own. When all are connected and agree, it tells them
to proceed to TensorFlow, which then uses the same addresses.

    worker: tfcharrnn hello INDEX NONCE
    chief:  tfcharrnn NONCE PROOF                 (HMAC of both nonces)
    worker: tfcharrnn PROOF SETTINGS              (HMAC of both nonces and the settings, JSON)
    chief:  tfcharrnn PROOF VERDICT               (HMAC of both nonces and the verdict, JSON: "" or what differs)
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfcharrnn.distributed import membership
from tfcharrnn.errors import ConfigError, UserError, shorten

Settings = dict[str, Any]

# seconds between connection attempts, and between messages on standard error
_RETRY_INTERVAL, _REPORT_INTERVAL = 0.3, 30.0
# default of --rendezvous_timeout
TIMEOUT = 600.0
# seconds in which whoever connects must prove to be a worker; how many may be about to; and the longest line
_PROOF_SECONDS, _MAX_STRANGERS, _MAX_LINE = 10.0, 64, 2**20
_MAGIC = b"tfcharrnn "


def wait_for_workers(
    addresses: Sequence[str],
    index: int,
    *,
    settings: Settings | None = None,
    run_dir: Path | None = None,
    timeout: float = TIMEOUT,
    quiet: bool = False,
) -> None:
    """Blocks until every worker has called this.

    Args:
        addresses: `host:port` of every worker, the chief's first.
        index: index of this worker.
        settings: JSON-compatible values that must be the same on all workers, by the names of their flags.
        run_dir: a folder that all workers share, for the token; None: only the environment may have one.
        timeout: seconds to wait.
        quiet: print nothing.

    Raises:
        ConfigError: an address is malformed, or the chief's cannot be listened at.
        UserError: a worker has other settings or is missing after `timeout`, or the chief is already training.
    """
    (host, port), *_ = map(membership.parse_address, addresses)
    if len(addresses) == 1:
        return
    wait = _Wait(f"worker {index} of {len(addresses)} at {addresses[index]}", timeout, quiet)
    settings = {} if settings is None else settings
    if index:
        _connect_to_chief(host, port, index, settings, run_dir, wait)
        return
    if not quiet:
        membership.warn_if_public(addresses)
    with membership.share_token(run_dir) as token:
        _accept_workers(host, port, len(addresses), token, settings, wait)


class _Wait:
    """Prints now and then what a worker is waiting for, until its time is over."""

    def __init__(self, worker: str, timeout: float, quiet: bool):
        self._worker, self._timeout, self._quiet = worker, timeout, quiet
        self._next_report = time.monotonic()
        self._end = self._next_report + timeout

    def report(self, missing: str) -> None:
        """Prints what is missing if that is due.

        Raises:
            UserError: the time is over.
        """
        now = time.monotonic()
        if now >= self._end:
            raise UserError(
                f"{self._worker} waited {self._timeout:g} s for {missing}; start all workers with the same TF_CONFIG "
                "cluster, --strategy=multi_worker and --run_dir, or set a longer --rendezvous_timeout"
            )
        if not self._quiet and now >= self._next_report:
            self._next_report = now + _REPORT_INTERVAL
            print(f"{self._worker} is waiting for {missing}", file=sys.stderr, flush=True)


class _Visitor:
    """A connection to the chief, of a worker or of a stranger.

    Attributes:
        connection: the socket.
        index: the worker's index; 0: not proved yet.
        settings: the worker's settings.
    """

    def __init__(self, connection: socket.socket, token: bytes, num_workers: int):
        self.connection, self.index = connection, 0
        self.settings: Settings = {}
        self._token, self._num_workers = token, num_workers
        self._received, self._deadline = b"", time.monotonic() + _PROOF_SECONDS
        self._identity: tuple[str, ...] = ()
        connection.settimeout(_PROOF_SECONDS)

    @property
    def is_late(self) -> bool:
        """Whether the time to prove to be a worker is over."""
        return not self.index and time.monotonic() > self._deadline

    def receive(self) -> bool:
        """Takes what has arrived; returns whether the visitor may stay."""
        try:
            data = self.connection.recv(2**16)
            self._received += data
            while b"\n" in self._received:
                line, self._received = self._received.split(b"\n", 1)
                self._take_line(line.decode("ascii"))
            return bool(data) and len(self._received) <= _MAX_LINE
        except (OSError, ValueError, RecursionError):
            return False

    def _take_line(self, line: str) -> None:
        """Takes a line.

        Raises:
            OSError: the visitor has disconnected.
            ValueError, RecursionError: it is no worker.
        """
        if not self._identity:
            _, hello, index, nonce = line.split(" ")
            if hello != "hello" or not 0 < int(index) < self._num_workers:
                raise ValueError("no such worker")
            own_nonce = membership.make_nonce()
            self._identity = (str(int(index)), nonce, own_nonce)
            self._send(own_nonce, membership.sign(self._token, "chief", *self._identity))
        elif not self.index:
            _, proof, payload = line.split(" ", 2)
            if not membership.is_signed(proof, self._token, "worker", *self._identity, payload):
                raise ValueError("another token")
            self.settings = dict(json.loads(payload))
            self.index = int(self._identity[0])
        else:
            raise ValueError("a worker has nothing more to say")

    def dismiss(self, verdict: str) -> None:
        """Tells the worker to proceed (""), or what is wrong."""
        payload = json.dumps(verdict)
        with contextlib.suppress(OSError):  # it has just disconnected, which TensorFlow will notice
            self._send(membership.sign(self._token, "verdict", *self._identity, payload), payload)

    def _send(self, *parts: str) -> None:
        self.connection.sendall(_MAGIC + " ".join(parts).encode() + b"\n")


def _accept_workers(host: str, port: int, num_workers: int, token: bytes, settings: Settings, wait: _Wait) -> None:
    visitors: list[_Visitor] = []
    with (
        _listen(host, port, token, wait) as server,
        selectors.DefaultSelector() as selector,
        contextlib.ExitStack() as stack,
    ):
        selector.register(server, selectors.EVENT_READ)
        while len(workers := {visitor.index: visitor for visitor in visitors if visitor.index}) < num_workers - 1:
            missing = ", ".join(str(index) for index in range(1, num_workers) if index not in workers)
            wait.report(f"worker {missing}")
            for key, _ in selector.select(_RETRY_INTERVAL):
                if key.fileobj is server:
                    connection = stack.enter_context(server.accept()[0])
                    visitors.append(_Visitor(connection, token, num_workers))
                    selector.register(connection, selectors.EVENT_READ, visitors[-1])
                elif not key.data.receive():
                    _turn_away(key.data, visitors, selector)
            strangers = [visitor for visitor in visitors if not visitor.index]
            for number, visitor in enumerate(reversed(strangers)):
                if visitor.is_late or number >= _MAX_STRANGERS:
                    _turn_away(visitor, visitors, selector)
        verdict = _compare_settings(settings, {index: workers[index].settings for index in sorted(workers)})
        for visitor in workers.values():
            visitor.dismiss(verdict)
    if verdict:
        raise UserError(verdict)


def _turn_away(visitor: _Visitor, visitors: list[_Visitor], selector: selectors.BaseSelector) -> None:
    selector.unregister(visitor.connection)
    visitor.connection.close()
    visitors.remove(visitor)


def _listen(host: str, port: int, token: bytes, wait: _Wait) -> socket.socket:
    """Listens at the address of the chief.

    Raises:
        ConfigError: it is not an address of this machine, its port is in use, or it needs a token.
        UserError: its name is still unknown after the time to wait.
    """
    while True:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            break
        except (OSError, UnicodeError):  # the name of a machine that is just starting may not be known yet
            wait.report(f"the address of {host}, which is unknown")
            time.sleep(_RETRY_INTERVAL)
    if not token and not membership.is_loopback(str(address[0])):
        raise ConfigError(
            f"TF_CONFIG: worker 0 at {host}:{port} can be reached by others; set {membership.TOKEN_VARIABLE} to the "
            "same secret for each worker"
        )
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ConfigError(
            f"TF_CONFIG: cannot listen at port {port} of {host} ({error.strerror}); give the chief another port, and "
            "an address of its machine"
        ) from None


def _compare_settings(settings: Settings, of_workers: dict[int, Settings]) -> str:
    """Returns the first setting of another worker that differs from the chief's, as an error message; "": none."""
    for index, others in of_workers.items():
        for name in {**settings, **others}:
            own, other = settings.get(name), others.get(name)
            if own != other:
                return (
                    f"--{name}: worker {index} has {shorten(other)}, and worker 0 has {shorten(own)}; start all "
                    "workers with the same flags"
                )
    return ""


def _connect_to_chief(host: str, port: int, index: int, settings: Settings, run_dir: Path | None, wait: _Wait) -> None:
    missing = f"worker 0 at {host}:{port}"
    while True:
        wait.report(missing)
        with (
            contextlib.suppress(OSError, UnicodeError),
            socket.create_connection((host, port), timeout=5) as connection,
        ):
            chief = _Chief(connection, index, f"worker 0 at {host}:{port}", wait)
            if token := chief.find_token(run_dir):
                chief.wait_for_verdict(token[0], settings)
                return
            missing = f"worker 0 at {host}:{port}, which has another token"
        time.sleep(_RETRY_INTERVAL)


class _Chief:
    """A worker's connection to the chief, or to whoever listens there."""

    def __init__(self, connection: socket.socket, index: int, name: str, wait: _Wait):
        self._connection, self._index, self._name, self._wait = connection, index, name, wait
        self._received = b""
        self._identity: tuple[str, ...] = ()
        connection.settimeout(_RETRY_INTERVAL)

    def find_token(self, run_dir: Path | None) -> tuple[bytes] | None:
        """Greets the chief, and returns the token that both know; None: the chief has another."""
        nonce = membership.make_nonce()
        self._send("hello", str(self._index), nonce)
        chief_nonce, proof = self._receive(2)
        self._identity = (str(self._index), nonce, chief_nonce)
        token = membership.read_token(run_dir)
        if token is None or not membership.is_signed(proof, token, "chief", *self._identity):
            return None
        return (token,)

    def wait_for_verdict(self, token: bytes, settings: Settings) -> None:
        """Sends the settings and waits until all workers are there.

        Raises:
            OSError: the chief has gone.
            UserError: the settings of a worker differ from the chief's.
        """
        payload = json.dumps(settings)
        self._send(membership.sign(token, "worker", *self._identity, payload), payload)
        proof, payload = self._receive(2)
        if not membership.is_signed(proof, token, "verdict", *self._identity, payload):
            raise ConnectionError("not the chief's verdict")
        if verdict := json.loads(payload):
            raise UserError(verdict)

    def _send(self, *parts: str) -> None:
        self._connection.sendall(_MAGIC + " ".join(parts).encode() + b"\n")

    def _receive(self, num_parts: int) -> list[str]:
        """Waits for a line of the chief; returns its parts.

        Raises:
            OSError: the chief has gone.
            UserError: TensorFlow already listens there.
        """
        while b"\n" not in self._received:
            self._wait.report(f"{self._name} and the others")
            with contextlib.suppress(TimeoutError):
                data = self._connection.recv(2**16)
                self._received += data
                if not data or len(self._received) > _MAX_LINE:
                    raise ConnectionError("no answer")
            if self._received[: len(_MAGIC)] != _MAGIC[: len(self._received)]:
                raise UserError(
                    f"{self._name} is already training without worker {self._index}; stop all workers, and start them "
                    "again with --resume"
                )
        line, self._received = self._received.split(b"\n", 1)
        parts = line.decode("ascii", "replace").split(" ", num_parts)[1:]
        if len(parts) < num_parts:
            raise ConnectionError("not an answer of the chief")
        return parts
