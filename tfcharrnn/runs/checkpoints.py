"""Checkpoints: `tf.train.Checkpoint` files in a folder of their own, which appears whole or not at all.

`checkpoints/step-00001000/` holds what TensorFlow writes under the prefix `ckpt`, and `checkpoint.json` with the step,
the validation loss, where the logs stood and a SHA-256 of each file.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from tfcharrnn import files
from tfcharrnn.errors import UserError, first_line, warn

FORMAT = 1
# beyond the steps that a run can have
_STEPS = 10**13
_FOLDER = re.compile(r"step-(\d{8,12})")
_DESCRIPTION = "checkpoint.json"
_PREFIX = "ckpt"


class Losses(NamedTuple):
    """What was measured at a checkpoint's step, or None.

    Attributes:
        smooth: smoothed training loss.
        val: validation loss in nats a character.
    """

    smooth: float | None
    val: float | None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: its folder.
        step: training steps done.
        losses: what was measured.
        log: what the training loop wants to find again, as JSON gave it.
    """

    path: Path
    step: int
    losses: Losses
    log: dict[str, Any]

    def describe(self) -> str:
        """Step, losses and folder in one line."""
        losses = {"smoothed loss": self.losses.smooth, "validation loss": self.losses.val}
        shown = [f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None]
        return "  ".join([f"step {self.step}", *shown, str(self.path)])


def save(run_dir: Path, objects: dict[str, Any], step: int, losses: Losses, log: dict[str, Any]) -> None:
    """Writes a checkpoint of trackable objects; one of the same step is replaced.

    Args:
        run_dir: the run folder.
        objects: what `tf.train.Checkpoint` takes, by name.
        step: training steps done.
        losses: measured at this step.
        log: further JSON-ready values to keep.

    Raises:
        UserError: the disk refuses; earlier checkpoints stay as they are.
    """
    path = run_dir / "checkpoints" / f"step-{step:08d}"
    with files.new_folder(path, overwrite=True) as folder:
        try:
            tf.train.Checkpoint(**objects).write(str(folder / _PREFIX))
        except tf.errors.OpError as error:
            raise UserError(f"{path}: cannot be written ({first_line(error)}); earlier checkpoints are whole") from None
        sums = {file.name: files.file_sha256(file) for file in sorted(folder.iterdir())}
        measured = {"smooth_loss": losses.smooth, "val_loss": losses.val}
        files.write_json(folder / _DESCRIPTION, {"format": FORMAT, "step": step, **measured, "log": log, "files": sums})


def folders(run_dir: Path) -> list[Path]:
    """Where checkpoints of a run were written, readable or not."""
    folder = run_dir / "checkpoints"
    return sorted(path for path in folder.iterdir() if _FOLDER.fullmatch(path.name)) if folder.is_dir() else []


def listed(run_dir: Path, *, name_damaged: bool = False) -> list[Checkpoint]:
    """The checkpoints of a run, by step; what is not readable as one is left out, if asked with a warning."""
    found = []
    for path in folders(run_dir):
        try:
            found.append(describe(path))
        except UserError as error:
            if name_damaged:
                warn(f"{error}; the checkpoint is left out")
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _by_loss(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints that have a loss, the best one last: of validation, or where there is none of training, smoothed.

    Of two alike the newer one is better.
    """
    kind = 1 if any(c.losses.val is not None for c in checkpoints) else 0
    measured = [(c.losses[kind], c) for c in checkpoints if c.losses[kind] is not None]
    return [c for _, c in sorted(measured, key=lambda entry: (-entry[0], entry[1].step))]  # type: ignore[operator]


def describe(path: Path) -> Checkpoint:
    """Reads `checkpoint.json`.

    Raises:
        UserError: it is missing or damaged.
    """
    value = files.read_json(path / _DESCRIPTION)
    if not isinstance(value, dict) or value.get("format") != FORMAT or type(value.get("step")) is not int:
        raise UserError(f"{path / _DESCRIPTION}: not a checkpoint of format {FORMAT}")
    losses = Losses(value.get("smooth_loss"), value.get("val_loss"))
    if not all(map(_is_loss, losses)) or not 0 <= value["step"] < _STEPS or not isinstance(value.get("log"), dict):
        raise UserError(f"{path / _DESCRIPTION}: its step, losses or log cannot be; the file is damaged")
    return Checkpoint(path, value["step"], losses, value["log"])


def _is_loss(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def find(run_dir: Path, which: str = "latest") -> Checkpoint:
    """The checkpoint that `--checkpoint` names.

    Args:
        run_dir: the run folder.
        which: `latest`, `best`, a step, or the path of a checkpoint folder; a bare name means one of this run's.

    Returns:
        A checkpoint whose files are whole: the newest or the best such. One that is damaged is named on standard
        error, and the next one taken; but where a certain one is asked for, that is an error.

    Raises:
        UserError: there is none.
    """
    if which not in ("latest", "best"):
        names = [which, f"step-{which.lstrip('0'):0>8}"] if which.isascii() and which.isdigit() else [which]
        for path in (Path(which), *(run_dir / "checkpoints" / name for name in names)):
            if os.path.isfile(path / _DESCRIPTION):  # false, where Path.is_file would raise: for too long a name
                checkpoint = describe(path)
                verify(checkpoint)
                return checkpoint
        names = [checkpoint.path.name for checkpoint in listed(run_dir)]
        raise UserError(f"--checkpoint={which}: no such checkpoint; {run_dir} has {', '.join(names) or 'none'}")
    checkpoints = listed(run_dir, name_damaged=True)
    if not folders(run_dir):
        raise UserError(f"{run_dir}: has no checkpoint yet; train it first")
    ranked = _by_loss(checkpoints) if which == "best" else checkpoints
    if checkpoints and not ranked:
        raise UserError(f"{run_dir}: no checkpoint has a loss; use --checkpoint=latest")
    for checkpoint in reversed(ranked):
        try:
            verify(checkpoint)
        except UserError as error:
            warn(f"{error}; the one before it is taken")
        else:
            return checkpoint
    raise UserError(f"{run_dir}: every checkpoint in it is damaged; train it anew")


def restore(checkpoint: Checkpoint, objects: dict[str, Any]) -> None:
    """Reads a checkpoint into trackable objects; what it has beyond `objects` is left out.

    Raises:
        UserError: it cannot be read, or the sizes are not those of `objects`.
    """
    prefix = str(checkpoint.path / _PREFIX)
    root = tf.train.Checkpoint(**objects)
    try:
        saved = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
        for name, variable in _named_variables(root):
            shape = saved.get(f"{name}/.ATTRIBUTES/VARIABLE_VALUE")
            if shape != variable.shape.as_list():
                raise UserError(
                    f"{checkpoint.path}: does not fit the model that config.json and vocab.json describe: "
                    f"{name} is {shape or 'missing'} here and should be {variable.shape.as_list()}"
                )
        root.read(prefix).assert_existing_objects_matched().expect_partial()
    except UserError:
        raise
    except Exception as error:  # of a file that was made to be wrong, TensorFlow says so in many ways
        raise UserError(f"{checkpoint.path}: cannot be read ({first_line(error)}); take another checkpoint") from None


def _named_variables(root: tf.train.Checkpoint) -> Iterator[tuple[str, tf.Variable]]:
    """Every variable below an object, under the name that a checkpoint gives it."""
    view = tf.train.TrackableView(root)

    def walk(parent: Any, path: str) -> Iterator[tuple[str, tf.Variable]]:
        for name, child in view.children(parent).items():
            if isinstance(child, tf.Variable):
                yield path + name, child
            else:
                yield from walk(child, f"{path}{name}/")

    return walk(root, "")


def verify(checkpoint: Checkpoint) -> None:
    """Checks each file of a checkpoint against its sum.

    Raises:
        UserError: a file is missing or damaged.
    """
    value = files.read_json(checkpoint.path / _DESCRIPTION)
    sums = value.get("files") if isinstance(value, dict) else None
    if not isinstance(sums, dict) or f"{_PREFIX}.index" not in sums:
        raise UserError(f"{checkpoint.path / _DESCRIPTION}: names no files; it is damaged")
    try:
        present = {file.name for file in checkpoint.path.glob(f"{_PREFIX}.*")}
        for name in sorted({*sums, *present}):
            if name not in present or files.file_sha256(checkpoint.path / name) != sums.get(name):
                # the name may be another path altogether, or very long
                raise UserError(f"{checkpoint.path}{os.sep}{name[:100]}: missing or damaged")
    except OSError as error:
        raise UserError(f"{checkpoint.path}: cannot be read ({error.strerror})") from None


def prune(run_dir: Path, keep: int, keep_every: int = 0) -> None:
    """Removes checkpoints that need not be kept, and what a crash left half-made.

    Args:
        run_dir: the run folder.
        keep: how many of the newest to keep, beside the best; 0: all.
        keep_every: keep those at multiples of so many steps, too; 0: none.
    """
    for leftover in (run_dir / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    checkpoints = listed(run_dir)
    if not keep:
        return
    kept = {checkpoint.path for checkpoint in (*checkpoints[-keep:], *_by_loss(checkpoints)[-1:])}
    for checkpoint in checkpoints:
        if checkpoint.path not in kept and not (keep_every and checkpoint.step % keep_every == 0):
            shutil.rmtree(checkpoint.path, ignore_errors=True)
