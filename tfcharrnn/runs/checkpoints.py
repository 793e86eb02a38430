"""Saves, lists, verifies, restores and prunes the checkpoints of a run.

`checkpoints/step-00001000/` is written atomically. It holds the files that `tf.train.Checkpoint` writes with the prefix
`ckpt`, and `checkpoint.json` with the step, the losses, the state of the training loop and a SHA-256 of each file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfcharrnn import files
from tfcharrnn.errors import UserError, first_line, warn
from tfcharrnn.runs.checkpoint_files import DESCRIPTION, PREFIX, CheckpointFiles, CheckpointRemovedError
from tfcharrnn.runs.run_folder import list_checkpoint_folders

FORMAT = 1
_MAX_STEPS = 10**13
_INDEX = f"{PREFIX}.index"
# how often a checkpoint that a trainer removes meanwhile is looked for again
_ATTEMPTS = 100
# variables to name in a message
_MAX_NAMES = 5


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
        files: its open files, if `find` found it; they can be read after a trainer has removed it.
    """

    path: Path
    step: int
    losses: Losses
    log: dict[str, Any] = dataclasses.field(repr=False)
    files: CheckpointFiles | None = dataclasses.field(default=None, compare=False, repr=False)

    def describe(self, mark: str = "") -> str:
        """Formats step, losses, folder and a mark as one line."""
        losses = {"smoothed loss": self.losses.smooth, "validation loss": self.losses.val}
        shown = [f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None]
        return "  ".join([f"step {self.step}", *shown, str(self.path), *filter(None, [mark])])

    def close(self) -> None:
        """Closes the files; they are opened again if needed."""
        if self.files is not None:
            self.files.close()


def save(run_dir: Path, objects: dict[str, Any], step: int, losses: Losses, log: dict[str, Any]) -> Path:
    """Writes a checkpoint of trackable objects, replacing one of the same step, and returns its folder.

    Args:
        run_dir: the run folder.
        objects: the arguments of `tf.train.Checkpoint`.
        step: number of completed training steps.
        losses: the losses at this step.
        log: JSON-compatible state of the training loop.

    Raises:
        UserError: the write fails, or a value is not finite; earlier checkpoints are not affected.
    """
    path = run_dir / "checkpoints" / f"step-{step:08d}"
    if names := _find_non_finite(tf.train.Checkpoint(**objects)):
        raise UserError(
            f"{path}: not written, since values of {names} are not finite; continue from the checkpoint before it "
            "with --resume and a smaller --learning_rate"
        )
    with files.create_folder(path, overwrite=True) as folder:
        try:
            with files.ascii_alias(folder) as alias:
                tf.train.Checkpoint(**objects).write(f"{alias}/{PREFIX}")
        except (tf.errors.OpError, ValueError) as error:  # the latter for a name that TensorFlow cannot convert
            raise UserError(
                f"{path}: cannot be written ({first_line(error)}); earlier checkpoints are intact"
            ) from None
        sums = {file.name: files.file_sha256(file) for file in sorted(folder.iterdir())}
        measured = {"smooth_loss": losses.smooth, "val_loss": losses.val}
        files.write_json(folder / DESCRIPTION, {"format": FORMAT, "step": step, **measured, "log": log, "files": sums})
    return path


def list_checkpoints(run_dir: Path, *, warn_damaged: bool = False) -> list[Checkpoint]:
    """Lists the checkpoints of a run by step, without those whose `checkpoint.json` is unreadable."""
    readable = []
    for path in list_checkpoint_folders(run_dir):
        try:
            readable.append(read_description(path))
        except UserError as error:
            if warn_damaged and os.path.lexists(path):  # else a trainer removed it
                warn(f"{error}; ignoring this checkpoint")
    return sorted(readable, key=lambda checkpoint: checkpoint.step)


def describe_checkpoints(run_dir: Path) -> str:
    """Describes the checkpoints of a run, one a line, with a mark at those that `--checkpoint=best|latest` takes.

    Raises:
        UserError: there is none.
    """
    found = list_checkpoints(run_dir, warn_damaged=True)
    if not found:
        raise UserError(f"{run_dir}: has no checkpoint yet; train the model first")
    marked = {"best": _sort_by_loss(found)[-1:], "latest": found[-1:]}
    return "\n".join(
        checkpoint.describe(", ".join(mark for mark, holders in marked.items() if checkpoint in holders))
        for checkpoint in found
    )


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
    return parse_description(path, path / DESCRIPTION, files.read_json(path / DESCRIPTION))


def parse_description(path: Path, file: Path, value: Any) -> Checkpoint:
    """Checks what a file says about a checkpoint.

    Args:
        path: the folder of the checkpoint.
        file: the file.
        value: its content.

    Raises:
        UserError: it is damaged.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT or type(value.get("step")) is not int:
        raise UserError(f"{file}: not a checkpoint of format {FORMAT}")
    losses = Losses(value.get("smooth_loss"), value.get("val_loss"))
    if not all(map(_is_loss, losses)) or not 0 <= value["step"] < _MAX_STEPS or not isinstance(value.get("log"), dict):
        raise UserError(f"{file}: the step, a loss or the log is invalid; the file is damaged")
    return Checkpoint(path, value["step"], losses, value["log"])


def _is_loss(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def find(run_dir: Path, which: str = "latest") -> Checkpoint:
    """Finds the checkpoint that `--checkpoint` selects, verifies its files and keeps them open.

    Args:
        run_dir: the run folder. A trainer may be adding and removing checkpoints.
        which: `latest`, `best`, a step, or the path of a checkpoint folder or its name in the run.

    Returns:
        The checkpoint. If the latest or the best one is damaged, a warning is printed and the one before it is used.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    if which not in ("latest", "best"):
        return _find_named(run_dir, which)
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(CheckpointRemovedError):
            return _find_ranked(run_dir, which)
    raise UserError(f"{run_dir}: its checkpoints are removed before they can be read; raise --keep_checkpoints")


def _find_named(run_dir: Path, which: str) -> Checkpoint:
    names = [which, f"step-{which.lstrip('0'):0>8}"] if which.isascii() and which.isdigit() else [which]
    for path in (Path(which), *(run_dir / "checkpoints" / name for name in names)):
        if os.path.isfile(path / DESCRIPTION):  # unlike Path.is_file it accepts a name that is too long
            return _open_intact(path)
    names = [checkpoint.path.name for checkpoint in list_checkpoints(run_dir)]
    raise UserError(f"--checkpoint={which}: no such checkpoint; {run_dir} has {', '.join(names) or 'none'}")


def _find_ranked(run_dir: Path, which: str) -> Checkpoint:
    """Finds the latest or the best checkpoint of those that are listed now.

    Raises:
        CheckpointRemovedError: one of them has gone, so that another may take its place.
    """
    folders = list_checkpoint_folders(run_dir)
    if not folders:
        raise UserError(f"{run_dir}: has no checkpoint yet; train the model first")
    checkpoints, warnings = [], []
    for path in folders:
        try:
            checkpoints.append(read_description(path))
        except UserError as error:
            if not os.path.lexists(path):
                raise CheckpointRemovedError(str(error)) from None
            warnings.append(f"{error}; ignoring this checkpoint")
    for warning in warnings:
        warn(warning)
    checkpoints.sort(key=lambda checkpoint: checkpoint.step)
    ranked = _sort_by_loss(checkpoints) if which == "best" else checkpoints
    if checkpoints and not ranked:
        raise UserError(f"{run_dir}: no checkpoint has a loss; use --checkpoint=latest")
    for checkpoint in reversed(ranked):
        try:
            return _open_intact(checkpoint.path)
        except CheckpointRemovedError:
            raise
        except UserError as error:
            warn(f"{error}; the one before it is used")
    raise UserError(f"{run_dir}: every checkpoint in it is damaged; train the model again")


def _open_intact(path: Path) -> Checkpoint:
    """Opens a checkpoint and checks its files.

    Raises:
        CheckpointRemovedError: it was removed meanwhile.
        UserError: it is damaged.
    """
    opened = CheckpointFiles(path)
    try:
        with opened.report_removal():
            value = opened.read_description()
            checkpoint = parse_description(path, path / DESCRIPTION, value)
            _verify(opened, value.get("files"))
    except BaseException:
        opened.close()
        raise
    return dataclasses.replace(checkpoint, files=opened)


def _verify(opened: CheckpointFiles, sums: Any) -> None:
    """Checks each file of a checkpoint against its SHA-256, after its size, so that none is read for minutes in vain.

    Args:
        opened: the files.
        sums: the SHA-256 of each by its name, as read from JSON.

    Raises:
        UserError: a file is missing, damaged, or larger than what it describes.
    """
    if not isinstance(sums, dict) or _INDEX not in sums:
        raise UserError(f"{opened.path / DESCRIPTION}: lists no files; it is damaged")
    _verify_file(opened, _INDEX, sums[_INDEX], files.MAX_JSON_BYTES)
    limit = _count_bytes(opened)
    for name in sorted({*sums, *opened.names} - {_INDEX}):
        _verify_file(opened, name, sums.get(name), limit)


def _verify_file(opened: CheckpointFiles, name: str, sha256: Any, limit: int) -> None:
    if not opened.is_intact(name, sha256, limit):
        # a damaged name may be an absolute path, or very long
        raise UserError(f"{opened.path}{os.sep}{name[:100]}: missing or damaged")


def _count_bytes(opened: CheckpointFiles) -> int:
    """Returns the most bytes that the tensors of a checkpoint may take."""
    with _read_weights(opened) as (_, reader):
        dtypes = reader.get_variable_to_dtype_map()
        shapes = reader.get_variable_to_shape_map()
        sizes = [math.prod(shape) * dtypes[name].size for name, shape in shapes.items()]
    # the description of the objects is a string, of which the index does not give the size
    return sum(sizes) + files.MAX_JSON_BYTES


@contextlib.contextmanager
def _read_weights(opened: CheckpointFiles) -> Iterator[tuple[str, Any]]:
    """Yields the prefix of a checkpoint and TensorFlow's reader of it.

    Raises:
        UserError: it cannot be read.
    """
    with opened.link() as prefix:
        try:
            yield prefix, tf.train.load_checkpoint(prefix)
        except UserError:
            raise
        except Exception as error:  # TensorFlow raises many types for malformed files
            reason = first_line(error).replace(prefix, str(opened.path / PREFIX))
            raise UserError(f"{opened.path}: cannot be read ({reason}); choose another checkpoint") from None


@contextlib.contextmanager
def _open_weights(checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    """Yields the prefix of a checkpoint and TensorFlow's reader of it, from the open files if there are any."""
    if checkpoint.files is not None and checkpoint.files.is_open:
        with _read_weights(checkpoint.files) as weights:
            yield weights
        return
    opened = CheckpointFiles(checkpoint.path)
    try:
        with _read_weights(opened) as weights:
            yield weights
    finally:
        opened.close()


def restore(checkpoint: Checkpoint, objects: dict[str, Any]) -> None:
    """Restores trackable objects from a checkpoint, ignoring what else it holds.

    Raises:
        UserError: it cannot be read, a shape differs, or a value is not finite.
    """
    with _open_weights(checkpoint) as (prefix, reader):
        _restore(checkpoint, prefix, reader, objects)


def _restore(checkpoint: Checkpoint, prefix: str, reader: Any, objects: dict[str, Any]) -> None:
    root = tf.train.Checkpoint(**objects)
    _check_shapes(checkpoint, reader, {name: variable.shape.as_list() for name, variable in _named_variables(root)})
    root.read(prefix).assert_existing_objects_matched().expect_partial()
    if non_finite := _find_non_finite(root):
        raise UserError(f"{checkpoint.path}: values of {non_finite} are not finite; choose an earlier checkpoint")


def check_model(
    checkpoint: Checkpoint, shapes: Mapping[str, Sequence[int]], others: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Checks that a checkpoint holds a model with variables of these shapes, before one is made, which may take long.

    Args:
        checkpoint: the checkpoint.
        shapes: the shapes of the model's variables by name.
        others: those of other variables in the checkpoint.

    Raises:
        UserError: it cannot be read, or a variable is missing or has another shape.
    """
    with _open_weights(checkpoint) as (_, reader):
        model = _get_model_name(reader)
        named = {f"{model}/{name}": shape for name, shape in shapes.items()}
        _check_shapes(checkpoint, reader, named | dict(others or {}))


def has_object(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a checkpoint holds variables of the object that was saved under this name.

    Raises:
        UserError: it cannot be read.
    """
    with _open_weights(checkpoint) as (_, reader):
        return any(variable.startswith(f"{name}/") for variable in reader.get_variable_to_shape_map())


def _check_shapes(checkpoint: Checkpoint, reader: Any, shapes: Mapping[str, Sequence[int]]) -> None:
    """Checks that a checkpoint has variables of these names and shapes.

    Raises:
        UserError: one is missing, or its shape differs.
    """
    saved = reader.get_variable_to_shape_map()
    for name, shape in shapes.items():
        found = saved.get(f"{name}/.ATTRIBUTES/VARIABLE_VALUE")
        if found != list(shape):
            raise UserError(
                f"{checkpoint.path}: does not fit the model that config.json and vocab.json describe: "
                f"{name} is {found or 'missing'} here and should be {list(shape)}"
            )


def restore_weights(checkpoint: Checkpoint, model: Any, **objects: Any) -> None:
    """Restores the weights to use a model with: their running average, if the checkpoint has one.

    Args:
        checkpoint: the checkpoint.
        model: the model.
        **objects: further arguments of `restore`.

    Raises:
        UserError: see `restore`.
    """
    with _open_weights(checkpoint) as (prefix, reader):
        _restore(checkpoint, prefix, reader, {_get_model_name(reader): model, **objects})


def _get_model_name(reader: Any) -> str:
    """Returns the name in a checkpoint of the model to use."""
    has_average = any(name.startswith("average/") for name in reader.get_variable_to_shape_map())
    return "average" if has_average else "model"


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


def _find_non_finite(root: tf.train.Checkpoint) -> str:
    """Returns the names of the variables with values that are not finite, for a message; empty: none."""
    names = [
        name
        for name, variable in _named_variables(root)
        if variable.dtype.is_floating and not np.isfinite(variable.numpy()).all()
    ]
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")


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
        if not os.path.lexists(path / DESCRIPTION):  # half removed by an early version that was killed
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
