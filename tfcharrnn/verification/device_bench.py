"""Measures training and sampling on the device, at batch sizes up to where it saturates, in each implementation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfcharrnn import devices
from tfcharrnn.config import GenerationConfig, ModelConfig, TrainingConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.inference.sampling import Sampler
from tfcharrnn.model import backends
from tfcharrnn.model.char_rnn import CharRNN
from tfcharrnn.training.train_step import RunLength, Trainer
from tfcharrnn.verification.workloads import ALL, Generation, Training, text

# Something to measure, and how many steps a call does.
Job = tuple[Callable[[], object], int]

_ROUNDS, _SECONDS_PER_ROUND = 3, 0.3
# a batch twice as large that is less than this much faster is the last one
_LEAST_GAIN = 1.1
_LARGEST_FACTOR = 64
_PRODUCT_SIZE = {"GPU": 8192, "CPU": 2048}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to do the work.

    Attributes:
        name: custom, cudnn or pytorch, with what is special about it.
        precision: float32, TF32 or bfloat16.
        config: fields of `ModelConfig`; None: PyTorch does it.
        tries_algorithms: cuDNN may choose its algorithm.
    """

    name: str
    precision: str
    config: dict[str, Any] | None
    tries_algorithms: bool = False


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A row of the table.

    Attributes:
        row: the work at its first size.
        variant: how it was done.
        precision: the type of the products.
        size: batch size, or number of texts sampled at once.
        milliseconds: time of a step, or of a text.
        characters_per_second: throughput.
        share: of the rate of large products in this type that the products of a step reach; None for sampling.
    """

    row: str
    variant: str
    precision: str
    size: int
    milliseconds: float
    characters_per_second: float
    share: float | None


def make_training(work: Training, config: ModelConfig, *, tries_algorithms: bool = False) -> Job:
    """Makes training steps on random symbols."""
    model = CharRNN(config, work.symbols)
    if tries_algorithms:
        run_layer = functools.partial(backends.run_cudnn, tries_algorithms=True)
        model.backend = dataclasses.replace(model.backend, run_layer=run_layer)
    training = TrainingConfig(batch_size=work.batch, optimizer=work.optimizer, clip_norm=0.0)
    trainer = Trainer(model, training, work.time + 1.0, RunLength(1000, 1000))
    steps = trainer.steps_per_call
    batches = tf.constant(text(work, steps))
    return lambda: trainer.run_steps(np.int64(0), np.int32(0), np.int32(steps), batches, np.int32(0)).numpy(), steps


def make_generation(work: Generation, config: ModelConfig) -> Job:
    """Makes sampling of texts."""
    vocabulary = Vocabulary(["<S>", *(chr(65 + index) for index in range(work.symbols - 1))])
    sampler = Sampler(CharRNN(config, work.symbols), vocabulary)
    settings = GenerationConfig(length=work.length, num_samples=work.streams)
    return lambda: sampler.generate(settings), 1


def list_variants(work: Training | Generation) -> list[Variant]:
    """Lists the ways in which this device can do some work."""
    custom = {"implementation": "custom"}
    has_gpu = bool(devices.list_gpus())
    precisions = ["float32", "TF32"] if has_gpu else ["float32"]
    variants = [Variant("custom", precision, custom) for precision in precisions]
    variants.append(Variant("custom", "bfloat16", {**custom, "precision": "bfloat16"}))
    if isinstance(work, Training) and has_gpu:
        variants += [Variant(f"custom, unroll {n}", precisions[-1], {**custom, "unroll": n}) for n in (8, 16)]
    if isinstance(work, Training) and backends.is_cudnn_available():
        cudnn = {"implementation": "cudnn"}
        variants += [Variant("cudnn", precision, cudnn) for precision in precisions]
        variants.append(Variant("cudnn, tries algorithms", precisions[-1], cudnn, tries_algorithms=True))
    if importlib.util.find_spec("torch"):
        variants += [Variant("pytorch", precision, None) for precision in precisions]
    return variants


def measure_row(work: Training | Generation, rates: dict[str, float]) -> Iterator[Measurement]:
    """Measures some work in every way, each at sizes that double until throughput saturates or memory runs out.

    Args:
        work: the work at its first size.
        rates: from `measure_product_rates`.
    """
    for variant in list_variants(work):
        size = first = work.batch if isinstance(work, Training) else work.streams
        best = 0.0
        with use_precision(variant.precision):
            while size <= _LARGEST_FACTOR * first:
                sized = _resize(work, size)
                try:
                    seconds = _measure_seconds(_make_job(sized, variant))
                except Exception as error:
                    if size > first and (devices.explain_exhausted(error) or "out of memory" in str(error)):
                        break
                    raise
                speed = sized.characters / seconds
                rate = rates[variant.precision]
                share = sized.flops / rate / seconds if isinstance(sized, Training) else None
                yield Measurement(str(work), variant.name, variant.precision, size, 1e3 * seconds, speed, share)
                if speed < _LEAST_GAIN * best:
                    break
                best, size = speed, 2 * size


def _resize(work: Training | Generation, size: int) -> Training | Generation:
    if isinstance(work, Training):
        return dataclasses.replace(work, batch=size)
    return dataclasses.replace(work, streams=size)


def _make_job(work: Training | Generation, variant: Variant) -> Job:
    if variant.config is None:
        from tfcharrnn.verification import pytorch_peer

        device = "cuda" if devices.list_gpus() else "cpu"
        job = pytorch_peer.make(work, device, tf32=variant.precision == "TF32")
        assert job is not None
        return job
    config = ModelConfig(cell=work.cell, hidden_size=work.hidden, num_layers=work.layers, **variant.config)
    if isinstance(work, Training):
        return make_training(work, config, tries_algorithms=variant.tries_algorithms)
    return make_generation(work, config)


def _measure_seconds(job: Job) -> float:
    """Returns the seconds of a step, the median of some rounds; the first call, which compiles, does not count."""
    call, steps = job
    call()
    times = []
    for _ in range(_ROUNDS):
        start, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - start < _SECONDS_PER_ROUND:
            call()
            calls += 1
        times.append((time.perf_counter() - start) / (calls * steps))
    return statistics.median(times)


@contextlib.contextmanager
def use_precision(precision: str) -> Iterator[None]:
    """Lets float32 products be rounded to TF32 in the body, or not."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(precision == "TF32")
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def measure_product_rates() -> dict[str, float]:
    """Returns the device's rate in large products of each type, in FLOP/s, the best of several."""
    kind = "GPU" if devices.list_gpus() else "CPU"
    size, rates = _PRODUCT_SIZE[kind], {}
    for precision in ("float32", "TF32", "bfloat16"):
        with use_precision(precision):
            a = tf.cast(tf.random.normal((size, size)), tf.bfloat16 if precision == "bfloat16" else tf.float32)
            float((a @ a)[0, 0])
            best = 0.0
            for _ in range(5):
                start = time.perf_counter()
                float((a @ a)[0, 0])
                best = max(best, 2 * size**3 / (time.perf_counter() - start))
            rates[precision] = best
    return rates


def find_row(name: str) -> Training | Generation:
    """Returns a row of the benchmark by its name, such as A."""
    work = ALL[name]
    assert isinstance(work, (Training, Generation))
    return work


def format_head() -> str:
    """Returns the head of the Markdown table."""
    head = ["row", "implementation", "products", "batch", "ms", "characters/s", "share of limit"]
    return "| " + " | ".join(head) + " |\n|" + " --- |" * len(head)


def format_row(result: Measurement) -> str:
    """Formats a row of the Markdown table."""
    share = "" if result.share is None else f"{result.share:.0%}"
    columns: list[Any] = [result.row, result.variant, result.precision, result.size, f"{result.milliseconds:.3g}"]
    return "| " + " | ".join(map(str, [*columns, f"{result.characters_per_second:,.0f}", share])) + " |"
