"""What training costs in time and memory: formulas, their constants on this machine, and a check of both.

python tools/scaling.py --measure=step --measure=link --measure=text
    fits the constants, then checks each formula at four other sizes
python tools/scaling.py
    what the formulas say for many GPUs, with the constants in `H100`

docs/scaling.md explains the formulas and shows what came out.
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
from peers.work import Training

from tfcharrnn import cli
from tfcharrnn.launch_local import configurations

_FLAGS = flags.FLAGS
_ROUNDS = 7


@dataclasses.dataclass(frozen=True)
class Constants:
    """What a worker and its link can do.

    Attributes:
        products: arithmetic of a training step, in FLOP/s.
        loop_step: what a step of a recurrent loop, forward and backward, takes beyond its products, in seconds.
        update: of a parameter's update, in seconds.
        start: of a training step, in seconds.
        link: bytes a second that a worker sends and receives at once.
        latency: of one message, in seconds.
        base: memory of a process that trains nothing, in bytes.
        state_bytes: memory for each unit, layer and character of a step.
        logit_bytes: memory for each symbol and character of a step.
        parameter_bytes: memory for each parameter.
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


# From its data sheet, not measured here: 67 TFLOP/s in float32 without tensor cores, of which 60%, as on the CPU;
# 3.35 TB/s of memory, where an update of Adam moves 28 bytes a parameter; a link of 400 Gbit/s for each GPU; and
# 5 microseconds to start a kernel or to send a small message.
H100 = Constants(0.6 * 67e12, 2 * 5e-6, 28 / 3.35e12, 1e-4, 50e9, 5e-6)


def parameters(work: Training) -> int:
    """Weights of a network with one-hot input: each layer's two kernels and its bias, and the output layer."""
    columns = work.gates * work.hidden
    first = columns * (work.symbols + work.hidden + 1)
    others = (work.layers - 1) * columns * (2 * work.hidden + 1)
    bias = columns * work.layers if work.cell == "gru" else 0  # its second one
    return first + others + bias + work.symbols * (work.hidden + 1)


def compute_seconds(work: Training, constants: Constants) -> float:
    """A step of one worker: products, what the loops add to them, the update, the start."""
    return float(np.dot(_compute_terms(work), _compute_constants(constants)))


def _compute_terms(work: Training) -> npt.NDArray[np.float64]:
    return np.array([work.flops, work.layers * work.time, parameters(work), 1.0])


def _compute_constants(constants: Constants) -> list[float]:
    return [1.0 / constants.products, constants.loop_step, constants.update, constants.start]


def reduce_seconds(num_parameters: int, workers: int, constants: Constants) -> float:
    """Adding up gradients over a ring: each worker sends and receives all but 1/W of them twice, in 2 (W - 1) messages.

    P. Patarasuk and X. Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations (2009).
    """
    if workers == 1:
        return 0.0
    sent = 4.0 * num_parameters * (workers - 1) / workers
    return 2.0 * (sent / constants.link + (workers - 1) * constants.latency)


def balanced_workers(work: Training, constants: Constants) -> int:
    """From how many workers on adding up the gradients takes longer than computing them."""
    compute, workers = compute_seconds(work, constants), 1
    while reduce_seconds(parameters(work), 2 * workers, constants) < compute:
        workers *= 2
    step = workers
    while step := step // 2:
        if reduce_seconds(parameters(work), workers + step, constants) < compute:
            workers += step
    return workers + 1


def memory_bytes(work: Training, constants: Constants) -> float:
    """Weights, gradients and the optimizer's moments; every step's states for the way back; logits."""
    return float(np.dot(_memory_terms(work), _memory_constants(constants)))


def _memory_terms(work: Training) -> npt.NDArray[np.float64]:
    return np.array(
        [1.0, work.characters * work.hidden * work.layers, work.characters * work.symbols, parameters(work)]
    )


def _memory_constants(constants: Constants) -> list[float]:
    return [constants.base, constants.state_bytes, constants.logit_bytes, constants.parameter_bytes]


def fitted(terms: Sequence[npt.NDArray[np.float64]], measured: Sequence[float]) -> npt.NDArray[np.float64]:
    """The constants, none negative, whose formula is off by the least, each size counted by its share of the measured.

    Fewer sizes than constants leave some at zero.
    """
    rows = np.array(terms) / np.array(measured)[:, np.newaxis]
    scale = np.abs(rows).max(axis=0)
    rows, used = rows / scale, np.ones(len(scale), bool)
    while True:  # the few that come out negative are left out, one after another
        values = np.zeros(len(scale))
        values[used] = np.linalg.lstsq(rows[:, used], np.ones(len(rows)), rcond=None)[0]
        if (values >= 0).all():
            return values / scale
        used &= values > values.min()


# Measuring, each size in a process of its own


def serve_training(work: Training) -> dict[str, float]:
    """The median time of a training step, and the most memory that the process took."""
    import resource

    from peers import ours

    made = ours.make(work)
    call, steps = made
    call()
    times = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        call()
        times.append((time.perf_counter() - begun) / steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return {"seconds": statistics.median(times), "memory": peak}


def serve_reduce(sizes: Sequence[int]) -> dict[str, float]:
    """The median time of adding up so many numbers over the workers of `TF_CONFIG`."""
    import tensorflow as tf

    from tfcharrnn.distributed import cluster

    strategy: Any = cluster.start("multi_worker", quiet=True).strategy
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
            begun = time.perf_counter()
            add().numpy()
            times.append(time.perf_counter() - begun)
        medians[str(size)] = statistics.median(times)
    return medians


def _in_process(what: str, value: Any, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, f"--serve={what}", f"--work={json.dumps(value)}"]
    return subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True)


def _result(process: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = process.communicate()
    if process.returncode:
        sys.exit(f"scaling: a measurement failed with code {process.returncode}")
    values: dict[str, float] = json.loads(out.splitlines()[-1])
    return values


def measure_training(works: Sequence[Training]) -> list[dict[str, float]]:
    """Time and memory of each size."""
    return [_result(_in_process("training", dataclasses.asdict(work))) for work in works]


def measure_reduce(sizes: Sequence[int], workers: int = 2) -> list[float]:
    """The time to add up each number of values over workers on this machine."""
    processes = [_in_process("reduce", list(sizes), {"TF_CONFIG": config}) for config in configurations(workers)]
    results = [_result(process) for process in processes]
    return [max(result[str(size)] for result in results) for size in sizes]


def measure_command(module: str, *arguments: str) -> float:
    """How long a command takes, its start left out as that of a command that does nothing."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"tfcharrnn.{module}", *arguments], check=True, capture_output=True)
    return time.perf_counter() - begun


def write_text(path: Path, characters: int) -> None:
    """Writes lines of random ASCII characters."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for start in range(0, characters, 10**7):
            codes = rng.integers(32, 127, min(10**7, characters - start)).astype(np.uint8)
            codes[::60] = 10
            file.write(codes.tobytes())


def check(title: str, unit: float, rows: Sequence[tuple[Any, float, float]]) -> None:
    """Prints a table of what was predicted and what was measured."""
    print(f"\n| {title} | formula | measured | error |\n| --- | ---: | ---: | ---: |")
    for name, predicted, measured in rows:
        print(f"| {name} | {predicted * unit:.3g} | {measured * unit:.3g} | {predicted / measured - 1:+.0%} |")


def _sizes(cell: str, *sizes: tuple[int, int, int, int]) -> list[Training]:
    return [Training(cell, cell, batch, time, hidden, layers, 66) for batch, time, hidden, layers in sizes]


FIT = _sizes("gru", (64, 100, 256, 1), (64, 200, 512, 1), (32, 50, 640, 2), (128, 100, 128, 2), (16, 25, 1024, 1))
CHECK = _sizes("gru", (64, 100, 192, 1), (100, 100, 256, 2), (64, 150, 384, 2), (32, 100, 768, 1))


def measure_steps() -> None:
    """Fits and checks what a training step takes, in time and memory."""
    measured = measure_training([*FIT, *CHECK])
    of_fit, of_check = measured[: len(FIT)], measured[len(FIT) :]
    rate, loop_step, update, start = fitted(list(map(_compute_terms, FIT)), [m["seconds"] for m in of_fit])
    memory = fitted(list(map(_memory_terms, FIT)), [m["memory"] for m in of_fit])
    constants = Constants(1 / rate, loop_step, update, start, 1.0, 0.0, *memory)
    for field in dataclasses.fields(constants):
        if field.name not in ("link", "latency"):
            print(f"{field.name:16} {getattr(constants, field.name):.3g}")
    steps = [(w, compute_seconds(w, constants), m["seconds"]) for w, m in zip(CHECK, of_check, strict=True)]
    check("a training step, ms", 1e3, steps)
    sizes = [(w, memory_bytes(w, constants), m["memory"]) for w, m in zip(CHECK, of_check, strict=True)]
    check("memory of a process, MiB", 2**-20, sizes)


def measure_link() -> None:
    """Fits and checks what adding up gradients takes, of two workers on this machine."""
    sizes, checks = [100_000, 10_000_000], [10_000, 300_000, 1_000_000, 3_000_000]
    measured = measure_reduce([*sizes, *checks])
    byte, message = fitted([np.array([4.0 * size, 2.0]) for size in sizes], measured[: len(sizes)])
    constants = dataclasses.replace(H100, link=1 / byte, latency=message)
    print(f"link {constants.link:.3g} bytes a second, latency {constants.latency:.3g} s")
    reduced = zip(checks, measured[len(sizes) :], strict=True)
    rows = [(f"{size:,} parameters", reduce_seconds(size, 2, constants), seconds) for size, seconds in reduced]
    check("all-reduce of two workers, ms", 1e3, rows)


def measure_text() -> None:
    """Fits and checks what preparing and reading a text take."""
    with tempfile.TemporaryDirectory() as temporary:
        _measure_text(Path(temporary))


def _measure_text(folder: Path) -> None:
    # above what one process prepares by itself, and what is read whole
    sizes, checks = [75_000_000, 400_000_000], [100_000_000, 150_000_000, 200_000_000, 600_000_000]
    seconds: dict[str, dict[int, float]] = {"prepare": {}, "read": {}}
    for size in (*sizes, *checks):
        write_text(folder / "text.txt", size)
        arguments = (f"--input={folder / 'text.txt'}", f"--output_dir={folder / 'data'}", "--overwrite")
        seconds["prepare"][size] = measure_command("prepare", *arguments)
        seconds["read"][size] = _result(_in_process("read", str(folder / "data")))["seconds"]
    for name, of_size in seconds.items():
        terms = {size: np.array([size, 1.0]) for size in of_size}
        character, start = fitted([terms[size] for size in sizes], [of_size[size] for size in sizes])
        print(f"\n{name}: {1 / character / 1e6:.1f} million characters a second after {start:.1f} s")
        rows = [(f"{size / 1e6:.0f} million characters", character * size + start, of_size[size]) for size in checks]
        check(f"{name}, s", 1.0, rows)


def serve_read(data_dir: str) -> dict[str, float]:
    """How long one pass over a data folder takes, its records put together to batches and nothing done with them."""
    from tfcharrnn.config import TrainingConfig
    from tfcharrnn.data import dataset, input_pipeline

    data, config = dataset.open_data(data_dir), TrainingConfig()
    begun = time.perf_counter()
    order = input_pipeline.training_order(data, config)
    steps = order.steps_per_epoch
    for _ in input_pipeline.training_batches(order, lambda: input_pipeline.calls(0, steps, (), 8), 8):
        pass
    return {"seconds": time.perf_counter() - begun}


MEASUREMENTS = {"step": measure_steps, "link": measure_link, "text": measure_text}


def predict() -> None:
    """Prints what the formulas say for the GPUs of `H100`."""
    heads = ["network", "GPUs", "compute, ms", "all-reduce, ms", "its share", "10^9", "10^12 characters", "reads, MB/s"]
    print(f"| {' | '.join(heads)} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    works = [Training("", "gru", 128, 200, hidden, layers, 256) for hidden, layers in ((512, 1), (1024, 3), (4096, 3))]
    for work in works:
        for workers in (8, 64, 512):
            compute = compute_seconds(work, H100)
            reduce = reduce_seconds(parameters(work), workers, H100)
            speed = workers * work.characters / (compute + reduce)
            print(
                f"| GRU {work.layers} x {work.hidden}, {parameters(work) / 1e6:.1f} M | {workers} "
                f"| {1e3 * compute:.2f} | {1e3 * reduce:.2f} | {reduce / (compute + reduce):.0%} "
                f"| {duration(1e9 / speed)} | {duration(1e12 / speed)} | {speed / 1e6:,.1f} |"
            )
    for work in works:
        number = f"{balanced_workers(work, H100):,}"
        print(f"GRU {work.layers} x {work.hidden}: from {number} GPUs on the all-reduce takes longer than the rest")


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
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
        predict()


if __name__ == "__main__":
    flags.DEFINE_multi_enum("measure", [], list(MEASUREMENTS), "Measure this here, instead of predicting.")
    flags.DEFINE_string("serve", "", "For internal use: measure one thing.")
    flags.DEFINE_string("work", "", "For internal use: which.")
    cli.run(main)
