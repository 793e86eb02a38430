"""Runs commands as forks of a process that has imported TensorFlow, and nothing of this package, beforehand.

Each line of standard input is a request of `commands.py`; each line of standard output answers with an exit code.
"""

import json
import os
import runpy
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow  # noqa: F401 - starts no thread of its own until it is used


def serve():
    """Answers requests; returns, in the fork that is to run it, the request."""
    for line in sys.stdin:
        if not (child := os.fork()):
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def become(request):
    """Takes on the folder, environment and streams that the request names."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for stream, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(path, os.O_RDWR), stream)
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["arguments"]


if __name__ == "__main__":
    command = serve()
    become(command)
    runpy.run_module(command["module"], run_name="__main__", alter_sys=True)
