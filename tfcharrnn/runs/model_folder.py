"""Model folders: a run folder to share, with `model.safetensors` in the place of checkpoints and logs.

`config.json` and `vocab.json` are those of a run folder, without the paths of its input files, and `config.json` has
also the step and the losses. An array has the name of its variable in a checkpoint, with dots for slashes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfcharrnn import config as config_lib
from tfcharrnn import files
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.model.cells import get_cell_class
from tfcharrnn.model.char_rnn import variable_shapes
from tfcharrnn.runs import checkpoints, run_folder, safetensors_file
from tfcharrnn.runs.checkpoints import Checkpoint
from tfcharrnn.runs.run_folder import Run

WEIGHTS = "model.safetensors"
_CARRIED_SYMBOLS, _CARRIED_STATE = "carried.symbols", "carried.state"

Array = npt.NDArray[Any]


class Weights(NamedTuple):
    """The content of `model.safetensors`.

    Attributes:
        variables: the model's variables, by their names in a checkpoint.
        carried: where training stopped reading a stream: the state's tensors layer by layer, `[batch, hidden]`, then
            the symbols to read next, `[batch]`; empty: nowhere.
    """

    variables: dict[str, Array]
    carried: list[Array]


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds weights to share, not checkpoints."""
    return os.path.isfile(path / WEIGHTS) and not os.path.lexists(path / "checkpoints")


def write(folder: Path, run: Run, checkpoint: Checkpoint, weights: Weights) -> None:
    """Fills a folder.

    Args:
        folder: an existing folder.
        run: the run that the model comes from.
        checkpoint: the checkpoint that its weights come from.
        weights: the weights, in the types that the file is to have.

    Raises:
        UserError: a write fails.
    """
    arrays = {name.replace("/", "."): value for name, value in weights.variables.items()}
    if weights.carried:
        names = [*_list_state_names(run), _CARRIED_SYMBOLS]
        arrays |= dict(zip(names, weights.carried, strict=True))
    safetensors_file.write_file(folder / WEIGHTS, arrays)
    run.vocabulary.save(folder / "vocab.json")
    files.write_json(folder / "config.json", describe(run, checkpoint))


def describe(run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the content of `config.json`."""
    data = config_lib.to_dict(run.data)
    del data["input"]
    return {
        "format": run_folder.FORMAT,
        "step": checkpoint.step,
        "smooth_loss": checkpoint.losses.smooth,
        "val_loss": checkpoint.losses.val,
        "data": data,
        "data_dir": "",
        # the data of a corpus can be prepared again anywhere, unlike that of files
        "data_fingerprint": "" if run.data.input else run.fingerprint,
        "model": config_lib.to_dict(run.model),
        "training": {"batch_size": run.training.batch_size},
    }


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads the step and the losses of a model folder.

    Raises:
        UserError: they are missing or damaged.
    """
    file = path / "config.json"
    value = files.read_json(file)
    return checkpoints.parse_description(path, file, {**value, "log": {}} if isinstance(value, dict) else value)


def read_weights(run: Run) -> Weights:
    """Reads the weights of a model folder, which `run_folder.load` has read.

    Raises:
        UserError: the file is missing or damaged, or does not fit the model.
    """
    shapes = variable_shapes(run.model, len(run.vocabulary))
    state_names, batch_size = _list_state_names(run), run.training.batch_size
    carried_shapes: dict[str, tuple[int, ...]] = dict.fromkeys(state_names, (batch_size, run.model.hidden_size))
    if state_names:
        carried_shapes[_CARRIED_SYMBOLS] = (batch_size,)
    path = run.path / WEIGHTS
    dotted = {name.replace("/", "."): shape for name, shape in shapes.items()}
    arrays = safetensors_file.read_file(path, dotted, carried_shapes)
    is_integer = {name: array.dtype.kind == "i" for name, array in arrays.items()}
    for name, found in is_integer.items():
        if found != (name == _CARRIED_SYMBOLS):
            raise UserError(f"{path}: {name}: has the type {arrays[name].dtype}; get the file again")
    symbols = arrays.get(_CARRIED_SYMBOLS)
    if symbols is not None and not (symbols >= 0).all() & (symbols < len(run.vocabulary)).all():
        raise UserError(f"{path}: {_CARRIED_SYMBOLS}: has symbols outside vocab.json; get the file again")
    carried = [] if symbols is None else [*(arrays[name] for name in state_names), symbols]
    return Weights({name: arrays[name.replace("/", ".")] for name in shapes}, carried)


def round_weights(weights: Weights) -> Weights:
    """Returns the weights in float16, half the size of float32."""

    def round_array(array: Array) -> Array:
        return array if array.dtype.kind == "i" else array.astype(np.float16)

    variables: Mapping[str, Array] = weights.variables
    return Weights(
        {name: round_array(array) for name, array in variables.items()}, [*map(round_array, weights.carried)]
    )


def _list_state_names(run: Run) -> list[str]:
    """Returns the names of the tensors of the state that a stream carries over; none for other layouts."""
    if not LAYOUTS[run.data.layout].carries_state:
        return []
    num_tensors = get_cell_class(run.model.cell, run.model.recurrent_activation).num_state_tensors
    return [
        f"{_CARRIED_STATE}.{layer}.{index}" for layer in range(run.model.num_layers) for index in range(num_tensors)
    ]
