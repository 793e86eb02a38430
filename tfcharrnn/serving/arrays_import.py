"""Reads a network from NumPy arrays saved one a file, and infers its settings from their shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tfcharrnn import untrusted_files
from tfcharrnn.config import ModelConfig
from tfcharrnn.errors import UserError
from tfcharrnn.serving.run_writer import CELL_ARRAYS, NUM_GATES
from tfcharrnn.untrusted_files import Array


def read_arrays(folder: Path) -> dict[str, Array]:
    """Reads the arrays of a folder, by their names in a checkpoint.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    paths = sorted(folder.glob("*.npy"))
    if not paths:
        raise UserError(f"{folder}: has no .npy files; pass a folder with one for each array")
    return {path.stem.replace(".", "/"): untrusted_files.read_npy(path).astype(np.float64) for path in paths}


def infer_config(arrays: dict[str, Array], folder: Path) -> ModelConfig:
    """Infers the network from the names and shapes of its arrays.

    Raises:
        UserError: an array is missing or unknown, or its shape does not match the others.
    """
    num_layers = 0
    while f"cells/{num_layers}/kernel" in arrays:
        num_layers += 1
    names = {f"cells/{layer}/{name}" for layer in range(num_layers) for name in CELL_ARRAYS}
    names |= {"output_kernel", "output_bias", *({"embedding"} & set(arrays))}
    if not num_layers or set(arrays) != names:
        wrong = sorted(names ^ set(arrays)) or ["cells/0/kernel"]
        raise UserError(
            f"{folder}: {wrong[0].replace('/', '.')}.npy is missing or unknown: the arrays of a model of "
            f"{', '.join(NUM_GATES)} are needed, see --help for their names; for other cells use train --init_arrays"
        )
    recurrent = arrays["cells/0/recurrent_kernel"]
    hidden_size = recurrent.shape[0] if recurrent.ndim == 2 else 0
    cells = [cell for cell in NUM_GATES if hidden_size and recurrent.shape[1] == NUM_GATES[cell] * hidden_size]
    if not cells:
        raise UserError(f"{folder}: cells.0.recurrent_kernel.npy has shape {recurrent.shape}, which fits no cell")
    embedding = arrays.get("embedding")
    embedding_size = 0
    if embedding is not None:
        embedding_size = embedding.shape[-1] if embedding.ndim else 1
    num_symbols = arrays["output_bias"].size
    shapes = _list_shapes(cells[0], hidden_size, num_layers, embedding_size, num_symbols)
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise UserError(f"{folder}: {name.replace('/', '.')}.npy has shape {arrays[name].shape}, but needs {shape}")
    return ModelConfig(cell=cells[0], hidden_size=hidden_size, num_layers=num_layers, embedding_size=embedding_size)


def _list_shapes(
    cell: str, hidden_size: int, num_layers: int, embedding_size: int, num_symbols: int
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's arrays, by name."""
    columns = NUM_GATES[cell] * hidden_size
    bias = (2, columns) if cell == "gru" else (columns,)
    shapes: dict[str, tuple[int, ...]] = {"output_kernel": (hidden_size, num_symbols), "output_bias": (num_symbols,)}
    if embedding_size:
        shapes["embedding"] = (num_symbols, embedding_size)
    input_size = embedding_size or num_symbols
    for layer in range(num_layers):
        cell_shapes = [(input_size, columns), (hidden_size, columns), bias]
        shapes |= {f"cells/{layer}/{name}": shape for name, shape in zip(CELL_ARRAYS, cell_shapes, strict=True)}
        input_size = hidden_size
    return shapes
