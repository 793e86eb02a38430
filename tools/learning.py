"""Measures what each part of training gives: the tables and the picture of docs/learning.md.

python tools/learning.py --input=FILE --output=FOLDER
python tools/learning.py --picture=docs/learning.svg --run_dirs=runs/minute,runs/ten_minutes

The first makes the tables of a text, as Markdown. Every row is a run in FOLDER: all parts together, each of them alone,
each of them left out, and others added. A run that is already there is not made again. The second draws the validation
loss of runs against the time of their training.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from absl import flags

import tfcharrnn
from tfcharrnn import cli
from tfcharrnn.config import ModelConfig, check_exclusive
from tfcharrnn.runs import plotting
from tfcharrnn.runs.logs import read_metrics

_FLAGS = flags.FLAGS

# models of a quarter of a million parameters
_GRU: dict[str, Any] = {"cell": "gru", "hidden_size": 256}
_LNLSTM: dict[str, Any] = {"cell": "lnlstm", "hidden_size": 224}
_RNN: dict[str, Any] = {"cell": "rnn", "hidden_size": 448}
_BASE: dict[str, Any] = {
    "layout": "stream",
    "seq_length": 64,
    "batch_size": 32,
    "val_fraction": 0.1,
    "sample_every": 0,
    "checkpoint_every": 0,
}
_VALIDATIONS = 10
# what each part is, and what stands in its place without it
_PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "`lnlstm` instead of a GRU": (_LNLSTM, _GRU),
    "learning rate 0.007 instead of 0.002": ({"learning_rate": 0.007}, {"learning_rate": 0.002}),
    "cosine to zero": ({"schedule": "cosine", "warmup_steps": 30}, {}),
    "average of the weights": ({"average": 0.99}, {}),
    "AdamW": ({"optimizer": "adamw", "weight_decay": 0.1}, {}),
    "`--beta_2=0.99`": ({"beta_2": 0.99}, {}),
    "random start": ({"random_start": True}, {}),
    "resets of the state": ({"reset_state": 0.02}, {}),
}
_DROPOUT = "locked dropout"  # a part as well, whose rates depend on the text
# what is not among the parts, added to all of them
_ADDED: dict[str, dict[str, Any]] = {
    "dropout that is not locked": {"locked_dropout": False},
    "`--embedding_size=64`": {"embedding_size": 64},
    "`--weight_decay=0.5`": {"weight_decay": 0.5},
    "`--weight_drop=0.2`": {"weight_drop": 0.2},
    "`--embedding_dropout=0.1`": {"embedding_dropout": 0.1},
    "an Elman RNN instead": _RNN,
}
# nanoGPT (Karpathy), config/train_shakespeare_char.py, from its README
_NANOGPT = {
    "nanoGPT, A100": {"seconds": 180.0, "val_loss": 1.4697},
    "nanoGPT, laptop CPU": {"seconds": 180.0, "val_loss": 1.88},
}


def main() -> None:
    """Prints the tables of a text, or draws the picture."""
    check_exclusive(input=_FLAGS.input, picture=_FLAGS.picture)
    if _FLAGS.picture:
        cli.require_flags(run_dirs="the runs to draw")
        draw_picture([Path(run_dir) for run_dir in _FLAGS.run_dirs], Path(_FLAGS.picture))
        return
    cli.require_flags(input="the text", output="the folder of the runs")
    cli.load_tensorflow()
    parts = {**_PARTS, _DROPOUT: (_choose_dropout(), {})}
    none, everything = _measure("none", _merge(parts, ())), _measure("all", _merge(parts, parts))
    print("| part | alone | left out |\n| --- | --- | --- |")
    print(f"| (none, all) | {none:.4f} | {everything:.4f} |", flush=True)
    for name in parts:
        alone = _measure(f"only {name}", _merge(parts, (name,)))
        without = _measure(f"without {name}", _merge(parts, [other for other in parts if other != name]))
        print(f"| {name} | {alone:.4f} | {without:.4f} |", flush=True)
    print("\n| added to all | |\n| --- | --- |")
    for name, settings in _ADDED.items():
        print(f"| {name} | {_measure(f'added {name}', _merge(parts, parts) | settings):.4f} |", flush=True)


def _choose_dropout() -> dict[str, Any]:
    """Returns the rates that `--minutes` chooses for so many steps on the text."""
    from tfcharrnn.training.budget import choose_dropout

    read = _FLAGS.steps * _BASE["batch_size"] * _BASE["seq_length"]
    characters = (1.0 - _BASE["val_fraction"]) * len(Path(_FLAGS.input).read_text(encoding="utf-8"))
    return choose_dropout(read / characters, ModelConfig()).settings


def _merge(parts: dict[str, tuple[dict[str, Any], dict[str, Any]]], chosen: Collection[str]) -> dict[str, Any]:
    """Returns the settings with the chosen parts, and without the others."""
    settings = dict(_BASE)
    for name, (with_it, without_it) in parts.items():
        settings |= with_it if name in chosen else without_it
    return settings


def _measure(name: str, settings: dict[str, Any]) -> float:
    """Returns the least validation loss of a run, in nats a character; trains it if it is not there."""
    run_dir = Path(_FLAGS.output) / "".join(letter if letter.isalnum() else "_" for letter in name)
    if not (run_dir / "metrics.jsonl").exists() or read_metrics(run_dir)[-1]["step"] < _FLAGS.steps:
        tfcharrnn.train_model(
            run_dir,
            input=[_FLAGS.input],
            steps=_FLAGS.steps,
            eval_every=math.ceil(_FLAGS.steps / _VALIDATIONS),
            seed=_FLAGS.seed,
            overwrite=True,
            quiet=True,
            **settings,
        )
    return min(row["val_loss"] for row in read_metrics(run_dir) if "val_loss" in row)


def draw_picture(run_dirs: list[Path], output: Path) -> None:
    """Draws the validation loss of runs against the time of their training, and the published points of nanoGPT."""
    plotting.draw(run_dirs, output, y=("val_loss",), x="time", points=_NANOGPT)


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_string("input", "", "The text.")
    flags.DEFINE_string("output", "", "The folder of the runs.")
    flags.DEFINE_integer("steps", 1500, "Training steps of each run.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of each run.", lower_bound=0)
    flags.DEFINE_string("picture", "", "The SVG file to draw.")
    flags.DEFINE_list("run_dirs", [], "The runs to draw.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
