"""Runs the workers of one training run as processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

from tfcharrnn.distributed.membership import TOKEN_VARIABLE
from tfcharrnn.errors import UserError
from tfcharrnn.portability import STOP_SIGNALS

# After a worker fails, the others have this many seconds to end; then they get SIGTERM, and once more later SIGKILL.
_GRACE_SECONDS = 60.0


def make_tf_configs(count: int) -> list[str]:
    """Returns the `TF_CONFIG` of each of `count` workers on free ports of this machine."""
    with contextlib.ExitStack() as stack:
        # all open at the same time, so that all ports differ
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        cluster = {"worker": [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]}
    return [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in range(count)]


def run_workers(command: Sequence[str], count: int) -> int:
    """Runs `count` processes of a command side by side, each with its own `TF_CONFIG`.

    Their output is printed with the worker's index in front, and signals are forwarded to them.

    Returns:
        When all have ended, the exit code of the first worker that failed, or 0; 128 + N if signal N ended it.

    Raises:
        UserError: the command cannot be started.
    """
    workers = []
    token = os.environ.get(TOKEN_VARIABLE) or secrets.token_hex(32)
    for config in make_tf_configs(count):
        environment = {**os.environ, "TF_CONFIG": config, TOKEN_VARIABLE: token, "PYTHONUNBUFFERED": "1"}
        pipe = subprocess.PIPE
        try:
            # in a session of its own, so that Ctrl-C in the terminal reaches it only once, through `forward`
            workers.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, start_new_session=True))
        except OSError as error:
            raise UserError(f"{command[0]}: cannot be started ({error.strerror})") from None

    def forward(number: int, _: FrameType | None) -> None:
        for worker in workers:
            worker.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, forward)
    threads = []
    for index, worker in enumerate(workers):
        for source, sink in ((worker.stdout, sys.stdout.buffer), (worker.stderr, sys.stderr.buffer)):
            threads.append(threading.Thread(target=_copy_lines, args=(f"[{index}] ".encode(), source, sink)))
            threads[-1].start()
    exit_code, failed_at = 0, 0.0
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.05)
        exit_code = exit_code or _find_failure(workers)
        failed_at = failed_at or (time.monotonic() if exit_code else 0.0)
        for seconds, number in ((_GRACE_SECONDS, signal.SIGTERM), (2 * _GRACE_SECONDS, signal.SIGKILL)):
            if exit_code and time.monotonic() - failed_at > seconds:
                forward(number, None)
    for thread in threads:
        thread.join()
    exit_code = exit_code or _find_failure(workers)
    return exit_code if exit_code >= 0 else 128 - exit_code


def _find_failure(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """Returns the code of a worker that failed, preferably one ended by a signal; 0 if none failed."""
    return min((worker.returncode for worker in workers if worker.returncode), default=0)


def _copy_lines(prefix: bytes, source: IO[bytes], sink: IO[bytes]) -> None:
    for line in source:
        with contextlib.suppress(OSError):  # if the reader is gone, keep reading so that the worker does not block
            sink.write(prefix + line)
            sink.flush()
