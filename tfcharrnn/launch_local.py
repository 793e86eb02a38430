"""Starts several workers of one training run on this machine, as a cluster would on many.

python -m tfcharrnn.launch_local --workers=2 -- python -m tfcharrnn.train --strategy=multi_worker --run_dir=runs/two

Each gets a `TF_CONFIG` with a free port of this machine for every worker; what they print comes out with the worker's
number before it; SIGINT (Ctrl-C), SIGTERM and SIGHUP go on to all of them. The exit code is that of the first worker
that failed, or 0; 128 + N of one that signal N ended. If one fails, the others have a minute to end by themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

from absl import app, flags

_FLAGS = flags.FLAGS
# seconds that the other workers have to end, and then again, until they are made to
_PATIENCE = 60.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def configurations(count: int) -> list[str]:
    """The `TF_CONFIG` of each of so many workers on free ports of this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]  # all open at once, so all different
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        cluster = {"worker": [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]}
    return [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in range(count)]


def launch(command: Sequence[str], count: int) -> int:
    """Runs a command so many times side by side; returns the exit code when all have ended."""
    workers = []
    for config in configurations(count):
        environment = {**os.environ, "TF_CONFIG": config, "PYTHONUNBUFFERED": "1"}
        pipe = subprocess.PIPE
        # in sessions of their own, so that a Ctrl-C at the terminal reaches them once: through us
        try:
            workers.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, start_new_session=True))
        except OSError as error:
            sys.exit(f"launch_local: {command[0]}: cannot be started ({error.strerror})")

    def forward(number: int, _: FrameType | None) -> None:
        for worker in workers:
            worker.send_signal(number)

    for number in _SIGNALS:
        signal.signal(number, forward)
    threads = []
    for index, worker in enumerate(workers):
        for source, sink in ((worker.stdout, sys.stdout.buffer), (worker.stderr, sys.stderr.buffer)):
            threads.append(threading.Thread(target=_prefix, args=(f"[{index}] ".encode(), source, sink)))
            threads[-1].start()
    failed, since = 0, 0.0
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.05)
        failed = failed or _failure(workers)
        since = since or (time.monotonic() if failed else 0.0)
        for patience, number in ((_PATIENCE, signal.SIGTERM), (2 * _PATIENCE, signal.SIGKILL)):
            if failed and time.monotonic() - since > patience:
                forward(number, None)
    for thread in threads:
        thread.join()
    failed = failed or _failure(workers)
    return failed if failed >= 0 else 128 - failed


def _failure(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """The code of a worker that has failed, first of one that a signal ended; 0: none has."""
    return min((worker.returncode for worker in workers if worker.returncode), default=0)


def _prefix(prefix: bytes, source: IO[bytes], sink: IO[bytes]) -> None:
    for line in source:
        with contextlib.suppress(OSError):  # nobody may read it any more, but the worker must not have to wait
            sink.write(prefix + line)
            sink.flush()


def main(argv: Sequence[str]) -> None:
    """Reads the flags and launches."""
    if len(argv) < 2:
        raise app.UsageError("name the command after --, such as python -m tfcharrnn.train --strategy=multi_worker")
    sys.exit(launch(argv[1:], _FLAGS.workers))


if __name__ == "__main__":
    flags.DEFINE_integer("workers", 2, "How many.", lower_bound=1)
    app.run(main)
