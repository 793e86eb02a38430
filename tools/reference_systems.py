"""Compares runs of the reference systems with their published figures: a Markdown table and a curve for each.

python tools/reference_systems.py --runs=FOLDER --output=docs/reference

FOLDER has runs of the recipes, under the recipe's name: `FOLDER/dinosaur_names` was made by
`tfcharrnn train --recipe=dinosaur_names --input=... --run_dir=FOLDER/dinosaur_names`, `..._seed1` with
`--seed=1`, and `..._before` by `tools/notebook_loops.py`, with the notebook's own weights and order.
"""

from __future__ import annotations

import bisect
import dataclasses
from pathlib import Path
from typing import Any

from absl import flags

from tfcharrnn import cli
from tfcharrnn.errors import UserError
from tfcharrnn.runs import run_folder as run_lib
from tfcharrnn.runs.logs import read_metrics

_FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class System:
    """A published training curve.

    Attributes:
        key: the column of `metrics.jsonl` to compare with.
        unit: `step`, `epoch` (passes that are done), or `characters` (millions of characters trained on).
        figures: the published loss by position, in that unit.
        characters: characters that a loss is summed over.
        is_same_text: the runs read the text that the figures are of; otherwise only the shape can be compared.
    """

    key: str
    unit: str
    figures: dict[float, float]
    characters: float = 1.0
    is_same_text: bool = True


_SHAKESPEARE_RNN = System("loss", "characters", {16 * 4.57: 1.73}, is_same_text=False)
SYSTEMS = {
    "shakespeare_rnn": _SHAKESPEARE_RNN,
    "shakespeare_rnn_long": _SHAKESPEARE_RNN,
    "dinosaur_names": System(
        "smooth_loss",
        "step",
        {5000: 25.2018, 10_000: 23.8439, 15_000: 23.05, 25_000: 22.72, 35_000: 22.33},
        characters=1 + 18_374 / 1536,  # a name and its end
    ),
    "book_adagrad": System(
        "smooth_loss",
        "step",
        {500: 86.3, 1000: 76.8, 1500: 69.8, 2000: 65.5, 17_000: 53.7, 18_000: 53.0},
        characters=25,
        is_same_text=False,
    ),
    "tinyshakespeare_lstm": System("loss", "step", {200: 2.159, 1000: 1.458, 2000: 1.300, 4000: 1.198}),
    "tinyshakespeare_gru": System("loss", "step", {200: 1.886, 1000: 1.381, 2000: 1.228, 4000: 1.162}),
    # "Epoch n" is printed before the nth pass
    "sonnets_sgd": System(
        "smooth_loss", "epoch", {1: 152.87, 4: 117.26, 9: 101.93, 19: 90.47, 39: 83.96}, characters=50
    ),
    "speeches_sgd": System("smooth_loss", "epoch", {1: 198.6, 2: 170.4, 12: 134.9}, characters=100, is_same_text=False),
}
# recipes without a published curve, and the column to plot
WITHOUT_FIGURES = {"unicode_names": "smooth_loss", "sonnets_poem": "loss"}
# runs of a recipe by the ending of their folder's name
RUNS = {"_before": "notebook's weights", "": "seed 0", "_seed1": "seed 1", "_seed2": "seed 2"}


def list_positions(rows: list[dict[str, Any]], unit: str, characters_a_step: int) -> list[float]:
    """Returns the position of each row of the metrics in a unit of `System`."""
    if unit == "characters":
        return [row["step"] * characters_a_step / 1e6 for row in rows]
    return [row[unit] for row in rows]


def find_runs(runs: Path, name: str) -> dict[str, Path]:
    """Returns the runs of a recipe that are there, by what sets them apart."""
    return {label: runs / f"{name}{end}" for end, label in RUNS.items() if (runs / f"{name}{end}").is_dir()}


def compare(run_dir: Path, system: System) -> dict[float, float]:
    """Returns the run's loss at each published position that it has reached: of the first row at or after it."""
    run, rows = run_lib.load(run_dir), read_metrics(run_dir)
    positions = list_positions(rows, system.unit, run.training.batch_size * (run.data.seq_length - 1))
    found = {}
    for position in system.figures:
        index = bisect.bisect_left(positions, position * (1 - 1e-4))
        if index < len(rows):
            found[position] = rows[index][system.key]
    return found


def format_table(name: str, system: System, runs: dict[str, Path]) -> str:
    """Formats a comparison as a Markdown table: for each figure the loss of each run, and the difference in percent.

    Where the text is another one, losses are in nats per character, since the alphabets differ as well.
    """
    unit = {"epoch": "passes", "characters": "millions of characters"}.get(system.unit, system.unit)
    per = 1.0 if system.is_same_text else system.characters
    found = {label: compare(run_dir, system) for label, run_dir in runs.items()}
    columns = [unit, "published", *found]
    lines = [f"### {name}", "", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for position, figure in system.figures.items():
        cells = [f"{position:,g}", f"{figure / per:.6g}"]
        for losses in found.values():
            loss = losses.get(position)
            cells.append("" if loss is None else f"{loss / per:.6g} ({100 * (loss / figure - 1.0):+.1f}%)")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_runs(name: str, runs: dict[str, Path], key: str, system: System | None, output: Path) -> None:
    """Plots the curves of a recipe's runs, with the published figures as dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    unit = system.unit if system else "step"
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for label, run_dir in runs.items():
        run, rows = run_lib.load(run_dir), read_metrics(run_dir)
        positions = list_positions(rows, unit, run.training.batch_size * (run.data.seq_length - 1))
        axes.plot(positions, [row[key] for row in rows], lw=1, label=label)
    if system:
        axes.plot(list(system.figures), list(system.figures.values()), "o", color="black", label="published")
    axes.legend()
    kind = "smoothed loss" if key == "smooth_loss" else "training loss"
    summed = key == "smooth_loss" and run.training.reduction == "sum"
    axes.set(
        title=name,
        xlabel={"epoch": "passes", "characters": "millions of characters"}.get(unit, unit),
        ylabel=f"{kind}, nats {'an example' if summed else 'a character'}",
    )
    axes.grid(alpha=0.3)
    figure.savefig(output, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Reads the flags, prints the tables and plots the curves of all runs found."""
    runs, output = Path(_FLAGS.runs), Path(_FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    found = {name: find_runs(runs, name) for name in (*SYSTEMS, *WITHOUT_FIGURES)}
    if not any(found.values()):
        raise UserError(f"--runs={runs}: has no run of a recipe; create one with train --run_dir={runs}/dinosaur_names")
    for name, run_dirs in found.items():
        system = SYSTEMS.get(name)
        if run_dirs and system:
            print(format_table(name, system, run_dirs), end="\n\n")
        if run_dirs:
            key = system.key if system else WITHOUT_FIGURES[name]
            plot_runs(name, run_dirs, key, system, output / f"{name}.png")


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_string("runs", "runs", "Folder of the runs.")
    flags.DEFINE_string("output", "docs/reference", "Folder for the curves.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
