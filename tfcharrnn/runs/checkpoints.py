"""Saves, lists, verifies, restores and prunes the checkpoints of a run.

`checkpoints/step-00001000/` is written atomically. It holds the files that `tf.train.Checkpoint` writes with the prefix
`ckpt`, and `checkpoint.json` with the step, the losses, the state of the training loop and a SHA-256 of each file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from tfcharrnn import files
from tfcharrnn.errors import UserError, first_line, warn
from tfcharrnn.runs.run_folder import list_checkpoint_folders

FORMAT = 1
_MAX_STEPS = 10**13
_DESCRIPTION = "checkpoint.json"
_PREFIX = "ckpt"


class Losses(NamedTuple):
    """The losses at the step of a checkpoint, or None where they were not measured.

    Attributes:
        smooth: smoothed training loss.
        val: validation loss in nats per character.
    """

    smooth: float | None
    val: float | None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: its folder.
        step: number of completed training steps.
        losses: the losses at that step.
        log: state of the training loop, as read from JSON and not yet checked.
    """

    path: Path
    step: int
    losses: Losses
    log: dict[str, Any]

    def describe(self) -> str:
        """Formats step, losses and folder as one line."""
        losses = {"smoothed loss": self.losses.smooth, "validation loss": self.losses.val}
        shown = [f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None]
        return "  ".join([f"step {self.step}", *shown, str(self.path)])


def save(run_dir: Path, objects: dict[str, Any], step: int, losses: Losses, log: dict[str, Any]) -> None:
    """Writes a checkpoint of trackable objects, replacing one of the same step.

    Args:
        run_dir: the run folder.
        objects: the arguments of `tf.train.Checkpoint`.
        step: number of completed training steps.
        losses: the losses at this step.
        log: JSON-compatible state of the training loop.

    Raises:
        UserError: the write fails; earlier checkpoints are not affected.
    """
    path = run_dir / "checkpoints" / f"step-{step:08d}"
    with files.create_folder(path, overwrite=True) as folder:
        try:
            tf.train.Checkpoint(**objects).write(str(folder / _PREFIX))
        except tf.errors.OpError as error:
            raise UserError(
                f"{path}: cannot be written ({first_line(error)}); earlier checkpoints are intact"
            ) from None
        sums = {file.name: files.file_sha256(file) for file in sorted(folder.iterdir())}
        measured = {"smooth_loss": losses.smooth, "val_loss": losses.val}
        files.write_json(folder / _DESCRIPTION, {"format": FORMAT, "step": step, **measured, "log": log, "files": sums})


def list_checkpoints(run_dir: Path, *, warn_damaged: bool = False) -> list[Checkpoint]:
    """Lists the checkpoints of a run by step, without those whose `checkpoint.json` is unreadable."""
    readable = []
    for path in list_checkpoint_folders(run_dir):
        try:
            readable.append(read_description(path))
        except UserError as error:
            if warn_damaged:
                warn(f"{error}; ignoring this checkpoint")
    return sorted(readable, key=lambda checkpoint: checkpoint.step)


def _sort_by_loss(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Sorts the checkpoints that have a loss from worst to best; of equal ones the newest comes last.

    The loss is the validation loss, or the smoothed training loss if no checkpoint has a validation loss.
    """
    by_val = any(c.losses.val is not None for c in checkpoints)
    losses = [(c.losses.val if by_val else c.losses.smooth, c) for c in checkpoints]
    measured = [(loss, c) for loss, c in losses if loss is not None]
    return [c for _, c in sorted(measured, key=lambda entry: (-entry[0], entry[1].step))]


def read_description(path: Path) -> Checkpoint:
    """Reads `checkpoint.json`.

    Raises:
        UserError: it is missing or damaged.
    """
    value = files.read_json(path / _DESCRIPTION)
    if not isinstance(value, dict) or value.get("format") != FORMAT or type(value.get("step")) is not int:
        raise UserError(f"{path / _DESCRIPTION}: not a checkpoint of format {FORMAT}")
    losses = Losses(value.get("smooth_loss"), value.get("val_loss"))
    if not all(map(_is_loss, losses)) or not 0 <= value["step"] < _MAX_STEPS or not isinstance(value.get("log"), dict):
        raise UserError(f"{path / _DESCRIPTION}: the step, a loss or the log is invalid; the file is damaged")
    return Checkpoint(path, value["step"], losses, value["log"])


def _is_loss(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def find(run_dir: Path, which: str = "latest") -> Checkpoint:
    """Finds the checkpoint that `--checkpoint` selects and verifies its files.

    Args:
        run_dir: the run folder.
        which: `latest`, `best`, a step, or the path of a checkpoint folder or its name in the run.

    Returns:
        The checkpoint. If the latest or the best one is damaged, a warning is printed and the one before it is used.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    if which not in ("latest", "best"):
        names = [which, f"step-{which.lstrip('0'):0>8}"] if which.isascii() and which.isdigit() else [which]
        for path in (Path(which), *(run_dir / "checkpoints" / name for name in names)):
            if os.path.isfile(path / _DESCRIPTION):  # unlike Path.is_file it accepts a name that is too long
                checkpoint = read_description(path)
                verify(checkpoint)
                return checkpoint
        names = [checkpoint.path.name for checkpoint in list_checkpoints(run_dir)]
        raise UserError(f"--checkpoint={which}: no such checkpoint; {run_dir} has {', '.join(names) or 'none'}")
    checkpoints = list_checkpoints(run_dir, warn_damaged=True)
    if not list_checkpoint_folders(run_dir):
        raise UserError(f"{run_dir}: has no checkpoint yet; train the model first")
    ranked = _sort_by_loss(checkpoints) if which == "best" else checkpoints
    if checkpoints and not ranked:
        raise UserError(f"{run_dir}: no checkpoint has a loss; use --checkpoint=latest")
    for checkpoint in reversed(ranked):
        try:
            verify(checkpoint)
        except UserError as error:
            warn(f"{error}; the one before it is used")
        else:
            return checkpoint
    raise UserError(f"{run_dir}: every checkpoint in it is damaged; train the model again")


def restore(checkpoint: Checkpoint, objects: dict[str, Any]) -> None:
    """Restores trackable objects from a checkpoint, ignoring what else it holds.

    Raises:
        UserError: it cannot be read, or a shape differs.
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
    except Exception as error:  # TensorFlow raises many types for malformed files
        raise UserError(f"{checkpoint.path}: cannot be read ({first_line(error)}); choose another checkpoint") from None


def restore_weights(checkpoint: Checkpoint, model: Any, **objects: Any) -> None:
    """Restores the weights to use a model with: their running average, if the checkpoint has one.

    Args:
        checkpoint: the checkpoint.
        model: the model.
        **objects: further arguments of `restore`.

    Raises:
        UserError: see `restore`.
    """
    try:
        names = tf.train.load_checkpoint(str(checkpoint.path / _PREFIX)).get_variable_to_shape_map()
    except Exception:  # `restore` says what is wrong
        names = {}
    has_average = any(name.startswith("average/") for name in names)
    restore(checkpoint, {"average" if has_average else "model": model, **objects})


def _named_variables(root: tf.train.Checkpoint) -> Iterator[tuple[str, tf.Variable]]:
    """Yields all variables below an object with their names in a checkpoint."""
    view = tf.train.TrackableView(root)

    def walk(parent: Any, path: str) -> Iterator[tuple[str, tf.Variable]]:
        for name, child in view.children(parent).items():
            if isinstance(child, tf.Variable):
                yield path + name, child
            else:
                yield from walk(child, f"{path}{name}/")

    return walk(root, "")


def verify(checkpoint: Checkpoint) -> None:
    """Checks each file of a checkpoint against its SHA-256.

    Raises:
        UserError: a file is missing or damaged.
    """
    value = files.read_json(checkpoint.path / _DESCRIPTION)
    sums = value.get("files") if isinstance(value, dict) else None
    if not isinstance(sums, dict) or f"{_PREFIX}.index" not in sums:
        raise UserError(f"{checkpoint.path / _DESCRIPTION}: lists no files; it is damaged")
    try:
        present = {file.name for file in checkpoint.path.glob(f"{_PREFIX}.*")}
        for name in sorted({*sums, *present}):
            if name not in present or files.file_sha256(checkpoint.path / name) != sums.get(name):
                # a damaged name may be an absolute path, or very long
                raise UserError(f"{checkpoint.path}{os.sep}{name[:100]}: missing or damaged")
    except OSError as error:
        raise UserError(f"{checkpoint.path}: cannot be read ({error.strerror})") from None


def prune(run_dir: Path, keep: int, keep_every: int = 0) -> None:
    """Removes superseded checkpoints, and what a crash left of others. A checkpoint is there or not, never half.

    Args:
        run_dir: the run folder.
        keep: number of the newest checkpoints to keep, in addition to the best one; 0: all.
        keep_every: keep checkpoints at multiples of this number of steps, too; 0: none.
    """
    for leftover in (run_dir / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in list_checkpoint_folders(run_dir):
        if not os.path.lexists(path / _DESCRIPTION):  # half removed by an early version that was killed
            _remove(path)
    checkpoints = list_checkpoints(run_dir)
    if not keep:
        return
    kept = {checkpoint.path for checkpoint in (*checkpoints[-keep:], *_sort_by_loss(checkpoints)[-1:])}
    for checkpoint in checkpoints:
        if checkpoint.path not in kept and not (keep_every and checkpoint.step % keep_every == 0):
            _remove(checkpoint.path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # the next call tries again
        files.remove_folder(path)
