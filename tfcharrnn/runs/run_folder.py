"""Run folders: creating, locking, clearing, loading and finding them.

A run folder holds `config.json`, `vocab.json`, `checkpoints/`, `metrics.jsonl` and `samples.txt`, and optionally
`loss.png` and `tensorboard/`. It contains no path that matters, so it can be moved, renamed, or copied to another
machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfcharrnn import config as config_lib
from tfcharrnn import files
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import ConfigError, UserError, command_line
from tfcharrnn.preparation import input_files
from tfcharrnn.runs import pretrained

FORMAT = 1
RUNS_DIR = Path("runs")
_CONFIG = "config.json"
_LOCK = ".lock"
_FOLDERS = ("checkpoints", "tensorboard", "export")
# files that are written anew, under another name at first
_REPLACED_FILES = (_CONFIG, "vocab.json", "loss.png", "report.html")
# a checkpoint that is still being written, or was never finished, is in a hidden folder
_CHECKPOINT_FOLDER = re.compile(r"step-\d{8,12}")
# most listings of the checkpoints until two are equal
_LISTINGS = 100
# the names in a run folder, including temporary files of a process that was killed
_OWN_NAMES = re.compile(
    r"config\.json|vocab\.json|metrics\.jsonl|samples\.txt|loss\.png|report\.html|checkpoints|tensorboard|export|\.lock"
    r"|\.rendezvous(\.\w+\.tmp)?"
    r"|\.(config\.json|vocab\.json|loss\.png|report\.html)\.\w+\.tmp"
)


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A run folder and its settings.

    Attributes:
        path: the run folder.
        data: how the text was prepared.
        data_dir: the data folder, or "" if the text was prepared on the fly.
        fingerprint: `DataFolder.fingerprint` of the training data, or "" for an imported model.
        model: the model's settings.
        training: the training settings.
        vocabulary: the model's symbols.
        num_files: number of shards of the training data, which determines the order of data larger than memory; 0:
            unknown.
    """

    path: Path
    data: DataConfig
    data_dir: str
    fingerprint: str
    model: ModelConfig
    training: TrainingConfig
    vocabulary: Vocabulary
    num_files: int = 0

    def __repr__(self) -> str:
        return f"<Run {pretrained.format_path(self.path)}: {self.model.describe()}>"

    def output_path(self, name: str) -> Path:
        """Returns where to write a file or folder into the run folder.

        Raises:
            ConfigError: it is the folder of a model that comes with the package.
        """
        if pretrained.is_pretrained(self.path):
            raise ConfigError("--output is missing: name what to create, since a pretrained model stays as it is")
        return self.path / name

    def save(self) -> None:
        """Writes `vocab.json`, then `config.json`, which makes the folder a run folder."""
        self.vocabulary.save(self.path / "vocab.json")
        # a URL may have a secret in its query, and a run folder is shared
        data = dataclasses.replace(self.data, input=tuple(map(input_files.get_label, self.data.input)))
        value = {
            "format": FORMAT,
            "data": config_lib.to_dict(data),
            "data_dir": self.data_dir,
            "data_fingerprint": self.fingerprint,
            "data_files": self.num_files,
            "model": config_lib.to_dict(self.model),
            "training": config_lib.to_dict(self.training),
        }
        files.write_json(self.path / _CONFIG, value)


def check_new_run_dir(path: Path, *, overwrite: bool = False) -> None:
    """Checks that a new run can be created in a folder.

    The folder may hold what is left of a run that was killed before its first checkpoint.

    Raises:
        UserError: it holds a run and `overwrite` is false, or it holds files that do not belong to a run.
    """
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        return
    has_config = os.path.isfile(path / _CONFIG)
    is_foreign = not path.is_dir() or any(not _OWN_NAMES.fullmatch(file.name) for file in path.iterdir())
    if is_foreign and not has_config:
        raise UserError(
            f"{path}: is not a run folder, so --overwrite will not remove it; choose another --run_dir"
            if overwrite
            else f"{path}: already exists and is not a run folder; choose another --run_dir"
        )
    has_progress = any(not folder.name.startswith((".", "step-00000000")) for folder in path.glob("checkpoints/*"))
    if (has_config or has_progress) and not overwrite:
        raise UserError(
            f"{path}: already exists; pass --resume to continue it, --overwrite to replace it, or another --run_dir"
        )


@contextlib.contextmanager
def lock_run_dir(path: Path) -> Iterator[None]:
    """Creates a run folder if it is missing, and locks it against other training processes during the body.

    Raises:
        UserError: another process holds the lock, or the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = files.lock_file(path / _LOCK, "train")
        for name in _REPLACED_FILES:
            files.remove_leftovers(path / name)
    except BlockingIOError as error:
        raise UserError(
            f"{path}: another process is training there ({error}); stop it first, or choose another --run_dir"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --run_dir") from None
    try:
        yield
    finally:
        files.unlock_file(path / _LOCK, descriptor)


def check_own_files(path: Path) -> None:
    """Checks that what a resumed run goes on writing is in its folder, not elsewhere through a link.

    Raises:
        UserError: it is a link, or a file in the place of a folder.
    """
    for name in _FOLDERS:
        folder = path / name
        if folder.is_symlink():
            raise UserError(f"{folder}: is a symbolic link, which may lead out of the run; put the folder itself there")
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder}: is not a folder; move it away")


def clear_run_dir(path: Path) -> None:
    """Removes everything that belongs to a run from its folder, except for the lock; `config.json` goes last.

    Raises:
        UserError: a file cannot be removed.
    """
    try:
        for name in _FOLDERS:
            if (path / name).is_dir() and not (path / name).is_symlink():
                shutil.rmtree(path / name)
        for file in sorted(path.iterdir(), key=lambda file: file.name == _CONFIG):
            if _OWN_NAMES.fullmatch(file.name) and file.name != _LOCK:
                file.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be cleared ({error.strerror}); remove it by hand") from None


def load(path: str | Path) -> Run:
    """Reads the settings and the vocabulary of a run folder.

    Args:
        path: the folder, or `pretrained:NAME`.

    Raises:
        UserError: it is missing, is not a run folder, or is damaged.
    """
    path = pretrained.resolve(path)
    config_path = path / _CONFIG
    if not os.path.isfile(config_path):  # Path.is_file raises for a name that is too long
        raise UserError(
            f"{path}: not a run folder (it has no {_CONFIG}); name one that {command_line('train')} created"
        )
    value = files.read_json(config_path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{config_path}: not of format {FORMAT}; was it written by a newer version?")

    def get_section(name: str, kind: type) -> Any:
        if not isinstance(value.get(name), kind):
            raise UserError(f"{config_path}: {name!r} is missing or of the wrong type; the file is damaged")
        return value[name]

    data = config_lib.from_dict(DataConfig, get_section("data", dict), str(config_path))
    return Run(
        path=path,
        data=data,
        data_dir=get_section("data_dir", str),
        fingerprint=get_section("data_fingerprint", str),
        model=config_lib.from_dict(ModelConfig, get_section("model", dict), str(config_path)),
        training=config_lib.from_dict(TrainingConfig, get_section("training", dict), str(config_path)),
        vocabulary=Vocabulary.load(path / "vocab.json", of_bytes=data.of_bytes),
        num_files=get_section("data_files", int) if "data_files" in value else 0,
    )


def list_checkpoint_folders(run_dir: Path) -> list[Path]:
    """Lists the published checkpoint folders of a run by step, readable or not."""
    paths, former = _list_checkpoint_folders(run_dir), None
    # while a trainer adds one and removes another, a listing may have neither
    for _ in range(_LISTINGS):
        if paths == former:
            break
        paths, former = _list_checkpoint_folders(run_dir), paths
    return paths


def _list_checkpoint_folders(run_dir: Path) -> list[Path]:
    folder = run_dir / "checkpoints"
    try:
        return sorted(path for path in folder.iterdir() if _CHECKPOINT_FOLDER.fullmatch(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def find_newest_run(runs_dir: Path = RUNS_DIR, *, with_checkpoint: bool = False) -> Path:
    """Finds the run whose settings or checkpoint were written last.

    Args:
        runs_dir: the folder of the run folders.
        with_checkpoint: ignore runs without a checkpoint.

    Raises:
        UserError: there is no such run.
    """
    candidates = []
    for config_path in runs_dir.glob(f"*/{_CONFIG}"):
        run_dir = config_path.parent
        if run_dir.name.startswith("."):  # an imported run that is still being written
            continue
        times = _list_save_times(run_dir)
        if times or not with_checkpoint:
            candidates.append((max(_get_time(config_path), *times, 0), run_dir))
    if not candidates:
        kind = "trained run" if with_checkpoint else "run"
        raise UserError(f"{runs_dir}/ holds no {kind}; pass --run_dir, or train one with {command_line('train')}")
    return max(candidates)[1]


def _list_save_times(run_dir: Path) -> list[int]:
    """Returns when each checkpoint was written, in nanoseconds."""
    times: list[int] = []
    for _ in range(_LISTINGS):
        folders = list_checkpoint_folders(run_dir)
        times = [_get_time(folder / "checkpoint.json") for folder in folders]
        if all(map(os.path.lexists, folders)):  # else a trainer removed one, and has written another
            break
    return [time for time in times if time]


def _get_time(path: Path) -> int:
    """Returns when a file was last written, in nanoseconds; 0 if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_mtime_ns if stat.S_ISREG(status.st_mode) else 0
