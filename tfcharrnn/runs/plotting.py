"""Plots the metrics of training runs."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tfcharrnn import files
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.runs.logs import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# the columns of metrics.jsonl that can be plotted, with their titles
COLUMNS = {
    "loss": "training loss",
    "smooth_loss": "smoothed loss",
    "val_loss": "validation loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "chars_per_second": "characters per second",
    "data_wait": "fraction of time spent waiting for data",
}
# the choices for the x axis, with their columns
AXES = {"step": "step", "epoch": "epoch", "time": "seconds"}
FORMATS = ("png", "svg")

_LOSSES = ("loss", "smooth_loss", "val_loss")
_STYLES: dict[str, dict[str, Any]] = {
    "loss": {"lw": 1},
    "smooth_loss": {"lw": 2, "alpha": 0.6},
    "val_loss": {"lw": 1, "ls": "--", "marker": "o", "ms": 4},
}


class _Run(NamedTuple):
    name: str
    rows: list[dict[str, float]]


class _Panel(NamedTuple):
    title: str
    columns: list[str]


class _TimeUnit(NamedTuple):
    name: str
    seconds: float


def check_available() -> None:
    """Checks that matplotlib is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("matplotlib is missing; install it with pip install 'tfcharrnn[plot]'")


def draw(
    run_dirs: Sequence[Path],
    output: Path,
    y: Sequence[str] = ("loss", "val_loss"),
    x: str = "step",
    points: Mapping[str, dict[str, float]] | None = None,
) -> None:
    """Draws the curves of runs, one colour per run; the losses share a panel, other columns have one each.

    Args:
        run_dirs: the run folders.
        output: the PNG or SVG file, which is written atomically.
        y: columns to draw, of `COLUMNS`.
        x: the x axis, one of `AXES`.
        points: figures to compare with, each a row as in `metrics.jsonl`, by their names.

    Raises:
        ConfigError: an unknown column, axis or file format.
        UserError: a run has no metrics, or no run has one of the columns.
    """
    check_available()
    from matplotlib.figure import Figure

    for name, value, known in [("x", x, AXES), *(("y", column, COLUMNS) for column in y)]:
        if value not in known:
            raise ConfigError(f"--{name} must be one of {', '.join(known)}. Received: {value!r}")
    file_format = output.suffix.lower().lstrip(".")
    if file_format not in FORMATS:
        raise ConfigError(f"--output must end in .{' or .'.join(FORMATS)}. Received: {output}")
    runs = [_Run(_get_label(run_dir), read_metrics(run_dir)) for run_dir in run_dirs]
    runs += [_Run(name, [row]) for name, row in (points or {}).items()]
    panels = _arrange_panels(y, is_summed=any(_is_loss_summed(run_dir) for run_dir in run_dirs))
    unit = _choose_time_unit(runs) if x == "time" else None
    figure = Figure(figsize=(8, 1.5 + 3 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel, runs, AXES[x], unit.seconds if unit else 1.0)
        if not axes.lines:
            names = ", ".join(map(str, run_dirs))
            raise UserError(f"{names}: no row has {' or '.join(panel.columns)} and {AXES[x]}")
        axes.legend()
    all_axes[-1].set_xlabel(f"time in training steps, {unit.name}" if unit else x)
    image = io.BytesIO()
    figure.savefig(image, format=file_format, dpi=110)
    files.write_bytes(output, image.getvalue())


def _draw_panel(axes: Axes, panel: _Panel, runs: list[_Run], x_column: str, x_unit: float) -> None:
    for index, (name, rows) in enumerate(runs):
        for column in panel.columns:
            points = [(row[x_column] / x_unit, row[column]) for row in rows if column in row and x_column in row]
            style = {"lw": 1, **_STYLES.get(column, {}), "color": f"C{index}"}
            label = name if len(panel.columns) == 1 else f"{name}, {COLUMNS[column]}"
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set_ylabel(panel.title)
    axes.grid(alpha=0.3)


def _arrange_panels(y: Sequence[str], *, is_summed: bool) -> list[_Panel]:
    """Distributes columns over panels, from top to bottom; a summed loss is on a scale of its own."""
    losses = [column for column in _LOSSES if column in y and not (is_summed and column == "smooth_loss")]
    panels = [_Panel("loss, nats per character", losses)] if losses else []
    if is_summed and "smooth_loss" in y:
        panels.append(_Panel("smoothed loss, nats per example", ["smooth_loss"]))
    others = [_Panel(title, [column]) for column, title in COLUMNS.items() if column in y and column not in _LOSSES]
    return panels + others


def _is_loss_summed(run_dir: Path) -> bool:
    """Whether a run's smoothed loss is a sum over an example instead of a mean over its characters."""
    try:
        return files.read_json(run_dir / "config.json")["training"]["reduction"] == "sum"
    except (UserError, KeyError, TypeError):  # metrics can be plotted without a config.json
        return False


def _choose_time_unit(runs: list[_Run]) -> _TimeUnit:
    longest = max((row["seconds"] for run in runs for row in run.rows if "seconds" in row), default=0.0)
    if longest >= 7200.0:
        return _TimeUnit("hours", 3600.0)
    return _TimeUnit("minutes", 60.0) if longest >= 120.0 else _TimeUnit("seconds", 1.0)


def _get_label(run_dir: Path) -> str:
    """Returns the name of a folder; bytes that are not UTF-8 cannot be drawn."""
    return run_dir.resolve().name.encode("utf-8", "replace").decode("utf-8")
