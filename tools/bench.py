"""Measures training and generation beside the libraries that people would use instead.

python tools/bench.py --rows=A,B,C --peers=pytorch,jax_scan --rounds=7

Each library runs in a process of its own. The processes take turns, one call at a time, so that whatever slows the
machine down slows all of them; medians are compared. The table goes to standard output, as Markdown.
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
# A round of short calls repeats them until it has lasted this long, in seconds.
_ROUND = 0.3


class Worker:
    """A library at work in its own process."""

    def __init__(self, peer: str, work: str):
        """Starts the process; `ready` tells whether it can do the work."""
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, f"--serve={peer}", f"--rows={work}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.times: list[float] = []
        self.peak_memory = 0.0
        self.first = self._answer()
        self.ready = self.first is not None

    def measure(self) -> None:
        """One round: seconds a step."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer is not None:
            self.times.append(answer["seconds"])
            self.peak_memory = answer["peak_memory"]

    def _answer(self) -> dict[str, float] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.strip() else None

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def serve(peer: str, work: Work) -> None:
    """What a worker does: the first call, which may compile, then a timed round for each line it reads."""
    import importlib
    import resource

    begun = time.perf_counter()
    made = importlib.import_module(f"peers.{peer}").make(work)
    if made is None:
        return
    call, steps = made
    call()
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    call()
    repeats = max(1, int(_ROUND / (time.perf_counter() - begun)))
    print(json.dumps({"first": first}), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        for _ in range(repeats):
            call()
        seconds = (time.perf_counter() - begun) / (repeats * steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "peak_memory": peak}), flush=True)


def product_rate() -> float:
    """The machine's rate in large float32 matrix products, in FLOP/s: the best of several."""
    import tensorflow as tf

    a, size = tf.random.normal((2048, 2048)), 2048
    best = 0.0
    for _ in range(20):
        begun = time.perf_counter()
        float((a @ a)[0, 0])
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


def measure(work: Work, peers: list[str], rounds: int) -> dict[str, Worker]:
    """Runs one row for every library that can do it, in turns."""
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
            time.sleep(0.1)  # lets the threads of the one before come to rest
            worker.measure()
    for worker in workers.values():
        worker.close()
    return workers


def describe_machine() -> str:
    """Processor, cores, memory and versions in one line."""
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


def cell(work: Work, worker: Worker | None) -> str:
    """What a table shows of a library: milliseconds a step, or characters a second."""
    if worker is None:
        return ""
    seconds = statistics.median(worker.times)
    return f"{1e3 * seconds:.3g} ms" if isinstance(work, Training) else f"{work.characters / seconds:,.0f}/s"


def table(results: dict[str, dict[str, Worker]], peers: list[str], rate: float) -> str:
    """The results as Markdown."""
    head = ["row", "ours", *peers, "fastest peer / ours", "characters/s", "share of limit", "memory", "first call"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, workers in results.items():
        work, ours = ALL[name], workers["ours"]
        seconds = statistics.median(ours.times)
        others = [statistics.median(worker.times) for peer, worker in workers.items() if peer != "ours"]
        share = f"{work.flops / rate / seconds:.0%}" if isinstance(work, Training) and work.batch > 1 else ""
        columns: list[Any] = [
            work,
            *(cell(work, workers.get(peer)) for peer in ["ours", *peers]),
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
    rate = product_rate()
    results = {}
    for name in _FLAGS.rows:
        results[name] = measure(ALL[name], _FLAGS.peers, _FLAGS.rounds)
        rate = max(rate, product_rate())
        cli.say(f"{ALL[name]}: " + ", ".join(f"{p} {cell(ALL[name], w)}" for p, w in results[name].items()))
    print(f"{describe_machine()}; large float32 products at {rate / 1e9:.0f} GFLOP/s.\n")
    print(table(results, [peer for peer in _FLAGS.peers if any(peer in w for w in results.values())], rate))


if __name__ == "__main__":
    flags.DEFINE_list("rows", list(ALL), "Which rows to run.")
    flags.DEFINE_list("peers", list(PEERS), "Which libraries to run beside this one; those not installed are left out.")
    flags.DEFINE_integer("rounds", 7, "Rounds; the median counts.", lower_bound=1)
    flags.DEFINE_string("serve", "", "For internal use: be the worker for a library.")
    cli.run(main)
