"""Reads and writes the logs of a run: `metrics.jsonl`, a JSON object per line, and `samples.txt`, titled texts."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tfcharrnn import files
from tfcharrnn.errors import UserError

_METRICS = "metrics.jsonl"
_SAMPLES = "samples.txt"
_SAMPLE_TITLE = re.compile(r"^--- (step \d.*) ---$", re.MULTILINE)


class LogWriter:
    """Appends to both logs of a run."""

    def __init__(self, run_dir: Path, sizes: dict[str, int] | None = None):
        """Opens the logs and truncates them.

        Args:
            run_dir: the run folder.
            sizes: file sizes in bytes to truncate to, from the checkpoint that a run resumes; None: empty the files.

        Raises:
            UserError: a file cannot be written.
        """
        self._paths = {name: run_dir / name for name in (_METRICS, _SAMPLES)}
        for name, path in self._paths.items():
            with _report_write_errors(path), open(path, "ab") as file:
                file.truncate(min((sizes or {}).get(name, 0), path.stat().st_size))

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows to `metrics.jsonl`; null replaces a value that is not finite, which JSON cannot represent."""
        self._append(_METRICS, "".join(json.dumps(_replace_non_finite(row)) + "\n" for row in rows))

    def write_sample(self, title: str, text: str) -> None:
        """Appends a text with its title to `samples.txt`."""
        self._append(_SAMPLES, f"--- {title} ---\n{text}\n\n")

    def sync(self) -> dict[str, int]:
        """Forces both files to disk; returns their sizes in bytes."""
        for path in self._paths.values():
            with _report_write_errors(path):
                files.sync(path)
        return {name: path.stat().st_size for name, path in self._paths.items()}

    def _append(self, name: str, text: str) -> None:
        path = self._paths[name]
        with _report_write_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(text)


class Metrics(NamedTuple):
    """The content of `metrics.jsonl`.

    Attributes:
        rows: the intact rows, without columns that are null.
        errors: what is wrong with each of the others.
    """

    rows: list[dict[str, float]]
    errors: list[str]


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Reads the rows of `metrics.jsonl`, ignoring a last line that is still being written.

    Raises:
        UserError: the file is missing, empty or damaged.
    """
    path = run_dir / _METRICS
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; name a run folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from None
    metrics = _parse_metrics(text[: text.rfind("\n") + 1])
    if metrics.errors:
        raise UserError(f"{path}: damaged ({metrics.errors[0]})")
    if not metrics.rows:
        raise UserError(f"{path}: has no rows yet")
    return metrics.rows


def read_intact_metrics(run_dir: Path) -> Metrics:
    """Reads `metrics.jsonl` as far as it is intact; a missing file has no rows."""
    return _parse_metrics(_read_text(run_dir / _METRICS))


def read_samples(run_dir: Path) -> list[dict[str, str]]:
    """Reads the samples of `samples.txt`, each a `title` and a `text`; a missing file has none."""
    _, *pieces = _SAMPLE_TITLE.split(_read_text(run_dir / _SAMPLES))
    return [
        {"title": title, "text": text.removeprefix("\n").removesuffix("\n").removesuffix("\n")}
        for title, text in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _parse_metrics(text: str) -> Metrics:
    rows, errors = [], []
    for line in text.splitlines():
        try:
            rows.append(_parse_row(line))
        except (ValueError, RecursionError) as error:
            errors.append(str(error))
    return Metrics(rows, errors)


def _parse_row(line: str) -> dict[str, float]:
    """Parses a row.

    Raises:
        ValueError: it is not a JSON object of numbers with a step.
    """
    row = json.loads(line)
    if isinstance(row, dict):
        row = {name: value for name, value in row.items() if value is not None}
        if "step" in row and all(map(_is_number, row.values())):
            return row
    raise ValueError("a row is not an object of numbers with a step")


def _replace_non_finite(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def _is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float can hold; NaN and infinity are."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def _read_text(path: Path) -> str:
    """Reads a file as UTF-8 with replacement characters; "" if it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


@contextlib.contextmanager
def _report_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); earlier checkpoints are intact") from None
