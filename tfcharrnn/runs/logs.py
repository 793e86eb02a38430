"""Reads and writes the logs of a run: `metrics.jsonl`, a JSON object per line, and `samples.txt`, titled texts."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from tfcharrnn import files, portability
from tfcharrnn.errors import UserError

_METRICS = "metrics.jsonl"
_SAMPLES = "samples.txt"
# a larger log is not read; a row of metrics takes about 250 bytes
_MAX_BYTES = 2**28
# after so many damaged rows, the rest is not read
_MAX_ERRORS = 1000
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
            with _open_to_append(path) as file:
                file.truncate(min((sizes or {}).get(name, 0), os.fstat(file.fileno()).st_size))

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
                portability.sync(path)
        return {name: path.stat().st_size for name, path in self._paths.items()}

    def _append(self, name: str, text: str) -> None:
        with _open_to_append(self._paths[name]) as file:
            file.write(text.encode())


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
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such file; name a run folder")
    try:
        text = files.read_bytes(path, _MAX_BYTES).decode("utf-8")
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from None
    metrics = _parse_metrics(text[: text.rfind("\n") + 1])
    if metrics.errors:
        raise UserError(f"{path}: damaged ({metrics.errors[0]})")
    if not metrics.rows:
        raise UserError(f"{path}: has no rows yet")
    return metrics.rows


def read_intact_metrics(run_dir: Path) -> Metrics:
    """Reads `metrics.jsonl` as far as it is intact; a missing file has no rows.

    Raises:
        UserError: the file cannot be read, or is too large.
    """
    return _parse_metrics(_read_text(run_dir / _METRICS))


def read_samples(run_dir: Path) -> list[dict[str, str]]:
    """Reads the samples of `samples.txt`, each a `title` and a `text`; none if it is missing or unreadable."""
    try:
        _, *pieces = _SAMPLE_TITLE.split(_read_text(run_dir / _SAMPLES))
    except UserError:
        return []
    return [
        {"title": title, "text": text.removeprefix("\n").removesuffix("\n").removesuffix("\n")}
        for title, text in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _parse_metrics(text: str) -> Metrics:
    rows, errors = [], []
    for line in io.StringIO(text):
        try:
            rows.append(_parse_row(line))
        except (ValueError, RecursionError) as error:
            errors.append(str(error))
            if len(errors) == _MAX_ERRORS:
                break
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
    """Reads a file as UTF-8 with replacement characters; "" if it is missing.

    Raises:
        UserError: it cannot be read, or is too large.
    """
    return files.read_bytes(path, _MAX_BYTES).decode("utf-8", "replace") if os.path.lexists(path) else ""


@contextlib.contextmanager
def _open_to_append(path: Path) -> Iterator[IO[bytes]]:
    """Opens a log, or creates it.

    Raises:
        UserError: it cannot be written, or is no plain file of the run folder.
    """
    with _report_write_errors(path), open(files.open_in_place(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
        yield file


@contextlib.contextmanager
def _report_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); earlier checkpoints are intact") from None
