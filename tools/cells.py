"""Compares the cells: the table of docs/cells.md, as Markdown.

python tools/cells.py --input=FILE --output=FOLDER

Every model has about --parameters parameters. It is trained twice: for --steps steps, and for as many as it takes in
--seconds at the speed of that run. A run that is already in FOLDER is not made again.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

import tfcharrnn
from tfcharrnn import cell_registry, cli
from tfcharrnn.config import ModelConfig
from tfcharrnn.runs.logs import read_metrics

_FLAGS = flags.FLAGS

_TRAINING = {
    "layout": "stream",
    "seq_length": 64,
    "batch_size": 32,
    "val_fraction": 0.1,
    "optimizer": "adamw",
    "beta_2": 0.99,
    "schedule": "cosine",
    "warmup_steps": 50,
    "average": 0.99,
    "random_start": True,
    "eval_every": 0,
    "sample_every": 0,
    "checkpoint_every": 0,
}
_DEEP: dict[str, Any] = {"num_layers": 4, "residual": True, "layer_norm": True}


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        hidden_size: units in a layer.
        loss_of_steps: validation loss after --steps, in nats a character.
        loss_of_seconds: validation loss after --seconds of training.
        steps_of_seconds: steps in that time.
        training_speed: characters a second in training, the median of a run.
        sampling_speed: characters a second of one text.
        megabytes: the largest memory of the training process.
    """

    hidden_size: int
    loss_of_steps: float
    loss_of_seconds: float
    steps_of_seconds: int
    training_speed: float
    sampling_speed: float
    megabytes: int


def main() -> None:
    """Trains all models and prints the table."""
    cli.require_flags(input="the text", output="the folder of the runs")
    cli.load_tensorflow()
    print(
        f"| cell | units | loss after {_FLAGS.steps:,} steps | after {_FLAGS.seconds:.0f} s (steps) "
        "| characters/s, training | sampling | memory, MB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    models: dict[str, dict[str, Any]] = {cell: {"cell": cell} for cell in _FLAGS.cells}
    for cell in _FLAGS.deep_cells:
        models[f"{cell}, 4 layers, residual, layer norm"] = {"cell": cell, **_DEEP}
    for name, model in models.items():
        row = measure(name, model)
        print(
            f"| {name} | {row.hidden_size} | {row.loss_of_steps:.4f} | {row.loss_of_seconds:.4f} "
            f"({row.steps_of_seconds:,}) | {row.training_speed:,.0f} | {row.sampling_speed:,.0f} | {row.megabytes:,} |",
            flush=True,
        )


def measure(name: str, model: dict[str, Any]) -> Row:
    """Trains a model twice and samples from it."""
    hidden_size = choose_hidden_size(model, _FLAGS.parameters)
    settings = {**_TRAINING, **model, "hidden_size": hidden_size, "learning_rate": _FLAGS.learning_rate}
    folder = name.replace(", ", "_").replace(" ", "_")
    first = Path(_FLAGS.output) / f"{folder}_steps"
    megabytes = train(first, settings | {"steps": _FLAGS.steps})
    rows = read_metrics(first)
    speed = statistics.median(row["chars_per_second"] for row in rows[1:] or rows)
    steps = max(1, int(_FLAGS.seconds * speed / (settings["batch_size"] * settings["seq_length"])))
    second = Path(_FLAGS.output) / f"{folder}_seconds"
    train(second, settings | {"steps": steps})
    return Row(
        hidden_size,
        rows[-1]["val_loss"],
        read_metrics(second)[-1]["val_loss"],
        steps,
        speed,
        measure_sampling(second),
        megabytes,
    )


def choose_hidden_size(model: dict[str, Any], parameters: int, vocabulary_size: int = 65) -> int:
    """Returns the largest number of units, a multiple of 8, with at most so many parameters."""
    from tfcharrnn.model.char_rnn import variable_shapes

    size = 8
    while True:
        shapes = variable_shapes(ModelConfig(**model, hidden_size=size + 8), vocabulary_size)
        if sum(map(math.prod, shapes.values())) > parameters:
            return size
        size += 8


def train(run_dir: Path, settings: dict[str, Any]) -> int:
    """Trains a run, unless it is there; returns the largest memory of the process in MB."""
    note = run_dir.with_suffix(".json")
    if not note.exists():
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", "tfcharrnn.train", f"--input={_FLAGS.input}", f"--run_dir={run_dir}"]
        process = subprocess.Popen(
            [*command, "--overwrite", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stderr is not None
        lines = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.stderr.buffer.write(lines)
            raise SystemExit(f"{run_dir}: training failed")
        note.write_text(json.dumps({"megabytes": usage.ru_maxrss // 1024}))
    return int(json.loads(note.read_text())["megabytes"])


def measure_sampling(run_dir: Path, length: int = 2000) -> float:
    """Returns how many characters of one text are generated in a second, the median of five texts."""
    model = tfcharrnn.load_model(run_dir)
    model.generate(length=length)
    seconds = []
    for seed in range(5):
        start = time.perf_counter()
        model.generate(length=length, seed=seed)
        seconds.append(time.perf_counter() - start)
    return length / statistics.median(seconds)


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_string("input", "", "The text.")
    flags.DEFINE_string("output", "", "The folder of the runs.")
    flags.DEFINE_list("cells", list(cell_registry.BUILT_IN), "The cells with one layer.")
    flags.DEFINE_list("deep_cells", ["gru", "mingru", "sru"], "The cells with four layers.")
    flags.DEFINE_integer("parameters", 400_000, "Parameters of each model, at most.", lower_bound=10_000)
    flags.DEFINE_integer("steps", 1500, "Training steps of the first run of each model.", lower_bound=1)
    flags.DEFINE_float("seconds", 30.0, "Seconds of training of the second run of each model.", lower_bound=0.1)
    flags.DEFINE_float("learning_rate", 0.006, "Learning rate of all runs.", lower_bound=0.0)


if __name__ == "__main__":
    cli.run_command(define_flags, main)
