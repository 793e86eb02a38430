"""Converts weights saved as arrays to a run folder.

python -m tfcharrnn.import_arrays --weights=FOLDER --vocabulary=vocab.pkl --run_dir=runs/old

FOLDER holds a `.npy` file for each array, named as in a checkpoint with dots for slashes: `cells.0.kernel.npy`,
`cells.0.recurrent_kernel.npy`, `cells.0.bias.npy`, ..., `output_kernel.npy`, `output_bias.npy` and, if the model has
an embedding, `embedding.npy`. They have Keras's layout, described in docs/formats.md. Nothing in the files is run: a
pickled vocabulary is parsed by a reader that accepts only a dict of strings to integers.

python -m tfcharrnn.import_arrays --weights=FOLDER --run_dir=runs/shared

takes a FOLDER that `export --format=safetensors` wrote, of any cell; it has the symbols and the settings.
"""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from tfcharrnn import cli, untrusted_files
from tfcharrnn.config import DataConfig
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.layouts import LAYOUTS

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags and the files, and writes the run folder."""
    folder = Path(_FLAGS.weights)
    if _FLAGS.weights and os.path.isfile(folder / "model.safetensors"):
        _import_model_folder(folder)
        return
    cli.require_flags(
        weights="the folder of .npy files", vocabulary="the file of its symbols", run_dir="the run folder to create"
    )
    settings = {"seq_length": _FLAGS.seq_length} if _FLAGS.layout != "lines" else {}
    data = DataConfig(layout=_FLAGS.layout, **settings)
    from tfcharrnn.serving import arrays_import, run_writer

    arrays = arrays_import.read_arrays(folder)
    config = arrays_import.infer_config(arrays, folder)
    symbols = untrusted_files.read_vocabulary(_FLAGS.vocabulary)
    num_symbols = len(arrays["output_bias"])
    if len(symbols) != num_symbols:
        raise UserError(
            f"{_FLAGS.vocabulary}: has {len(symbols)} symbols, but the arrays {num_symbols}; pass the model's own"
        )
    cli.load_tensorflow()
    run_writer.write_run(config, arrays, symbols, data, Path(_FLAGS.run_dir))
    print(_FLAGS.run_dir)


def _import_model_folder(folder: Path) -> None:
    """Writes the run folder of an exported model."""
    cli.require_flags(run_dir="the run folder to create")
    for name in ("vocabulary", "layout", "seq_length"):
        if _FLAGS[name].present:
            raise ConfigError(f"--{name}: {folder} has its own; leave the flag out")
    cli.load_tensorflow()
    cli.load_cells()
    from tfcharrnn.inference import trained_model
    from tfcharrnn.serving import run_writer

    run_writer.write_copy(trained_model.load_model(folder), Path(_FLAGS.run_dir))
    print(_FLAGS.run_dir)


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_cell_module_flag()
    flags.DEFINE_string("weights", "", "The folder of .npy files, or with model.safetensors.")
    flags.DEFINE_string("vocabulary", "", "The symbols: a JSON list in id order, or an object or pickled dict of ids.")
    flags.DEFINE_string("run_dir", "", "The run folder to create.")
    flags.DEFINE_enum("layout", "sequences", list(LAYOUTS), "How the training text was cut; see docs/formats.md.")
    flags.DEFINE_integer("seq_length", 200, "Symbols in an example.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
