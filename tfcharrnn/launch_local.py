"""Starts several workers of one training run on this machine.

python -m tfcharrnn.launch_local --workers=2 -- python -m tfcharrnn.train --strategy=multi_worker --run_dir=runs/two

Each worker gets a `TF_CONFIG` with free ports of this machine, as in a cluster of many machines. Its output is printed
with its index in front. SIGINT (Ctrl-C), SIGTERM and SIGHUP are forwarded to all workers. The exit code is that of the
first worker that failed, or 0; 128 + N if signal N ended it. When a worker fails, the others have a minute to end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from tfcharrnn import cli
from tfcharrnn.distributed import local_workers
from tfcharrnn.errors import UserError, command_line

_FLAGS = flags.FLAGS


def main(command: Sequence[str]) -> None:
    """Runs a command as several workers and exits with their exit code."""
    if not command:
        train = f"{command_line('train')} --strategy=multi_worker"
        raise UserError(f"the command of the workers is missing: name it after --, as in -- {train}")
    sys.exit(local_workers.run_workers(command, _FLAGS.workers))


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_integer("workers", 2, "Number of workers.", lower_bound=1)


if __name__ == "__main__":
    cli.run_command(define_flags, main, takes_arguments=True)
