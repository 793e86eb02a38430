"""Benchmarks training and generation against the libraries that people would use instead.

python tools/bench.py --rows=A,B,C --peers=pytorch,jax_scan --rounds=7

Each library runs in its own process. The processes take turns, one call at a time, so that whatever slows the machine
down slows all of them; medians are compared. Prints a Markdown table.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags
from peers.work import ALL, Training, Work

from tfcharrnn import cli
from tfcharrnn.errors import ConfigError, UserError

_FLAGS = flags.FLAGS
PEERS = ("keras_layers", "pytorch", "jax_scan", "eager", "numpy_loop")
# a round repeats short calls for this many seconds
_SECONDS_PER_ROUND = 0.3


class Worker:
    """A library running in its own process."""

    def __init__(self, peer: str, work: str):
        """Starts the process; `ready` says whether the library supports the work."""
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, f"--serve={peer}", f"--rows={work}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.times: list[float] = []
        self.peak_memory = 0.0
        self.first = self._read_answer()
        self.ready = self.first is not None

    def measure(self) -> None:
        """Runs one round and records the seconds per step."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._read_answer()
        if answer is not None:
            self.times.append(answer["seconds"])
            self.peak_memory = answer["peak_memory"]

    def _read_answer(self) -> dict[str, float] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.strip() else None

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def serve(peer: str, work: Work) -> None:
    """Runs as a worker: a first call, which may compile, then a timed round for each line on standard input."""
    import importlib
    import resource

    start = time.perf_counter()
    workload = importlib.import_module(f"peers.{peer}").make(work)
    if workload is None:
        return
    call, steps = workload
    call()
    first = time.perf_counter() - start
    start = time.perf_counter()
    call()
    repeats = max(1, int(_SECONDS_PER_ROUND / (time.perf_counter() - start)))
    print(json.dumps({"first": first}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        seconds = (time.perf_counter() - start) / (repeats * steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "peak_memory": peak}), flush=True)


def measure_product_rate() -> float:
    """Returns the machine's peak rate in large float32 matrix products, in FLOP/s: the best of several."""
    import tensorflow as tf

    a, size = tf.random.normal((2048, 2048)), 2048
    best = 0.0
    for _ in range(20):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def measure(work: Work, peers: list[str], rounds: int) -> dict[str, Worker]:
    """Measures one row with every library that supports it, in turns."""
    workers = {}
    for peer in ["ours", *peers]:
        worker = Worker(peer, work.name)
        if worker.ready:
            workers[peer] = worker
            continue
        worker.close()
        if peer == "ours":
            raise UserError(f"row {work.name}: this library failed; run it alone with --serve=ours --rows={work.name}")
    for _ in range(rounds):
        for worker in workers.values():
            time.sleep(0.1)  # let the threads of the previous worker go idle
            worker.measure()
    for worker in workers.values():
        worker.close()
    return workers


def describe_machine() -> str:
    """Returns processor, cores, memory and versions in one line."""
    model = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"Python {platform.python_version()}"]
    for name in ("tensorflow", "keras", "torch", "jax", "numpy"):
        try:
            versions.append(f"{name} {__import__('importlib.metadata').metadata.version(name)}")
        except Exception:  # not installed
            continue
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB; {', '.join(versions)}"


def format_cell(work: Work, worker: Worker | None) -> str:
    """Formats a table cell: milliseconds per step, or characters per second."""
    if worker is None:
        return ""
    seconds = statistics.median(worker.times)
    return f"{1e3 * seconds:.3g} ms" if isinstance(work, Training) else f"{work.characters / seconds:,.0f}/s"


def format_table(results: dict[str, dict[str, Worker]], peers: list[str], rate: float) -> str:
    """Formats the results as a Markdown table."""
    head = ["row", "ours", *peers, "fastest peer / ours", "characters/s", "share of limit", "memory", "first call"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, workers in results.items():
        work, ours = ALL[name], workers["ours"]
        seconds = statistics.median(ours.times)
        others = [statistics.median(worker.times) for peer, worker in workers.items() if peer != "ours"]
        share = f"{work.flops / rate / seconds:.0%}" if isinstance(work, Training) and work.batch > 1 else ""
        columns: list[Any] = [
            work,
            *(format_cell(work, workers.get(peer)) for peer in ["ours", *peers]),
            f"{min(others) / seconds:.2f}" if others else "",
            f"{work.characters / seconds:,.0f}",
            share,
            f"{ours.peak_memory:.2f} GiB",
            f"{ours.first['first'] if ours.first else 0:.1f} s",
        ]
        lines.append("| " + " | ".join(str(column) for column in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    """Reads the flags, measures and prints."""
    for names, known in ((_FLAGS.rows, tuple(ALL)), (_FLAGS.peers, PEERS)):
        for name in names:
            if name not in known:
                raise ConfigError(f"{name!r} is not one of {', '.join(known)}")
    if _FLAGS.serve:
        serve(_FLAGS.serve, ALL[_FLAGS.rows[0]])
        return
    cli.load_tensorflow()
    rate = measure_product_rate()
    results = {}
    for name in _FLAGS.rows:
        results[name] = measure(ALL[name], _FLAGS.peers, _FLAGS.rounds)
        rate = max(rate, measure_product_rate())
        cli.print_status(
            f"{ALL[name]}: " + ", ".join(f"{p} {format_cell(ALL[name], w)}" for p, w in results[name].items())
        )
    print(f"{describe_machine()}; large float32 products at {rate / 1e9:.0f} GFLOP/s.\n")
    print(format_table(results, [peer for peer in _FLAGS.peers if any(peer in w for w in results.values())], rate))


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_list("rows", list(ALL), "Rows to run.")
    flags.DEFINE_list("peers", list(PEERS), "Libraries to compare with; those not installed are left out.")
    flags.DEFINE_integer("rounds", 7, "Rounds; the median is reported.", lower_bound=1)
    flags.DEFINE_string("serve", "", "Internal: run as the worker of this library.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
