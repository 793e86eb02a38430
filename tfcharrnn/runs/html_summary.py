"""Summarises a run in HTML for notebooks: a table and a small curve of the losses, as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

_WIDTH, _HEIGHT = 480, 160
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 24, 22
# more would not be seen
_MAX_POINTS = 400
# column, title and style of each curve; the colours are distinguishable with any colour vision, on white and black
_CURVES = (
    ("loss", "training loss", 'stroke="#2b83ba"'),
    ("val_loss", "validation loss", 'stroke="#d7631c" stroke-dasharray="6 3"'),
)


def summarise(title: str, values: Mapping[str, str], rows: Sequence[dict[str, float]]) -> str:
    """Returns a table of values above the curve of the losses.

    Args:
        title: the heading.
        values: what the table shows, by names.
        rows: the rows of `metrics.jsonl`.
    """
    cells = "".join(
        f'<tr><th scope="row" style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(value)}</td></tr>'
        for name, value in values.items()
    )
    table = f'<table style="color:inherit">{cells}</table>'
    return f"<div><strong>{html.escape(title)}</strong>{table}{draw_losses(rows)}</div>"


def format_loss(loss: float | None) -> str:
    """Formats a loss with its unit."""
    return "not measured" if loss is None else f"{loss:.4f} nats a character"


def draw_losses(rows: Sequence[dict[str, float]]) -> str:
    """Draws training and validation loss against the steps as SVG; "" if there are no rows with a loss."""
    curves = {
        column: [(row["step"], row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]
        for column, _, _ in _CURVES
    }
    steps = [step for points in curves.values() for step, _ in points]
    losses = [loss for points in curves.values() for _, loss in points]
    if not losses:
        return ""
    first, last, low, high = min(steps), max(steps), min(losses), max(losses)

    def place(step: float, loss: float) -> str:
        x = _LEFT + (step - first) / ((last - first) or 1) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - loss) / ((high - low) or 1) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{x:.1f},{y:.1f}"

    parts = [
        _write(_LEFT - 6, _TOP + 4, f"{high:.2f}", "end"),
        _write(_LEFT - 6, _HEIGHT - _BOTTOM + 4, f"{low:.2f}", "end"),
        _write(_LEFT, _HEIGHT - 5, f"step {first:,.0f}", "start"),
        _write(_WIDTH - _RIGHT, _HEIGHT - 5, f"{last:,.0f}", "end"),
    ]
    for index, (column, title, style) in enumerate(_CURVES):
        points = curves[column]
        if points:
            shown = " ".join(place(*point) for point in _thin_out(points))
            x = _LEFT + 170 * index
            parts.append(f'<polyline points="{shown}" fill="none" stroke-width="1.5" {style}/>')
            parts.append(f'<line x1="{x}" x2="{x + 24}" y1="10" y2="10" stroke-width="2" {style}/>')
            parts.append(_write(x + 30, 14, title, "start"))
    label = f"Losses from step {first:,.0f} to {last:,.0f}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'style="max-width:{_WIDTH}px;width:100%">{"".join(parts)}</svg>'
    )


def _thin_out(points: list[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """Returns at most about `_MAX_POINTS` of the points, with the last."""
    stride = math.ceil(len(points) / _MAX_POINTS)
    return points[::-1][::stride][::-1]


def _write(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="11" font-family="sans-serif" fill="currentColor">'
        f"{text}</text>"
    )
