"""Weights that a new run starts with: those of another run, or arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from tfcharrnn import untrusted_files
from tfcharrnn.config import ModelConfig
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.model.char_rnn import CharRNN, variable_shapes
from tfcharrnn.runs import checkpoints, model_folder
from tfcharrnn.runs.run_folder import Run
from tfcharrnn.untrusted_files import Array

# Sets the weights of a model.
InitialWeights = Callable[[CharRNN], None]

# what `export --format=npz` writes beside the weights
_OTHER_ARRAYS = ("carried/", "config")


def from_run(run: Run) -> InitialWeights:
    """Returns a function that sets the latest weights of a run.

    Raises:
        UserError: the run has none, or those of another model.
    """
    if model_folder.is_model_folder(run.path):
        return functools.partial(_set_weights, model_folder.read_weights(run).variables)
    checkpoint = checkpoints.find(run.path)
    checkpoints.check_model(checkpoint, variable_shapes(run.model, len(run.vocabulary)))
    return lambda model: checkpoints.restore_weights(checkpoint, model)


def from_arrays(path: str | Path, config: ModelConfig, vocabulary: Vocabulary) -> InitialWeights:
    """Reads the weights of a model from a `.npz` file, such as `export --format=npz` writes.

    Args:
        path: the file: an array for each variable, named as in a checkpoint, such as `cells/0/kernel`.
        config: the model.
        vocabulary: its symbols.

    Returns:
        A function that sets these weights.

    Raises:
        UserError: the file is missing or damaged, or its arrays are not those of the model.
    """
    arrays, symbols = untrusted_files.read_npz(path, variable_shapes(config, len(vocabulary)), ignored=_OTHER_ARRAYS)
    if symbols is not None and tuple(symbols) != vocabulary.symbols:
        raise UserError(f"{path}: has other symbols than the text, or in another order; use --init_from, or drop them")
    return functools.partial(_set_weights, arrays)


def _set_weights(arrays: Mapping[str, Array], model: CharRNN) -> None:
    for name, variable in model.named_variables.items():
        variable.assign(arrays[name].astype(variable.dtype.as_numpy_dtype))
