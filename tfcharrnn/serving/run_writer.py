"""What every import has in common: symbols brought into this library's order, and the run folder that is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfcharrnn import files
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.data.vocabulary import Vocabulary, is_symbol
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.serving import untrusted_files

Array = npt.NDArray[np.floating[Any]]
# blocks of `hidden` columns in the kernels of each cell, known here without TensorFlow
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def reordered(variables: dict[str, Array], order: Sequence[int]) -> dict[str, Array]:
    """The same model with its symbols in another order.

    Args:
        variables: as `tfcharrnn.verification.numpy_reference.variables` names them.
        order: for each new id the old one.
    """
    order = list(order)
    by_row = "embedding" if "embedding" in variables else "cells/0/kernel"
    return variables | {
        by_row: variables[by_row][order],
        "output_kernel": variables["output_kernel"][:, order],
        "output_bias": variables["output_bias"][order],
    }


def read_characters(path: Path) -> list[str]:
    """A model's symbols in id order: from JSON, a list of them or an object that gives each its id, or a pickled dict.

    Raises:
        UserError: the file is none of these.
    """
    is_pickle = path.suffix in (".pkl", ".pickle")
    value = untrusted_files.read_pickled_vocabulary(path) if is_pickle else files.read_json(path)
    if isinstance(value, dict) and set(value) == {"format", "symbols"}:  # a vocab.json of this library
        value = value["symbols"]
    if isinstance(value, dict):
        if sorted(map(repr, value.values())) != sorted(map(repr, range(len(value)))):
            raise UserError(f"{path}: its ids must be 0 to {len(value) - 1}, each for one character")
        value = sorted(value, key=value.__getitem__)
    if not isinstance(value, list) or not all(isinstance(symbol, str) and is_symbol(symbol) for symbol in value):
        raise UserError(f"{path}: must be a JSON list of single characters, or an object from characters to ids")
    if len(set(value)) < len(value):
        raise UserError(f"{path}: a character stands in it twice")
    return value


def symbol_order(symbols: Sequence[str], special: Sequence[str] = ()) -> list[int]:
    """For each id of a vocabulary the id there: the special symbols first, then characters by code point."""
    ranks = {symbol: index for index, symbol in enumerate(special)}
    return sorted(range(len(symbols)), key=lambda index: (ranks.get(symbols[index], len(ranks)), symbols[index]))


def write_run(
    config: ModelConfig, variables: dict[str, Array], symbols: Sequence[str], data: DataConfig, run_dir: Path
) -> None:
    """Writes a run folder with a checkpoint of step 0, whole or not at all.

    Args:
        config: the network.
        variables: as `tfcharrnn.verification.numpy_reference.variables` names them.
        symbols: in the order of `variables`.
        data: how a text is to be read and cut.
        run_dir: the folder to make.

    Raises:
        UserError: the folder exists already or cannot be written, or symbols and layout do not go together.
    """
    from tfcharrnn.model.char_rnn import CharRNN
    from tfcharrnn.runs import checkpoints
    from tfcharrnn.runs.run_folder import Run

    layout = LAYOUTS[data.layout]
    order = symbol_order(symbols, layout.special)
    vocabulary = Vocabulary([symbols[index] for index in order])
    if vocabulary.symbols[: vocabulary.num_special] != layout.special:
        raise UserError(f"--layout={data.layout} has the special symbols {layout.special}; choose the layout that fits")
    model = CharRNN(config, len(vocabulary), layout=layout)
    arrays = reordered(variables, order)
    for name, variable in model.named_variables.items():
        variable.assign(arrays[name])
    with files.new_folder(run_dir) as folder:
        # without a fingerprint of data: it has none of its own
        Run(folder, data, "", "", config, TrainingConfig(), vocabulary).save()
        checkpoints.save(folder, {"model": model}, 0, checkpoints.Losses(None, None), {})
