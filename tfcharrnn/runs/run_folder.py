"""Run folders: all that a training run leaves behind, and all that sampling from it needs.

A run folder holds `config.json`, `vocab.json`, `checkpoints/`, `metrics.jsonl` and `samples.txt`, and if asked for
`loss.png` and `tensorboard/`. No path in it matters, so it can be moved, renamed, or copied to another machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfcharrnn import config as config_lib
from tfcharrnn import files
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.errors import UserError
from tfcharrnn.data.vocabulary import Vocabulary

FORMAT = 1
RUNS = Path("runs")
_CONFIG = "config.json"
_LOCK = ".lock"
# what stands in a run folder, also where a process was killed while it wrote
_OURS = re.compile(
    r"config\.json|vocab\.json|metrics\.jsonl|samples\.txt|loss\.png|report\.html|checkpoints|tensorboard|export|\.lock"
    r"|\.(config\.json|vocab\.json|loss\.png|report\.html)\.\d+\.tmp"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder and its settings.

    Attributes:
        path: the folder.
        data: how its text was prepared.
        data_dir: the data folder, or "" if the text was prepared on the fly.
        fingerprint: of the data it trains on (`DataFolder.fingerprint`), or "" if it was imported and has none.
        model: the network.
        training: the loop.
        vocabulary: the model's symbols.
        num_files: of the training text, 0: not known; their order is a part of that of data larger than memory.
    """

    path: Path
    data: DataConfig
    data_dir: str
    fingerprint: str
    model: ModelConfig
    training: TrainingConfig
    vocabulary: Vocabulary
    num_files: int = 0

    def save(self) -> None:
        """Writes `vocab.json` and, last, `config.json`, by which the folder is known for a run."""
        self.vocabulary.save(self.path / "vocab.json")
        value = {
            "format": FORMAT,
            "data": config_lib.to_dict(self.data),
            "data_dir": self.data_dir,
            "data_fingerprint": self.fingerprint,
            "data_files": self.num_files,
            "model": config_lib.to_dict(self.model),
            "training": config_lib.to_dict(self.training),
        }
        files.write_json(self.path / _CONFIG, value)


def check_place(path: Path, *, overwrite: bool = False) -> None:
    """Checks that a new run may be made in a folder.

    It may where nothing stands but what a run leaves that was killed before its first checkpoint.

    Raises:
        UserError: it holds something else and `overwrite` is false, or holds something that is no part of a run.
    """
    if not path.exists():
        return
    strangers = [file.name for file in path.iterdir() if not _OURS.fullmatch(file.name)] if path.is_dir() else [path]
    if strangers and not (path / _CONFIG).is_file():
        raise UserError(
            f"{path}: is not a run folder, so --overwrite will not remove it; choose another --run_dir"
            if overwrite
            else f"{path}: exists already and is no run folder; choose another --run_dir"
        )
    begun = (path / _CONFIG).is_file() or any(
        not folder.name.startswith((".", "step-00000000")) for folder in path.glob("checkpoints/*")
    )
    if begun and not overwrite:
        raise UserError(
            f"{path}: exists already; pass --resume to go on, --overwrite to start anew, or another --run_dir"
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Makes a run folder if there is none, and keeps other trainers out of it until the body or this process ends.

    Raises:
        UserError: another one is at work there, or the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = files.lock(path / _LOCK, "train")
    except BlockingIOError as error:
        raise UserError(
            f"{path}: another process trains there ({error}); stop it first, or choose another --run_dir"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --run_dir") from None
    try:
        yield
    finally:
        files.unlock(path / _LOCK, descriptor)


def clear(path: Path) -> None:
    """Removes from a run folder all that belongs to its run, the settings last."""
    with _writing(path):
        for name in ("checkpoints", "tensorboard", "export"):
            if (path / name).exists():
                shutil.rmtree(path / name)
        for file in sorted(path.iterdir(), key=lambda file: file.name == _CONFIG):
            if _OURS.fullmatch(file.name) and file.name != _LOCK:
                file.unlink()


def load(path: str | Path) -> Run:
    """Opens a run folder.

    Raises:
        UserError: it is missing, is no run folder, or is damaged.
    """
    path = Path(path)
    where = path / _CONFIG
    if not where.is_file():
        raise UserError(f"{path}: not a run folder (it has no {_CONFIG}); name one that python -m tfcharrnn.train made")
    value = files.read_json(where)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{where}: not of format {FORMAT}; was it written by a newer version?")

    def section(name: str, kind: type) -> Any:
        if not isinstance(value.get(name), kind):
            raise UserError(f"{where}: {name!r} is missing or not what it should be; the file is damaged")
        return value[name]

    return Run(
        path=path,
        data=config_lib.from_dict(DataConfig, section("data", dict), str(where)),
        data_dir=section("data_dir", str),
        fingerprint=section("data_fingerprint", str),
        model=config_lib.from_dict(ModelConfig, section("model", dict), str(where)),
        training=config_lib.from_dict(TrainingConfig, section("training", dict), str(where)),
        vocabulary=Vocabulary.load(path / "vocab.json"),
        num_files=section("data_files", int) if "data_files" in value else 0,
    )


def newest(runs: Path = RUNS, *, with_checkpoint: bool = False) -> Path:
    """The run under `runs` whose checkpoint or settings were written last.

    Args:
        runs: the folder of runs.
        with_checkpoint: leave out runs that have none yet.

    Raises:
        UserError: there is none.
    """
    candidates = []
    for config in runs.glob(f"*/{_CONFIG}"):
        saved = list(config.parent.glob("checkpoints/*/checkpoint.json"))
        if with_checkpoint and not saved:
            continue
        written = [config, *saved]
        candidates.append((max(path.stat().st_mtime_ns for path in written), config.parent))
    if not candidates:
        kind = "trained run" if with_checkpoint else "run"
        raise UserError(f"{runs}/ holds no {kind}; pass --run_dir, or train one with python -m tfcharrnn.train")
    return max(candidates)[1]


class Logs:
    """`metrics.jsonl`, one JSON object a line, and `samples.txt`: both are only ever appended to."""

    def __init__(self, run_dir: Path, sizes: dict[str, int] | None = None):
        """Opens the files; a resumed run cuts them back to what `sizes` gave at its checkpoint.

        Raises:
            UserError: a file cannot be written.
        """
        self._paths = {name: run_dir / name for name in ("metrics.jsonl", "samples.txt")}
        for name, path in self._paths.items():
            with _writing(path), open(path, "ab") as file:
                file.truncate(min((sizes or {}).get(name, 0), path.stat().st_size))

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows to `metrics.jsonl`."""
        self._append("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def write_sample(self, title: str, text: str) -> None:
        """Appends a text under its title to `samples.txt`."""
        self._append("samples.txt", f"--- {title} ---\n{text}\n\n")

    def sizes(self) -> dict[str, int]:
        """The files' sizes in bytes, once all that was written is on disk."""
        for path in self._paths.values():
            with _writing(path):
                files.sync(path)
        return {name: path.stat().st_size for name, path in self._paths.items()}

    def _append(self, name: str, text: str) -> None:
        path = self._paths[name]
        with _writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(text)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tells a disk's refusal in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); whatever was saved before is whole") from None
