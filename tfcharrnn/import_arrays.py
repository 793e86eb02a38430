"""Makes a run folder of weights that an older script saved as NumPy arrays.

python -m tfcharrnn.import_arrays --weights=FOLDER --vocabulary=vocab.pkl --run_dir=runs/old

FOLDER holds one `.npy` file for each array, named as in a checkpoint with dots for slashes: `cells.0.kernel.npy`,
`cells.0.recurrent_kernel.npy`, `cells.0.bias.npy`, ..., `output_kernel.npy`, `output_bias.npy`, perhaps
`embedding.npy`. Their layout is Keras's, as docs/formats.md has it. Nothing in the files is run: a pickled vocabulary
goes through a reader that knows nothing but a dict of strings to integers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags

from tfcharrnn import cli
from tfcharrnn.config import CELLS, DataConfig, ModelConfig
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.serving import untrusted_files
from tfcharrnn.serving.run_writer import GATES, Array, read_characters, write_run

_FLAGS = flags.FLAGS
_CELL_ARRAYS = ("kernel", "recurrent_kernel", "bias")


def read_arrays(folder: Path) -> dict[str, Array]:
    """The arrays of a folder, by the names that a checkpoint has for them.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    paths = sorted(folder.glob("*.npy"))
    if not paths:
        raise UserError(f"{folder}: holds no .npy files; name a folder with one for each array")
    return {path.stem.replace(".", "/"): untrusted_files.read_npy(path).astype(np.float64) for path in paths}


def network(arrays: dict[str, Array], folder: Path) -> ModelConfig:
    """The network that arrays belong to, found from their names and shapes.

    Raises:
        UserError: an array is missing, is one too many, or has a shape that does not fit the others.
    """
    num_layers = 0
    while f"cells/{num_layers}/kernel" in arrays:
        num_layers += 1
    names = {f"cells/{layer}/{name}" for layer in range(num_layers) for name in _CELL_ARRAYS}
    names |= {"output_kernel", "output_bias", *({"embedding"} & set(arrays))}
    if not num_layers or set(arrays) != names:
        odd = sorted(names ^ set(arrays)) or ["cells/0/kernel"]
        raise UserError(f"{folder}: {odd[0].replace('/', '.')}.npy is missing or unknown; see --help for the names")
    recurrent = arrays["cells/0/recurrent_kernel"]
    hidden_size = recurrent.shape[0] if recurrent.ndim == 2 else 0
    cells = [cell for cell in CELLS if hidden_size and recurrent.shape[1] == GATES[cell] * hidden_size]
    if not cells:
        raise UserError(f"{folder}: cells.0.recurrent_kernel.npy of shape {recurrent.shape} fits no cell")
    embedding = arrays.get("embedding")
    symbols = len(arrays["output_bias"])
    columns = recurrent.shape[1]
    shapes = {"output_kernel": (hidden_size, symbols), "output_bias": (symbols,)}
    size = symbols
    if embedding is not None:
        size = embedding.shape[-1]
        shapes["embedding"] = (symbols, size)
    for layer in range(num_layers):
        bias = (2, columns) if cells[0] == "gru" else (columns,)
        sizes = [(size, columns), (hidden_size, columns), bias]
        shapes |= {f"cells/{layer}/{name}": shape for name, shape in zip(_CELL_ARRAYS, sizes, strict=True)}
        size = hidden_size
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise UserError(
                f"{folder}: {name.replace('/', '.')}.npy has shape {arrays[name].shape} and should have {shape}"
            )
    return ModelConfig(
        cell=cells[0],
        hidden_size=hidden_size,
        num_layers=num_layers,
        embedding_size=0 if embedding is None else embedding.shape[1],
    )


def main() -> None:
    """Reads the flags and the files, and writes the run folder."""
    for name in ("weights", "vocabulary", "run_dir"):
        if not _FLAGS[name].value:
            raise ConfigError(f"--{name} is missing")
    settings = {"seq_length": _FLAGS.seq_length} if _FLAGS.layout != "lines" else {}
    data = DataConfig(layout=_FLAGS.layout, **settings)
    folder = Path(_FLAGS.weights)
    arrays = read_arrays(folder)
    config = network(arrays, folder)
    symbols = read_characters(Path(_FLAGS.vocabulary))
    if len(symbols) != len(arrays["output_bias"]):
        raise UserError(f"{_FLAGS.vocabulary}: has {len(symbols)} symbols, and the arrays {len(arrays['output_bias'])}")
    cli.load_tensorflow()
    write_run(config, arrays, symbols, data, Path(_FLAGS.run_dir))
    print(_FLAGS.run_dir)


if __name__ == "__main__":
    flags.DEFINE_string("weights", "", "The folder of .npy files.")
    flags.DEFINE_string("vocabulary", "", "The symbols: a pickled dict of their ids, or JSON, a list or an object.")
    flags.DEFINE_string("run_dir", "", "The run folder to make.")
    flags.DEFINE_enum("layout", "sequences", list(LAYOUTS), "What the model learnt from; see docs/formats.md.")
    flags.DEFINE_integer("seq_length", 200, "Symbols in an example.")
    cli.run(main)
