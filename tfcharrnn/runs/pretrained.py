"""The models that come with the package; `pretrained:NAME` stands for one wherever a run folder is read."""

from __future__ import annotations

import difflib
from pathlib import Path

from tfcharrnn.errors import UserError

PREFIX = "pretrained:"
_FOLDER = Path(__file__).parents[1] / "pretrained"


def list_names() -> list[str]:
    """Returns the names of the models."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def resolve(path: str | Path) -> Path:
    """Returns the folder of a pretrained model, or any other path as it is.

    Raises:
        UserError: there is no such model.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return Path(path)
    name, names = text.removeprefix(PREFIX), list_names()
    if name not in names:
        hint = f"; did you mean {close[0]}? It" if (close := difflib.get_close_matches(name, names, 1)) else "; it"
        raise UserError(f"{text}: no such pretrained model{hint} must be one of {', '.join(names)}")
    return _FOLDER / name


def is_pretrained(path: Path) -> bool:
    """Whether a folder belongs to the package."""
    return path.parent == _FOLDER


def format_path(path: Path) -> str:
    """Returns what `--run_dir` takes for a folder: `pretrained:NAME` for a model of the package, else the path."""
    return f"{PREFIX}{path.name}" if is_pretrained(path) else str(path)
