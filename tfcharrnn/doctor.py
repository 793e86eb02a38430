"""Checks the device that this machine computes on, and says what is wrong with it and how to mend that.

Prints driver, libraries and versions, and then a table of checks, each passed, failed or not applicable:

every implementation of every cell (custom under XLA, Keras, cuDNN; float32, TF32, bfloat16) against the reference
in NumPy: losses, states and every gradient; with --cell_module its cells instead, by central differences;
every layout trains 20 steps; a run goes from the GPU to the CPU and back; and text is as it should be.

A row has the memory at most (of the GPU, or of this process), the seconds, and what was measured. Exit code 1: a check
failed, or there is a GPU that cannot be used; --device=cpu then checks the CPU alone.

--bench measures instead, as a Markdown table: training and sampling in every implementation and type of products, also
PyTorch's if it is installed, at batches that double until the throughput no longer grows. That takes many minutes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from tfcharrnn import cli, files
from tfcharrnn.errors import ConfigError, UserError

if TYPE_CHECKING:
    from tfcharrnn.verification.device_checks import Check

_FLAGS = flags.FLAGS
_BENCH_ROWS = ("A", "B", "C", "D", "E", "I", "J", "K", "L")


def main() -> None:
    """Reads the flags, describes the device and checks it."""
    for row in _FLAGS.bench_rows:
        if row not in _BENCH_ROWS:
            raise ConfigError(f"--bench_rows: {row!r} is not one of {', '.join(_BENCH_ROWS)}")
    if _FLAGS.json and not _FLAGS.bench:
        raise ConfigError("--json: is for --bench")
    own_cells = cli.load_cells()
    cli.load_tensorflow()
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # it warns of functions that are traced often, as by many small checks
    from tfcharrnn.verification import device_checks, environment

    described = environment.describe_environment()
    for name, text in described:
        print(f"{name:<10} {text}", flush=True)
    problems = environment.find_problems() if _FLAGS.device != "cpu" else []
    for problem in problems:
        print(f"{'problem':<10} {problem}", flush=True)
    print(flush=True)
    if _FLAGS.bench:
        run_benchmark(described)
        return
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


def run_benchmark(described: list[tuple[str, str]]) -> None:
    """Measures the rows of `--bench_rows`, prints them, and writes them to `--json`.

    Args:
        described: the environment, for the file.
    """
    from tfcharrnn.verification import device_bench

    rates = device_bench.measure_product_rates()
    limits = ", ".join(f"{precision} {rate / 1e9:,.0f}" for precision, rate in rates.items())
    print(f"Large products, the limit, in GFLOP/s: {limits}.\n\n{device_bench.format_head()}", flush=True)
    results = []
    for name in _FLAGS.bench_rows:
        for result in device_bench.measure_row(device_bench.find_row(name), rates):
            print(device_bench.format_row(result), flush=True)
            results.append(dataclasses.asdict(result))
    if _FLAGS.json:
        report = {"environment": dict(described), "limits": rates, "results": results}
        files.write_json(Path(_FLAGS.json), report)


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_bool("bench", False, "Measure instead of checking.")
    flags.DEFINE_list("bench_rows", list(_BENCH_ROWS), "Rows of tools/bench.py to measure.")
    flags.DEFINE_string("json", "", "A file for the measurements of --bench, as JSON.")
    cli.define_cell_module_flag()
    cli.define_device_flag()


if __name__ == "__main__":
    cli.run_command(define_flags, main)
