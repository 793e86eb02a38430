"""Models the time and memory of training: formulas, their constants on this machine, and a check of both.

python tools/scaling.py --measure=step --measure=link --measure=text
    fits the constants, then checks each formula at four other sizes
python tools/scaling.py
    predicts training on many GPUs, with the constants in `H100`

docs/scaling.md explains the formulas and has the results.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import flags

from tfcharrnn import cli
from tfcharrnn.distributed.local_workers import make_tf_configs
from tfcharrnn.verification.workloads import Training

_FLAGS = flags.FLAGS
_ROUNDS = 7


@dataclasses.dataclass(frozen=True)
class Constants:
    """Speed and memory of a worker and its network link.

    Attributes:
        products: speed of the matrix products of a training step, in FLOP/s.
        loop_step: overhead of a time step, forward and backward, in seconds.
        update: time to update one parameter, in seconds.
        start: fixed time of a training step, in seconds.
        link: bandwidth of a worker, sending and receiving at once, in bytes per second.
        latency: time of one message, in seconds.
        base: memory of an idle process, in bytes.
        state_bytes: memory per unit, layer and character of a step.
        logit_bytes: memory per symbol and character of a step.
        parameter_bytes: memory per parameter.
    """

    products: float
    loop_step: float
    update: float
    start: float
    link: float
    latency: float
    base: float = 0.0
    state_bytes: float = 0.0
    logit_bytes: float = 0.0
    parameter_bytes: float = 16.0


# From the data sheet, not measured: 67 TFLOP/s in float32 without tensor cores, used to 60% as on the CPU; 3.35 TB/s of
# memory bandwidth, of which an Adam update takes 28 bytes per parameter; a 400 Gbit/s link per GPU; and 5 microseconds
# to launch a kernel or send a small message.
H100 = Constants(0.6 * 67e12, 2 * 5e-6, 28 / 3.35e12, 1e-4, 50e9, 5e-6)


def count_parameters(work: Training) -> int:
    """Returns the number of weights of a network with one-hot input."""
    columns = work.gates * work.hidden
    first = columns * (work.symbols + work.hidden + 1)
    others = (work.layers - 1) * columns * (2 * work.hidden + 1)
    bias = columns * work.layers if work.cell == "gru" else 0  # its second one
    return first + others + bias + work.symbols * (work.hidden + 1)


def compute_seconds(work: Training, constants: Constants) -> float:
    """Returns the time of a step on one worker: products, loop overhead, update, start."""
    return float(np.dot(_compute_terms(work), _compute_constants(constants)))


def _compute_terms(work: Training) -> npt.NDArray[np.float64]:
    return np.array([work.flops, work.layers * work.time, count_parameters(work), 1.0])


def _compute_constants(constants: Constants) -> list[float]:
    return [1.0 / constants.products, constants.loop_step, constants.update, constants.start]


def reduce_seconds(num_parameters: int, workers: int, constants: Constants) -> float:
    """Returns the time of a ring all-reduce: a worker sends (W - 1) / W of the gradients twice, in 2 (W - 1) messages.

    P. Patarasuk and X. Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations (2009).
    """
    if workers == 1:
        return 0.0
    sent = 4.0 * num_parameters * (workers - 1) / workers
    return 2.0 * (sent / constants.link + (workers - 1) * constants.latency)


def find_break_even_workers(work: Training, constants: Constants) -> int:
    """Returns the number of workers from which the all-reduce takes longer than the computation."""
    compute, workers = compute_seconds(work, constants), 1
    while reduce_seconds(count_parameters(work), 2 * workers, constants) < compute:
        workers *= 2
    step = workers
    while step := step // 2:
        if reduce_seconds(count_parameters(work), workers + step, constants) < compute:
            workers += step
    return workers + 1


def memory_bytes(work: Training, constants: Constants) -> float:
    """Returns the memory for weights, gradients, optimizer moments, the states kept for backpropagation, and logits."""
    return float(np.dot(_memory_terms(work), _memory_constants(constants)))


def _memory_terms(work: Training) -> npt.NDArray[np.float64]:
    return np.array(
        [1.0, work.characters * work.hidden * work.layers, work.characters * work.symbols, count_parameters(work)]
    )


def _memory_constants(constants: Constants) -> list[float]:
    return [constants.base, constants.state_bytes, constants.logit_bytes, constants.parameter_bytes]


def fit_constants(terms: Sequence[npt.NDArray[np.float64]], measured: Sequence[float]) -> npt.NDArray[np.float64]:
    """Fits non-negative constants by least squares of the relative error.

    With fewer sizes than constants, some are zero.
    """
    rows = np.array(terms) / np.array(measured)[:, np.newaxis]
    scale = np.abs(rows).max(axis=0)
    rows, used = rows / scale, np.ones(len(scale), bool)
    while True:  # drop the most negative constant until there is none
        values = np.zeros(len(scale))
        values[used] = np.linalg.lstsq(rows[:, used], np.ones(len(rows)), rcond=None)[0]
        if (values >= 0).all():
            return values / scale
        used &= values > values.min()


# Measurements, each size in its own process


def serve_training(work: Training) -> dict[str, float]:
    """Measures the median time of a training step and the peak memory of the process."""
    import resource

    from peers import ours

    made = ours.make(work)
    call, steps = made
    call()
    times = []
    for _ in range(_ROUNDS):
        start_time = time.perf_counter()
        call()
        times.append((time.perf_counter() - start_time) / steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return {"seconds": statistics.median(times), "memory": peak}


def serve_reduce(sizes: Sequence[int]) -> dict[str, float]:
    """Measures the median time of an all-reduce of each size over the workers of `TF_CONFIG`."""
    import tensorflow as tf

    from tfcharrnn.distributed import cluster

    strategy: Any = cluster.join_cluster("multi_worker", quiet=True).strategy
    medians = {}
    for size in sizes:
        values = tf.Variable(tf.zeros([size]))

        @tf.function
        def add(values: tf.Variable = values) -> tf.Tensor:
            def on_replica() -> tf.Tensor:
                return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values + 1.0)[0]

            return strategy.experimental_local_results(strategy.run(on_replica))[0]

        add().numpy()
        times = []
        for _ in range(3 * _ROUNDS):
            start_time = time.perf_counter()
            add().numpy()
            times.append(time.perf_counter() - start_time)
        medians[str(size)] = statistics.median(times)
    return medians


def _start_process(what: str, value: Any, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, f"--serve={what}", f"--work={json.dumps(value)}"]
    return subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True)


def _wait_for_result(process: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = process.communicate()
    if process.returncode:
        sys.exit(f"scaling: a measurement failed with code {process.returncode}")
    values: dict[str, float] = json.loads(out.splitlines()[-1])
    return values


def measure_training(works: Sequence[Training]) -> list[dict[str, float]]:
    """Measures time and memory of each size."""
    return [_wait_for_result(_start_process("training", dataclasses.asdict(work))) for work in works]


def measure_reduce(sizes: Sequence[int], workers: int = 2) -> list[float]:
    """Measures the all-reduce of each size over workers on this machine."""
    processes = [_start_process("reduce", list(sizes), {"TF_CONFIG": config}) for config in make_tf_configs(workers)]
    results = [_wait_for_result(process) for process in processes]
    return [max(result[str(size)] for result in results) for size in sizes]


def measure_command(module: str, *arguments: str) -> float:
    """Measures how long a command takes, start-up included."""
    start_time = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"tfcharrnn.{module}", *arguments], check=True, capture_output=True)
    return time.perf_counter() - start_time


def write_text(path: Path, characters: int) -> None:
    """Writes lines of random ASCII characters."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for start in range(0, characters, 10**7):
            codes = rng.integers(32, 127, min(10**7, characters - start)).astype(np.uint8)
            codes[::60] = 10
            file.write(codes.tobytes())


def print_comparison(title: str, unit: float, rows: Sequence[tuple[Any, float, float]]) -> None:
    """Prints a table of predictions and measurements."""
    print(f"\n| {title} | formula | measured | error |\n| --- | ---: | ---: | ---: |")
    for name, predicted, measured in rows:
        print(f"| {name} | {predicted * unit:.3g} | {measured * unit:.3g} | {predicted / measured - 1:+.0%} |")


def _make_works(cell: str, *sizes: tuple[int, int, int, int]) -> list[Training]:
    return [Training(cell, cell, batch, time, hidden, layers, 66) for batch, time, hidden, layers in sizes]


FIT = _make_works("gru", (64, 100, 256, 1), (64, 200, 512, 1), (32, 50, 640, 2), (128, 100, 128, 2), (16, 25, 1024, 1))
CHECK = _make_works("gru", (64, 100, 192, 1), (100, 100, 256, 2), (64, 150, 384, 2), (32, 100, 768, 1))


def measure_steps() -> None:
    """Fits and checks the time and memory of a training step."""
    measured = measure_training([*FIT, *CHECK])
    of_fit, of_check = measured[: len(FIT)], measured[len(FIT) :]
    rate, loop_step, update, start = fit_constants(list(map(_compute_terms, FIT)), [m["seconds"] for m in of_fit])
    memory = fit_constants(list(map(_memory_terms, FIT)), [m["memory"] for m in of_fit])
    constants = Constants(1 / rate, loop_step, update, start, 1.0, 0.0, *memory)
    for field in dataclasses.fields(constants):
        if field.name not in ("link", "latency"):
            print(f"{field.name:16} {getattr(constants, field.name):.3g}")
    steps = [(w, compute_seconds(w, constants), m["seconds"]) for w, m in zip(CHECK, of_check, strict=True)]
    print_comparison("a training step, ms", 1e3, steps)
    sizes = [(w, memory_bytes(w, constants), m["memory"]) for w, m in zip(CHECK, of_check, strict=True)]
    print_comparison("memory of a process, MiB", 2**-20, sizes)


def measure_link() -> None:
    """Fits and checks the all-reduce of two workers on this machine."""
    sizes, checks = [100_000, 10_000_000], [10_000, 300_000, 1_000_000, 3_000_000]
    measured = measure_reduce([*sizes, *checks])
    byte, message = fit_constants([np.array([4.0 * size, 2.0]) for size in sizes], measured[: len(sizes)])
    constants = dataclasses.replace(H100, link=1 / byte, latency=message)
    print(f"link {constants.link:.3g} bytes a second, latency {constants.latency:.3g} s")
    reduced = zip(checks, measured[len(sizes) :], strict=True)
    rows = [(f"{size:,} parameters", reduce_seconds(size, 2, constants), seconds) for size, seconds in reduced]
    print_comparison("all-reduce of two workers, ms", 1e3, rows)


def measure_text() -> None:
    """Fits and checks the time to prepare and to read a text."""
    with tempfile.TemporaryDirectory() as temporary:
        _measure_text(Path(temporary))


def _measure_text(folder: Path) -> None:
    # large enough to be prepared by several processes and read out of core
    sizes, checks = [75_000_000, 400_000_000], [100_000_000, 150_000_000, 200_000_000, 600_000_000]
    seconds: dict[str, dict[int, float]] = {"prepare": {}, "read": {}}
    for size in (*sizes, *checks):
        write_text(folder / "text.txt", size)
        arguments = (f"--input={folder / 'text.txt'}", f"--output_dir={folder / 'data'}", "--overwrite")
        seconds["prepare"][size] = measure_command("prepare", *arguments)
        seconds["read"][size] = _wait_for_result(_start_process("read", str(folder / "data")))["seconds"]
    for name, of_size in seconds.items():
        terms = {size: np.array([size, 1.0]) for size in of_size}
        character, start = fit_constants([terms[size] for size in sizes], [of_size[size] for size in sizes])
        print(f"\n{name}: {1 / character / 1e6:.1f} million characters a second after {start:.1f} s")
        rows = [(f"{size / 1e6:.0f} million characters", character * size + start, of_size[size]) for size in checks]
        print_comparison(f"{name}, s", 1.0, rows)


def serve_read(data_dir: str) -> dict[str, float]:
    """Measures one pass over a data folder that only forms batches."""
    from tfcharrnn.config import TrainingConfig
    from tfcharrnn.data import dataset, input_pipeline

    data, config = dataset.open_data(data_dir), TrainingConfig()
    start_time = time.perf_counter()
    sampler = input_pipeline.make_sampler(data, config)
    with input_pipeline.BatchPipeline(sampler, 8) as pipeline:
        for _ in pipeline.iterate(0, sampler.steps_per_epoch):
            pass
    return {"seconds": time.perf_counter() - start_time}


MEASUREMENTS = {"step": measure_steps, "link": measure_link, "text": measure_text}


def print_predictions() -> None:
    """Prints the predictions for the GPUs of `H100`."""
    heads = ["network", "GPUs", "compute, ms", "all-reduce, ms", "its share", "10^9", "10^12 characters", "reads, MB/s"]
    print(f"| {' | '.join(heads)} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    works = [Training("", "gru", 128, 200, hidden, layers, 256) for hidden, layers in ((512, 1), (1024, 3), (4096, 3))]
    for work in works:
        for workers in (8, 64, 512):
            compute = compute_seconds(work, H100)
            reduce = reduce_seconds(count_parameters(work), workers, H100)
            speed = workers * work.characters / (compute + reduce)
            print(
                f"| GRU {work.layers} x {work.hidden}, {count_parameters(work) / 1e6:.1f} M | {workers} "
                f"| {1e3 * compute:.2f} | {1e3 * reduce:.2f} | {reduce / (compute + reduce):.0%} "
                f"| {format_duration(1e9 / speed)} | {format_duration(1e12 / speed)} | {speed / 1e6:,.1f} |"
            )
    for work in works:
        number = f"{find_break_even_workers(work, H100):,}"
        print(f"GRU {work.layers} x {work.hidden}: from {number} GPUs on the all-reduce takes longer than the rest")


def format_duration(seconds: float) -> str:
    """Formats a time in a suitable unit."""
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def main() -> None:
    """Reads the flags, and measures or predicts."""
    serving: dict[str, Callable[[Any], dict[str, float]]] = {
        "training": lambda value: serve_training(Training(**value)),
        "reduce": serve_reduce,
        "read": serve_read,
    }
    if _FLAGS.serve:
        cli.load_tensorflow()
        print(json.dumps(serving[_FLAGS.serve](json.loads(_FLAGS.work))))
    elif _FLAGS.measure:
        for name in _FLAGS.measure:
            MEASUREMENTS[name]()
    else:
        print_predictions()


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_multi_enum("measure", [], list(MEASUREMENTS), "Measure this instead of predicting.")
    flags.DEFINE_string("serve", "", "Internal: measure one thing.")
    flags.DEFINE_string("work", "", "Internal: what to measure.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
