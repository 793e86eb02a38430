"""Draws the loss curves of one or more runs.

python tools/plot.py --run_dir=RUN[,RUN...] --output=loss.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from absl import flags

from tfcharrnn import commandline
from tfcharrnn.errors import ConfigError, UserError

_FLAGS = flags.FLAGS


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = run_dir / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a run folder") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from None
    if not rows:
        raise UserError(f"{path}: has no rows yet")
    return rows


def draw(run_dirs: list[Path], output: Path) -> None:
    """Draws training loss as a line and validation loss as dots, one colour a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for index, run_dir in enumerate(run_dirs):
        rows, colour = read_metrics(run_dir), f"C{index}"
        axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], colour, lw=1, label=run_dir.name)
        evaluated = [row for row in rows if "val_loss" in row]
        axes.plot(
            [row["step"] for row in evaluated],
            [row["val_loss"] for row in evaluated],
            "o--",
            color=colour,
            ms=4,
            lw=1,
            label=f"{run_dir.name}, validation",
        )
    axes.set(xlabel="step", ylabel="loss, nats a character")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output, dpi=110)


def main() -> None:
    """Reads the flags and draws."""
    if not _FLAGS.run_dir:
        raise ConfigError("--run_dir is missing: name one or more run folders")
    try:
        draw([Path(name) for name in _FLAGS.run_dir], Path(_FLAGS.output))
    except ModuleNotFoundError:
        raise UserError("matplotlib is missing; install it with pip install 'tfcharrnn[plot]'") from None
    print(_FLAGS.output)


if __name__ == "__main__":
    flags.DEFINE_list("run_dir", [], "Run folders to draw.")
    flags.DEFINE_string("output", "loss.png", "The picture to write, PNG or SVG.")
    commandline.run(main)
