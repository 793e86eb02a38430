"""Starts several workers of one training run on this machine, as a cluster would on many.

python tools/launch_local.py --workers=2 -- python -m tfcharrnn.train --strategy=multi_worker --run_dir=runs/two

Each gets a `TF_CONFIG` with a free port of this machine for every worker; what they print comes out with the worker's
number before it; SIGINT (Ctrl-C), SIGTERM and SIGHUP go on to all of them. The exit code is that of the first worker
that failed, or 0; 128 + N of one that signal N ended.
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
from collections.abc import Sequence
from types import FrameType
from typing import IO

from absl import app, flags

_FLAGS = flags.FLAGS
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
        workers.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, start_new_session=True))

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
    ended: list[int] = []
    watchers = [threading.Thread(target=lambda worker=worker: ended.append(worker.wait())) for worker in workers]
    for thread in watchers:
        thread.start()
    for thread in (*threads, *watchers):
        thread.join()
    failed = next((code for code in ended if code), 0)
    return failed if failed >= 0 else 128 - failed


def _prefix(prefix: bytes, source: IO[bytes], sink: IO[bytes]) -> None:
    for line in source:
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
