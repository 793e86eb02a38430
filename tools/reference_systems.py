"""Compares runs of the reference systems with their published figures: a Markdown table and a curve for each.

python tools/reference_systems.py --runs=FOLDER --output=docs/reference

FOLDER has a run for each recipe, under the recipe's name: `FOLDER/dinosaur_names` was made by
`tfcharrnn train --recipe=dinosaur_names --input=... --run_dir=FOLDER/dinosaur_names`.
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
        text: the training text.
        key: the column of `metrics.jsonl` to compare with.
        unit: `step`, `epoch`, or `characters` (millions of characters trained on).
        figures: the published loss by position, in that unit.
        characters: characters that a loss is summed over.
    """

    text: str
    key: str
    unit: str
    figures: dict[float, float]
    characters: float = 1.0


_SHAKESPEARE_RNN = System("4.57 million characters of Shakespeare", "loss", "characters", {16 * 4.57: 1.73})
SYSTEMS = {
    "shakespeare_rnn": _SHAKESPEARE_RNN,
    "shakespeare_rnn_long": _SHAKESPEARE_RNN,
    "dinosaur_names": System(
        "1,536 names of dinosaurs",
        "smooth_loss",
        "step",
        {5000: 25.20, 10_000: 23.84, 15_000: 23.05, 25_000: 22.72, 35_000: 22.33},
        characters=1 + 18_374 / 1536,  # a name and its end
    ),
    "book_adagrad": System(
        "a book of 1.1 million characters, 54 symbols",
        "smooth_loss",
        "step",
        {500: 86.3, 1000: 76.8, 1500: 69.8, 2000: 65.5, 17_000: 53.7, 18_000: 53.0},
        characters=25,
    ),
    "tinyshakespeare_lstm": System(
        "Tiny Shakespeare", "loss", "step", {200: 2.159, 1000: 1.458, 2000: 1.300, 4000: 1.198}
    ),
    "tinyshakespeare_gru": System(
        "Tiny Shakespeare", "loss", "step", {200: 1.886, 1000: 1.381, 2000: 1.228, 4000: 1.162}
    ),
    "sonnets_sgd": System(
        "96,141 characters of the sonnets",
        "smooth_loss",
        "epoch",
        {2: 152.9, 5: 117.3, 10: 101.9, 20: 90.5, 40: 84.0},
        characters=50,
    ),
}
# recipes without a published curve, and the column to plot
WITHOUT_FIGURES = {"unicode_names": "smooth_loss", "sonnets_poem": "loss", "speeches_sgd": "smooth_loss"}


def list_positions(rows: list[dict[str, Any]], unit: str, characters_a_step: int) -> list[float]:
    """Returns the position of each row of the metrics in a unit of `System`."""
    if unit == "characters":
        return [row["step"] * characters_a_step / 1e6 for row in rows]
    return [row[unit] for row in rows]


def compare(run_dir: Path, system: System) -> list[tuple[float, float, float]]:
    """Returns for each figure that the run has reached its position, the figure, and the run's loss.

    The run's loss is that of the first row at or after the position.
    """
    run, rows = run_lib.load(run_dir), read_metrics(run_dir)
    positions = list_positions(rows, system.unit, run.training.batch_size * (run.data.seq_length - 1))
    found = []
    for position, figure in system.figures.items():
        index = bisect.bisect_left(positions, position * (1 - 1e-4))
        if index < len(rows):
            found.append((position, figure, rows[index][system.key]))
    return found


def format_table(name: str, system: System, found: list[tuple[float, float, float]]) -> str:
    """Formats a comparison as a Markdown table, in the published unit and in nats per character."""
    lines = [f"### {name}", "", f"| {system.unit} | published | here | published, nats a character | here |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for position, figure, ours in found:
        cells = [f"{position:,g}", f"{figure:g}", f"{ours:.4g}"]
        cells += [f"{loss / system.characters:.3f}" for loss in (figure, ours)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_run(run_dir: Path, key: str, system: System | None, output: Path) -> None:
    """Plots a run's curve, with the published figures as dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    run, rows = run_lib.load(run_dir), read_metrics(run_dir)
    unit = system.unit if system else "step"
    positions = list_positions(rows, unit, run.training.batch_size * (run.data.seq_length - 1))
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(positions, [row[key] for row in rows], lw=1, label="here")
    if system:
        axes.plot(list(system.figures), list(system.figures.values()), "o", color="C1", label="published")
        axes.legend()
    kind = "smoothed loss" if key == "smooth_loss" else "training loss"
    summed = key == "smooth_loss" and run.training.reduction == "sum"
    axes.set(
        title=run_dir.name,
        xlabel="millions of characters" if unit == "characters" else unit,
        ylabel=f"{kind}, nats {'an example' if summed else 'a character'}",
    )
    axes.grid(alpha=0.3)
    figure.savefig(output, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Reads the flags, prints the tables and plots the curves of all runs found."""
    runs, output = Path(_FLAGS.runs), Path(_FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    there = [name for name in (*SYSTEMS, *WITHOUT_FIGURES) if (runs / name).is_dir()]
    if not there:
        raise UserError(f"--runs={runs}: has no run of a recipe; create one with train --run_dir={runs}/dinosaur_names")
    for name in there:
        system = SYSTEMS.get(name)
        if system:
            print(format_table(name, system, compare(runs / name, system)), end="\n\n")
        plot_run(runs / name, system.key if system else WITHOUT_FIGURES[name], system, output / f"{name}.png")


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_string("runs", "runs", "Folder of the runs.")
    flags.DEFINE_string("output", "docs/reference", "Folder for the curves.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
