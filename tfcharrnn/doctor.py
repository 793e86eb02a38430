"""Checks the device that this machine computes on, and says what is wrong with it and how to mend that.

Prints driver, libraries and versions, and then a table of checks, each passed, failed or not applicable:

every implementation of every cell (custom under XLA, Keras, cuDNN; float32, TF32, bfloat16) against the reference in
NumPy: losses, states and every gradient; with --cell_module its cells instead, by central differences;
every layout trains 20 steps; a run goes from the GPU to the CPU and back; and text is as it should be.

The last columns are what was measured, the memory at most (of the GPU, or of this process) and the seconds. Exit code 1:
a check failed, or there is a GPU that cannot be used; --device=cpu then checks the CPU alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from tfcharrnn import cli
from tfcharrnn.errors import UserError

if TYPE_CHECKING:
    from tfcharrnn.verification.device_checks import Check

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags, describes the device and checks it."""
    own_cells = cli.load_cells()
    cli.load_tensorflow()
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # it warns of functions that are traced often, as by many small checks
    from tfcharrnn.verification import device_checks, environment

    for name, text in environment.describe_environment():
        print(f"{name:<10} {text}", flush=True)
    problems = environment.find_problems() if _FLAGS.device != "cpu" else []
    for problem in problems:
        print(f"{'problem':<10} {problem}", flush=True)
    print(flush=True)
    failed = run_checks(device_checks.list_checks(own_cells))
    if failed or problems:
        what = [f"{len(failed)} checks failed: {', '.join(failed)}"] if failed else []
        raise UserError("; ".join([*what, *problems]))


def run_checks(checks: list[Check]) -> list[str]:
    """Runs checks and prints a row of the table for each; returns the names of those that failed."""
    from tfcharrnn.verification import device_checks

    width = max(len(check.name) for check in checks)
    print(f"{'check':<{width}}  {'result':<14}  {'MiB':>6}  {'s':>5}  measured", flush=True)
    counts: dict[str, int] = {}
    failed = []
    for check in checks:
        outcome = device_checks.run_check(check)
        numbers = f"{outcome.memory:>6,.0f}  {outcome.seconds:>5.1f}"
        print(f"{outcome.name:<{width}}  {outcome.result:<14}  {numbers}  {outcome.detail}", flush=True)
        counts[outcome.result] = counts.get(outcome.result, 0) + 1
        if outcome.result == "failed":
            failed.append(outcome.name)
    print("\n" + ", ".join(f"{number} {result}" for result, number in counts.items()), flush=True)
    return failed


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_cell_module_flag()
    cli.define_device_flag()


if __name__ == "__main__":
    cli.run_command(define_flags, main)
