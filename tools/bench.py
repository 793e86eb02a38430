"""Benchmarks training and generation against the libraries that people would use instead.

python tools/bench.py --rows=A,B,C --peers=pytorch,jax_scan --rounds=7

Each library runs in its own process. The processes take turns, one call at a time, so that whatever slows the machine
down slows all of them; medians are compared. Prints a Markdown table; "±2%" is half of the distance between the
quartiles. The steps of rows F, G and H are so small that what surrounds them could take longer: they are measured
through the real training command as well.

--busy=2 measures beside two other programs, each of which keeps a core busy.

--cell=NAME measures the rows with another cell, which only this library has; --cell_module loads one of your own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from tfcharrnn import cell_registry, cli
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.verification.workloads import ALL, NUM_GATES, Preparation, Training, Work

_FLAGS = flags.FLAGS
PEERS = ("keras_layers", "pytorch", "pytorch_compiled", "jax_scan", "jax_halves", "eager", "numpy_loop")
# a round repeats short calls for this many seconds
_SECONDS_PER_ROUND = 0.3
# a training command is timed by the difference of a short run and one of more steps, without its start and compilation
_SHORT_RUN, _LONG_RUN = 5000, 35_000


class Worker:
    """A library running in its own process."""

    def __init__(self, peer: str, work: str):
        """Starts the process; `ready` says whether the library supports the work."""
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, f"--serve={peer}", f"--rows={work}", *list_cell_flags()],
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


def list_cell_flags() -> list[str]:
    """Returns the flags that name a cell, for another process."""
    return [f"--cell={_FLAGS.cell}", f"--cell_module={','.join(_FLAGS.cell_module)}"]


def find_work(name: str) -> Work:
    """Returns a row, with the cell of `--cell` if it has one."""
    work = ALL[name]
    return work if isinstance(work, Preparation) or not _FLAGS.cell else dataclasses.replace(work, cell=_FLAGS.cell)


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


def measure_command(work: Training, rounds: int) -> float:
    """Returns the seconds of a step of `train` on a text on disk, with its log, samples and checkpoints: a median."""
    import numpy as np

    is_line = work.time < 10  # a name
    letters = np.random.default_rng(0).integers(0, work.symbols - 3 * is_line, 100_000)
    text = "".join(chr(97 + letter) for letter in letters.tolist())
    if is_line:
        text = "\n".join(text[start : start + work.time - 1] for start in range(0, 10_000, work.time - 1))
    flags_of_layout = ["--layout=lines"] if is_line else ["--layout=stream", f"--seq_length={work.time}"]
    times = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text.txt").write_text(text, encoding="utf-8")
        command = [
            sys.executable, "-m", "tfcharrnn.train", f"--input={folder}/text.txt", f"--run_dir={folder}/run",
            "--overwrite",
            *flags_of_layout, f"--cell_module={','.join(_FLAGS.cell_module)}", f"--cell={work.cell}",
            f"--hidden_size={work.hidden}", f"--optimizer={work.optimizer}",
            "--val_fraction=0", "--batch_size=1", "--reduction=sum", "--learning_rate=0.001", "--clip_norm=0",
            "--log_every=500", "--sample_every=5000", "--checkpoint_every=10000",
        ]  # fmt: skip
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        for _ in range(rounds):
            seconds = {}
            for steps in (_SHORT_RUN, _LONG_RUN):
                start = time.perf_counter()
                subprocess.run([*command, f"--steps={steps}"], env=environment, check=True, capture_output=True)
                seconds[steps] = time.perf_counter() - start
            times.append((seconds[_LONG_RUN] - seconds[_SHORT_RUN]) / (_LONG_RUN - _SHORT_RUN))
    return statistics.median(times)


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
    """Formats a table cell: milliseconds per step, or characters per second, and half of the quartiles' distance."""
    if worker is None:
        return ""
    seconds = statistics.median(worker.times)
    median = f"{1e3 * seconds:.3g} ms" if isinstance(work, Training) else f"{work.characters / seconds:,.0f}/s"
    if len(worker.times) < 3:
        return median
    first, _, third = statistics.quantiles(worker.times, n=4, method="inclusive")
    return f"{median} ±{(third - first) / 2 / seconds:.0%}"


@contextlib.contextmanager
def keep_busy(programs: int) -> Iterator[None]:
    """Runs other programs, each of which keeps a core busy, until the end of the block."""
    command = [sys.executable, "-c", "while True: sum(range(1000))"]
    others = [subprocess.Popen(command) for _ in range(programs)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def format_table(
    results: dict[str, dict[str, Worker]], commands: dict[str, float], peers: list[str], rate: float
) -> str:
    """Formats the results as a Markdown table."""
    head = [
        "row",
        "ours",
        "by `train`",
        *peers,
        "fastest peer / ours",
        "characters/s",
        "share of limit",
        "memory",
        "first call",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, workers in results.items():
        work, ours = find_work(name), workers["ours"]
        seconds = statistics.median(ours.times)
        others = [statistics.median(worker.times) for peer, worker in workers.items() if peer != "ours"]
        has_limit = isinstance(work, Training) and work.batch > 1 and work.cell in NUM_GATES
        share = f"{work.flops / rate / seconds:.0%}" if isinstance(work, Training) and has_limit else ""
        columns: list[Any] = [
            work,
            format_cell(work, ours),
            f"{1e3 * commands[name]:.3g} ms" if name in commands else "",
            *(format_cell(work, workers.get(peer)) for peer in peers),
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
    cli.load_cells(_FLAGS.cell)
    if _FLAGS.serve:
        serve(_FLAGS.serve, find_work(_FLAGS.rows[0]))
        return
    if _FLAGS.cell:
        cell_registry.check_cell(_FLAGS.cell)
    all_peers = _FLAGS.peers if _FLAGS.cell in ("", *NUM_GATES) else []
    cli.load_tensorflow()
    rate = measure_product_rate()
    results, commands = {}, {}
    for name in _FLAGS.rows:
        work = find_work(name)
        with keep_busy(_FLAGS.busy):
            results[name] = measure(work, all_peers, _FLAGS.rounds)
            if _FLAGS.command and isinstance(work, Training) and work.batch == 1:
                commands[name] = measure_command(work, min(_FLAGS.rounds, 3))
        rate = max(rate, measure_product_rate())
        cli.print_status(
            f"{work}: " + ", ".join(f"{peer} {format_cell(work, worker)}" for peer, worker in results[name].items())
        )
    beside = f"; beside {_FLAGS.busy} other programs" if _FLAGS.busy else ""
    print(f"{describe_machine()}; large float32 products at {rate / 1e9:.0f} GFLOP/s{beside}.\n")
    peers = [peer for peer in all_peers if any(peer in workers for workers in results.values())]
    print(format_table(results, commands, peers, rate))


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_list("rows", list(ALL), "Rows to run.")
    flags.DEFINE_list("peers", list(PEERS), "Libraries to compare with; those not installed are left out.")
    flags.DEFINE_string("cell", "", "Measure the rows with this cell instead of their own.")
    cli.define_cell_module_flag()
    flags.DEFINE_integer("rounds", 7, "Rounds; the median is reported.", lower_bound=1)
    flags.DEFINE_integer("busy", 0, "Other programs that keep a core busy each meanwhile.", lower_bound=0)
    flags.DEFINE_bool("command", True, "Measure rows F, G and H through the training command as well.")
    flags.DEFINE_string("serve", "", "Internal: run as the worker of this library.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
