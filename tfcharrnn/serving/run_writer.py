"""Writes an imported model as a run folder, with its symbols in this library's order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfcharrnn import files
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.data.vocabulary import Vocabulary, find_symbol_order
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.untrusted_files import Array

if TYPE_CHECKING:
    from tfcharrnn.inference.trained_model import TrainedModel

# the arrays of a cell, in order
CELL_ARRAYS = ("kernel", "recurrent_kernel", "bias")
# columns of each cell's kernels as a multiple of the hidden size; the cells themselves need TensorFlow
NUM_GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def reorder_symbols(variables: dict[str, Array], order: Sequence[int]) -> dict[str, Array]:
    """Returns the variables of the same model with its symbols in another order.

    Args:
        variables: by their names in `tfcharrnn.verification.numpy_reference.variables`.
        order: for each new id, the old one.
    """
    order = list(order)
    by_row = "embedding" if "embedding" in variables else "cells/0/kernel"
    return variables | {
        by_row: variables[by_row][order],
        "output_kernel": variables["output_kernel"][:, order],
        "output_bias": variables["output_bias"][order],
    }


def write_copy(trained: TrainedModel, run_dir: Path) -> None:
    """Writes a model folder that was loaded as a run folder with a checkpoint of step 0, atomically.

    Raises:
        UserError: the folder exists or cannot be written.
    """
    from tfcharrnn.runs import checkpoints

    run, carried = trained.run, trained.sampler.carried
    with files.create_folder(run_dir) as folder:
        dataclasses.replace(run, path=folder, fingerprint="").save()
        objects = {"model": trained.model, **({"carried": carried} if carried else {})}
        checkpoints.save(folder, objects, 0, trained.checkpoint.losses, {})


def write_run(
    config: ModelConfig,
    variables: dict[str, Array],
    symbols: Sequence[str],
    data: DataConfig,
    run_dir: Path,
    training: TrainingConfig | None = None,
) -> None:
    """Writes a run folder with a checkpoint of step 0, atomically.

    Args:
        config: the network.
        variables: by their names in `tfcharrnn.verification.numpy_reference.variables`.
        symbols: in the order of the variables.
        data: how texts are read and cut.
        run_dir: the folder to create.
        training: the training options of a run that starts with this one; None: the defaults.

    Raises:
        UserError: the folder exists or cannot be written, or the layout has other special symbols.
    """
    from tfcharrnn.model.char_rnn import CharRNN
    from tfcharrnn.runs import checkpoints
    from tfcharrnn.runs.run_folder import Run

    layout = LAYOUTS[data.layout]
    order = find_symbol_order(symbols, layout.special)
    vocabulary = Vocabulary([symbols[index] for index in order])
    if vocabulary.symbols[: vocabulary.num_special] != layout.special:
        raise UserError(f"--layout={data.layout} needs the special symbols {layout.special}; choose another --layout")
    model = CharRNN(config, len(vocabulary), layout=layout)
    arrays = reorder_symbols(variables, order)
    for name, variable in model.named_variables.items():
        variable.assign(arrays[name])
    with files.create_folder(run_dir) as folder:
        # without a data folder and fingerprint: the training data is unknown
        Run(folder, data, "", "", config, training or TrainingConfig(), vocabulary).save()
        checkpoints.save(folder, {"model": model}, 0, checkpoints.Losses(None, None), {})
