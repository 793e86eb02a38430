"""Checks of everything that depends on the device: `tfcharrnn doctor` and `pytest -m gpu` run the same ones.

Every implementation of every cell is compared with the reference in NumPy, float64; every layout is trained; a run goes
from device to device; and text is compared with the reference and with a CPU's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn import cell_registry, devices
from tfcharrnn.config import GradcheckConfig, ModelConfig
from tfcharrnn.errors import UserError, first_line
from tfcharrnn.inference.trained_model import TrainedModel, load_model
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model import backends
from tfcharrnn.model.cells import State
from tfcharrnn.model.char_rnn import CharRNN, split_batch
from tfcharrnn.training.setup import train_model
from tfcharrnn.verification import gradient_check, numpy_reference
from tfcharrnn.verification.device_bench import use_precision
from tfcharrnn.verification.reference_cells import Array

# The largest relative error, by the type of the products. Float32 has 24 bits and sums of a few dozen terms, TF32 has
# 11 bits, bfloat16 has 8; the layer-normalised LSTM divides by small deviations, which enlarges errors tenfold.
_TOLERANCES = {"float32": 2e-5, "TF32": 2e-2, "bfloat16": 0.1}
_NORMALISED_FACTOR = 10.0
_GRADCHECK_TOLERANCE = 1e-7
_VOCABULARY, _HIDDEN, _BATCH, _WIDTH = 11, 6, 4, 9
_STEPS = 20
_TEXT = "the cat sat on the mat; the dog sat on the log.\n" * 40
_RUN = {
    "cell": "gru",
    "hidden_size": 8,
    "batch_size": 4,
    "steps": _STEPS,
    "learning_rate": 0.02,
    "val_fraction": 0.1,
    "sample_length": 5,
    "log_every": 1,
    "quiet": True,
}
_LAYOUTS: dict[str, dict[str, Any]] = {
    "sequences": {"seq_length": 12},
    "stream": {"seq_length": 12},
    "lines": {},
    "windows": {"seq_length": 9, "batch_size": 64},  # of one prediction each
}
_GREEDY_LENGTH, _SAMPLED_LENGTH = 60, 200
# a greedy symbol may be less likely than the reference's by rounding
_MAX_LOGIT_ERROR = 1e-3


class CheckError(Exception):
    """A check that failed; the message says what is wrong."""


class NotApplicableError(Exception):
    """A check that has no meaning on this device; the message says why."""


class Check(NamedTuple):
    """Something to check.

    Attributes:
        name: what it is about.
        run: checks it, and returns what was measured. Raises `CheckError`, `NotApplicableError`, or any other error of
            what is checked.
    """

    name: str
    run: Callable[[], str]


class Outcome(NamedTuple):
    """How a check went.

    Attributes:
        name: its name.
        result: passed, failed or not applicable.
        detail: what was measured, or why.
        memory: the most memory that the device's process had, in MiB.
        seconds: how long it took.
    """

    name: str
    result: Literal["passed", "failed", "not applicable"]
    detail: str
    memory: float
    seconds: float


def run_check(check: Check) -> Outcome:
    """Runs a check in float32 without TF32, and measures its memory."""
    gpus = devices.list_gpus()
    if gpus:
        tf.config.experimental.reset_memory_stats("GPU:0")
    start = time.perf_counter()
    result: Literal["passed", "failed", "not applicable"] = "passed"
    try:
        with use_precision("float32"):
            detail = check.run()
    except NotApplicableError as error:
        result, detail = "not applicable", str(error)
    except Exception as error:  # whatever fails on this device is what the check is for
        known = isinstance(error, (CheckError, UserError))
        result, detail = "failed", str(error) if known else _describe_error(error)
    seconds = time.perf_counter() - start
    if gpus:
        memory = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return Outcome(check.name, result, detail, memory, seconds)


def _describe_error(error: Exception) -> str:
    """Returns the type of an error and its first line, or the last line of one that arose while a graph was traced."""
    text = first_line(error)
    if text.startswith("in user code"):
        text = str(error).strip().splitlines()[-1].strip()
    return f"{type(error).__name__}: {text}"


def list_checks(own_cells: tuple[str, ...] = ()) -> list[Check]:
    """Lists all checks.

    Args:
        own_cells: cells to check instead of the built-in ones.
    """
    checks = []
    for cell in own_cells or cell_registry.BUILT_IN:
        if cell in cell_registry.BUILT_IN:
            checks += _list_cell_checks(cell)
        else:
            check = functools.partial(check_by_differences, cell)
            checks.append(Check(f"{cell} custom float64, central differences", check))
    cell = own_cells[0] if own_cells else "gru"
    checks += [Check(f"train {layout}, {cell}", functools.partial(check_training, cell, layout)) for layout in _LAYOUTS]
    checks.append(Check(f"a run from device to device, {cell}", functools.partial(check_moving, cell)))
    if not own_cells:
        checks.append(Check("greedy text by the reference", check_greedy_text))
        checks.append(Check("sampled text as on the CPU", check_sampled_text))
    return checks


def _list_cell_checks(cell: str) -> list[Check]:
    names = [("custom", "float32"), ("custom", "TF32"), ("custom", "bfloat16")]
    if cell in backends.LIBRARY_CELLS:
        names += [("keras", "float32"), ("cudnn", "float32"), ("cudnn", "TF32")]
    return [
        Check(f"{cell} {implementation} {precision}", functools.partial(check_cell, cell, implementation, precision))
        for implementation, precision in names
    ]


# Cells


def check_cell(cell: str, implementation: str, precision: str) -> str:
    """Compares logits, last state, loss and every gradient of two layers with the reference in NumPy.

    On whole texts, compiled as a whole where a small training step would be; and in float32 also on padded texts, where
    steps after the end of a row are skipped, with only the loops compiled, as in a large training step.

    Args:
        cell: a built-in cell.
        implementation: the code that runs it.
        precision: float32, TF32 or bfloat16, the type of the products.
    """
    if precision == "TF32" and not devices.list_gpus():
        raise NotApplicableError("only NVIDIA GPUs have TF32")
    if implementation == "cudnn" and not backends.is_cudnn_available():
        raise NotApplicableError("only NVIDIA GPUs have cuDNN")
    tolerance = _TOLERANCES[precision] * (_NORMALISED_FACTOR if cell == "lnlstm" else 1.0)
    errors: dict[str, float] = {}
    with use_precision(precision):
        for layout in ("sequences", "lines") if precision == "float32" else ("sequences",):
            found = _compare_with_reference(cell, implementation, precision, layout)
            errors |= {f"{name} ({layout})": error for name, error in found.items()}
    return _check_errors(errors, tolerance)


def _check_errors(errors: dict[str, float], tolerance: float) -> str:
    """Returns the largest relative error with what has it.

    Raises:
        CheckError: it is above the tolerance, or not a number.
    """
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    summary = f"largest relative error {errors[worst]:.1e}, of {worst}"
    if not errors[worst] <= tolerance:
        raise CheckError(f"{summary}, above {tolerance:.0e}")
    return summary


def _compare_with_reference(cell: str, implementation: str, precision: str, layout: str) -> dict[str, float]:
    """Returns the relative error of everything that a training step computes, by name."""
    config = ModelConfig(
        cell=cell,
        implementation=implementation,
        precision="bfloat16" if precision == "bfloat16" else "float32",
        hidden_size=_HIDDEN,
        num_layers=2,
        embedding_size=3 if layout == "lines" else 0,
    )
    generator = np.random.default_rng(0)
    model = CharRNN(config, _VOCABULARY, layout=LAYOUTS[layout])
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0.0, 0.5, variable.shape))
    ids = generator.integers(3, _VOCABULARY, (_BATCH, _WIDTH)).astype(np.int32)
    state = tf.nest.map_structure(
        lambda zeros: tf.constant(generator.normal(0.0, 0.5, zeros.shape), tf.float32), model.initial_state(_BATCH)
    )
    if model.layout.pad_id is not None:
        ids[np.arange(_WIDTH) >= [[_WIDTH], [2], [5], [7]]] = model.layout.pad_id
    got = _run_step(model, tf.constant(ids), state)
    return _measure_errors(cell, model, ids, state, got)


def _run_step(model: CharRNN, ids: tf.Tensor, state: tuple[State, ...]) -> dict[str, tf.Tensor]:
    """Computes losses, the state after and the gradients, by name; see `check_cell` for what is compiled."""

    def run(ids: tf.Tensor, state: tuple[State, ...]) -> dict[str, tf.Tensor]:
        variables = numpy_reference.variables(model)
        with tf.GradientTape() as tape:
            losses, last = model.losses(ids, state)
            loss = tf.reduce_sum(losses) / model.count_targets(ids)
        gradients = tape.gradient(loss, variables)
        values = {"losses": losses} | {f"d {name}": tf.convert_to_tensor(d) for name, d in gradients.items()}
        parts = {f"state {index}": part for index, part in enumerate(tf.nest.flatten(last))}
        return values | parts

    is_whole = model.backend.jit_compile and model.layout.pad_id is None
    compiled = tf.function(run, jit_compile=is_whole, autograph=False).get_concrete_function(ids, state)
    return dict(compiled(ids, state))


def _measure_errors(
    cell: str, model: CharRNN, ids: npt.NDArray[np.int32], state: tuple[State, ...], got: dict[str, tf.Tensor]
) -> dict[str, float]:
    inputs, targets = (array.T for array in split_batch(ids))
    mask = np.ones(targets.shape, bool) if model.layout.pad_id is None else targets != model.layout.pad_id
    parameters = {name: value.numpy().astype(float) for name, value in numpy_reference.variables(model).items()}
    expected = numpy_reference.run_model(
        cell,
        parameters,
        inputs,
        targets,
        state=tf.nest.map_structure(lambda array: array.numpy().astype(float), state),
        mask=mask,
        weights=mask.astype(float),
    )
    losses, _ = numpy_reference.cross_entropy(expected.logits, targets)
    values: dict[str, Array] = {"losses": np.where(mask, losses, 0.0).T}
    values |= {f"d {name}": gradient for name, gradient in expected.gradients.items()}
    values |= {f"state {index}": part for index, part in enumerate(tf.nest.flatten(expected.state))}
    return {name: numpy_reference.relative_error(value, values[name]) for name, value in got.items()}


def check_by_differences(cell: str) -> str:
    """Compares the gradients of a cell that has no reference with central differences of its loss, in float64."""
    config = GradcheckConfig(cell=cell, hidden_size=3, embedding_size=0, batch_size=2, seq_length=4)
    errors: dict[str, float] = {}
    for kind in ("whole", "padded"):
        problem = gradient_check.build_problem(config, gradient_check.Case(1, 0, kind), cell, "custom")
        found = gradient_check.compute_relative_errors(problem)
        errors |= {f"d {name} ({kind})": error for name, error in found.items()}
    return _check_errors(errors, _GRADCHECK_TOLERANCE)


# Runs


def check_training(cell: str, layout: str) -> str:
    """Trains 20 steps of a layout, as `train` does; the loss must fall."""
    with tempfile.TemporaryDirectory() as folder:
        losses = _train(Path(folder) / "run", cell=cell, layout=layout)
    if not (all(map(math.isfinite, losses)) and losses[-1] < losses[0]):
        raise CheckError(f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f} in {_STEPS} steps")
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f}"


def _train(run_dir: Path, layout: str = "stream", **settings: Any) -> list[float]:
    """Trains on the text of the checks, and returns the loss of each step."""
    from tfcharrnn.runs.logs import read_metrics

    with _own_cache(run_dir.parent):
        given = settings if settings.get("resume") else {**_RUN, **_LAYOUTS[layout], "layout": layout, **settings}
        train_model(run_dir, text=_TEXT, **given)
    return [row["loss"] for row in read_metrics(run_dir)]


@contextlib.contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """Keeps the texts of the checks out of the user's cache."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def check_moving(cell: str, *, on_cpu: bool | None = None) -> str:
    """Trains here, goes on in a process on the CPU and then here again; both must agree about the model.

    Args:
        cell: the cell.
        on_cpu: whether there is a CPU beside the device; None: whether the device is a GPU.
    """
    if not (bool(devices.list_gpus()) if on_cpu is None else on_cpu):
        raise NotApplicableError("the CPU is the only device")
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        _train(run_dir, cell=cell, steps=10)
        command = [sys.executable, "-m", "tfcharrnn", "train", "--device=cpu", "--resume", f"--run_dir={run_dir}"]
        (Path(folder) / "text.txt").write_text(_TEXT, encoding="utf-8")
        environment = {**os.environ, "XDG_CACHE_HOME": str(Path(folder) / "cache")}
        command += [f"--input={folder}/text.txt", "--steps=15"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise CheckError(f"on the CPU: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        elsewhere = load_model(run_dir).run.path  # the checkpoint that the CPU wrote
        losses = _train(elsewhere, resume=True, steps=_STEPS)
    if len(losses) != _STEPS or not losses[-1] < losses[0]:
        raise CheckError(f"the losses of {_STEPS} steps are {losses}")
    return f"10 steps here, 5 on the CPU, 5 here: loss {losses[0]:.3f} to {losses[-1]:.3f}"


# Text


def check_greedy_text() -> str:
    """Generates greedily, and checks with the reference that every symbol is the likeliest, up to rounding."""
    with tempfile.TemporaryDirectory() as folder:
        trained = _train_sampler(Path(folder))
        text = trained.generate("the ", length=_GREEDY_LENGTH, greedy=True)
        ids = trained.run.vocabulary.encode(text, "text")
        named = numpy_reference.variables(trained.model)
    parameters = {name: value.numpy().astype(float) for name, value in named.items()}
    logits = numpy_reference.run_model("gru", parameters, ids[:-1, None], ids[1:, None]).logits[:, 0]
    chosen = logits[np.arange(len(logits)), ids[1:]]
    error = float((logits.max(axis=1) - chosen)[len("the ") - 1 :].max())
    if error > _MAX_LOGIT_ERROR:
        raise CheckError(f"a symbol was chosen whose logit is {error:.2g} below that of the likeliest")
    return f"{_GREEDY_LENGTH} symbols are the likeliest, up to {error:.1e} in a logit"


def check_sampled_text() -> str:
    """Compares a sampled text with the one that the same weights and seed give on the CPU."""
    if not devices.list_gpus():
        raise NotApplicableError("the CPU is the only device")
    with tempfile.TemporaryDirectory() as folder:
        trained = _train_sampler(Path(folder))
        here = trained.generate("the ", length=_SAMPLED_LENGTH, seed=1)
        with tf.device("CPU:0"):
            model = trained.model.copy()
            sampler = type(trained.sampler)(model, trained.run.vocabulary, normalise=trained.sampler.normalise)
            there = dataclasses.replace(trained, model=model, sampler=sampler).generate(
                "the ", length=_SAMPLED_LENGTH, seed=1
            )
    differing = (index for index, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)
    same = next(differing, len(here)) - len("the ")
    # two symbols whose noisy logits are equal in float32 may be told apart on one device only
    if same < _SAMPLED_LENGTH // 4:
        raise CheckError(f"only the first {same} of {_SAMPLED_LENGTH} symbols are those of the CPU")
    return f"the first {same} of {_SAMPLED_LENGTH} symbols are those of the CPU"


def _train_sampler(folder: Path) -> TrainedModel:
    _train(folder / "run", steps=5)
    return load_model(folder / "run")
