"""Runs commands, each in a process of its own, without waiting for TensorFlow's import each time."""

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

from paths import TESTS


@functools.cache
def _start_server(process):
    """Starts a server for this process."""
    server = subprocess.Popen(
        [sys.executable, TESTS / "command_server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    atexit.register(os.killpg, server.pid, 9)
    return server


def run(command, *arguments, cwd, env=None, text=False, timeout=300):
    """Runs a command like `subprocess.run([sys.executable, "-m", f"tfcharrnn.{command}", ...], capture_output=True)`.

    Args:
        command: its name.
        *arguments: its arguments.
        cwd: the folder to run it in.
        env: environment variables to set beside those of this process. What Python reads when it starts, such as
            PYTHONUTF8 and LC_ALL, has no effect.
        text: whether to return what it prints as strings.
        timeout: seconds until it is killed.
    """
    server = _start_server(os.getpid())
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        for stream in streams:
            stream.touch()
        request = {
            "module": f"tfcharrnn.{command}",
            "arguments": [os.fsdecode(part) if isinstance(part, bytes) else str(part) for part in arguments],
            "cwd": str(cwd),
            "env": {**os.environ, **(env or {})},
            "stdout": str(streams[0]),
            "stderr": str(streams[1]),
        }
        print(json.dumps(request), file=server.stdin, flush=True)
        if not select.select([server.stdout], [], [], timeout)[0]:
            os.killpg(server.pid, 9)
            _start_server.cache_clear()
            raise subprocess.TimeoutExpired(command, timeout)
        code = int(server.stdout.readline())
        printed = [stream.read_bytes().decode() if text else stream.read_bytes() for stream in streams]
    return subprocess.CompletedProcess([command, *arguments], code, *printed)
