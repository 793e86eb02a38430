"""Measures what each part of training gives: the table of docs/learning.md, as Markdown.

python tools/learning.py --input=FILE --steps=1600 --output=FOLDER

Every row is a run in FOLDER: all parts together, each of them left out, and each of them alone. A run that is already
there is not made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

import tfcharrnn
from tfcharrnn import cli
from tfcharrnn.runs.logs import read_metrics

_FLAGS = flags.FLAGS

_BASE: dict[str, Any] = {
    "layout": "stream",
    "cell": "gru",
    "hidden_size": 256,
    "seq_length": 64,
    "batch_size": 32,
    "val_fraction": 0.1,
    "eval_every": 0,
    "sample_every": 0,
    "checkpoint_every": 0,
}
# what each part is, and the settings without it
_PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "learning rate 0.01": ({"learning_rate": 0.01}, {"learning_rate": 0.002}),
    "cosine to zero": ({"schedule": "cosine", "warmup_steps": 20}, {}),
    "average of the weights": ({"average": 0.98}, {}),
    "AdamW": ({"optimizer": "adamw", "weight_decay": 0.1}, {}),
    "beta_2 0.99": ({"beta_2": 0.99}, {}),
    "random start": ({"random_start": True}, {}),
    "embedding": ({"embedding_size": 64}, {}),
    "locked dropout 0.2": ({"output_dropout": 0.2, "locked_dropout": True}, {}),
    "weight drop 0.1": ({"weight_drop": 0.1}, {}),
}


def main() -> None:
    """Trains all runs and prints the table."""
    cli.require_flags(input="the text", output="the folder of the runs")
    cli.load_tensorflow()
    everything, nothing = _merge(_PARTS), _merge({})
    print("| part | alone | left out |\n| --- | --- | --- |")
    print(f"| (all, none) | {_measure('none', nothing):.4f} | {_measure('all', everything):.4f} |", flush=True)
    for name in _PARTS:
        alone = _measure(f"only {name}", _merge({name: _PARTS[name]}))
        without = _measure(f"without {name}", _merge({key: part for key, part in _PARTS.items() if key != name}))
        print(f"| {name} | {alone:.4f} | {without:.4f} |", flush=True)


def _merge(parts: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Returns the settings with some of the parts, and without the others."""
    settings = dict(_BASE)
    for name, (with_it, without_it) in _PARTS.items():
        settings |= with_it if name in parts else without_it
    return settings


def _measure(name: str, settings: dict[str, Any]) -> float:
    """Returns the last validation loss of a run, in nats a character; trains it if it is not there."""
    run_dir = Path(_FLAGS.output) / name.replace(" ", "_")
    if not (run_dir / "metrics.jsonl").exists() or read_metrics(run_dir)[-1]["step"] < _FLAGS.steps:
        tfcharrnn.train_model(
            run_dir, input=[_FLAGS.input], steps=_FLAGS.steps, seed=_FLAGS.seed, overwrite=True, quiet=True, **settings
        )
    return read_metrics(run_dir)[-1]["val_loss"]


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_string("input", "", "The text.")
    flags.DEFINE_string("output", "", "The folder of the runs.")
    flags.DEFINE_integer("steps", 1600, "Training steps of each run.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of each run.", lower_bound=0)


if __name__ == "__main__":
    cli.run_command(define_flags, main)
