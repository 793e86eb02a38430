"""Curves of training runs, drawn from their `metrics.jsonl`."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfcharrnn import files
from tfcharrnn.errors import ConfigError, UserError

# the columns of metrics.jsonl that can be drawn, and what they are
COLUMNS = {
    "loss": "training loss",
    "smooth_loss": "smoothed loss",
    "val_loss": "validation loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "chars_per_second": "characters a second",
    "data_wait": "share of the time spent waiting for data",
}
# what to draw them against, and the column that says it
AXES = {"step": "step", "epoch": "epoch", "time": "seconds"}
FORMATS = ("png", "svg")

_LOSSES = ("loss", "smooth_loss", "val_loss")
_STYLES: dict[str, dict[str, Any]] = {
    "loss": {"lw": 1},
    "smooth_loss": {"lw": 2, "alpha": 0.6},
    "val_loss": {"lw": 1, "ls": "--", "marker": "o", "ms": 4},
}


def check_available() -> None:
    """Checks that there is something to draw with.

    Raises:
        UserError: there is not.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("matplotlib is missing; install it with pip install 'tfcharrnn[plot]'")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`; a last one that is being written is left out.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = run_dir / "metrics.jsonl"
    try:
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; name a run folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from None
    if not all(isinstance(row, dict) and "step" in row for row in rows):
        raise UserError(f"{path}: damaged (a row is no object with a step)")
    if not rows:
        raise UserError(f"{path}: has no rows yet")
    return rows


def draw(run_dirs: Sequence[Path], output: Path, y: Sequence[str] = ("loss", "val_loss"), x: str = "step") -> None:
    """Draws curves of some runs, a colour each; losses stand in one panel, everything else in a panel of its own.

    Args:
        run_dirs: the run folders.
        output: the picture, PNG or SVG by its name; it appears whole, or the old one stays.
        y: which of `COLUMNS`.
        x: which of `AXES`.

    Raises:
        ConfigError: a column, an axis or a format that there is not.
        UserError: a run without metrics, or in which nothing of that was measured.
    """
    check_available()
    from matplotlib.figure import Figure

    for name, value, known in [("x", x, AXES), *(("y", column, COLUMNS) for column in y)]:
        if value not in known:
            raise ConfigError(f"--{name} must be of {', '.join(known)}. Received: {value!r}")
    kind = output.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise ConfigError(f"--output must end in .{' or .'.join(FORMATS)}. Received: {output}")
    runs = [(run_dir.resolve().name, read_metrics(run_dir)) for run_dir in run_dirs]
    panels = _panels(y, is_summed=any(_is_summed(run_dir) for run_dir in run_dirs))
    unit, label = _time_unit(runs) if x == "time" else (1.0, x)
    figure = Figure(figsize=(8, 1.5 + 3 * len(panels)), layout="constrained")
    axes_of_panels = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, columns) in zip(axes_of_panels, panels, strict=True):
        for index, (name, rows) in enumerate(runs):
            for column in columns:
                points = [(row[AXES[x]] / unit, row[column]) for row in rows if column in row and AXES[x] in row]
                style = {"lw": 1, **_STYLES.get(column, {}), "color": f"C{index}"}
                what = name if len(columns) == 1 else f"{name}, {COLUMNS[column]}"
                if points:
                    axes.plot(*zip(*points, strict=True), label=what, **style)
        if not axes.lines:
            raise UserError(f"{', '.join(map(str, run_dirs))}: no row has {' or '.join(columns)} and {AXES[x]}")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        axes.legend()
    axes_of_panels[-1].set_xlabel(label)
    picture = io.BytesIO()
    figure.savefig(picture, format=kind, dpi=110)
    files.write_bytes(output, picture.getvalue())


def _panels(y: Sequence[str], *, is_summed: bool) -> list[tuple[str, list[str]]]:
    """The panels from top to bottom: what each shows, and its columns."""
    together = [column for column in _LOSSES if column in y and not (is_summed and column == "smooth_loss")]
    panels = [("loss, nats a character", together)] if together else []
    if is_summed and "smooth_loss" in y:
        panels.append(("smoothed loss, nats an example", ["smooth_loss"]))
    return panels + [(title, [column]) for column, title in COLUMNS.items() if column in y and column not in _LOSSES]


def _is_summed(run_dir: Path) -> bool:
    """Whether a run's smoothed loss is a sum over an example, and not of a character."""
    try:
        return files.read_json(run_dir / "config.json")["training"]["reduction"] == "sum"
    except (UserError, KeyError, TypeError):  # metrics alone can be drawn too
        return False


def _time_unit(runs: list[tuple[str, list[dict[str, Any]]]]) -> tuple[float, str]:
    longest = max((row["seconds"] for _, rows in runs for row in rows if "seconds" in row), default=0.0)
    for unit, name, least in ((3600.0, "hours", 7200.0), (60.0, "minutes", 120.0)):
        if longest >= least:
            return unit, f"time in training steps, {name}"
    return 1.0, "time in training steps, seconds"
