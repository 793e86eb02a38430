"""Converts a Keras character model to a run folder for `generate`, `evaluate` and fine-tuning (`train --init_from`).

python -m tfcharrnn.import_keras --model=model.h5 --characters=chars.json --run_dir=runs/imported

The model needs one-hot characters or an Embedding, recurrent layers of one kind and size with optional Dropout, and a
Dense layer with softmax. The imported model is checked against the layers in the file, run in NumPy. Reading the file
needs h5py: pip install 'tfcharrnn[hdf5]'.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from tfcharrnn import cli, untrusted_files
from tfcharrnn.config import BYTES, DataConfig, check_settings
from tfcharrnn.errors import ConfigError, UserError

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags, converts the model, checks it and writes the run folder."""
    cli.require_flags(model="the Keras model file", run_dir="the run folder to create")
    if bool(_FLAGS.characters) == bool(_FLAGS.text):
        raise ConfigError("--characters or --text, but not both, must name the model's characters")
    if _FLAGS.encoding == BYTES:
        raise ConfigError(f"--encoding={BYTES}: the symbols of an imported model are characters")
    from tfcharrnn.data.vocabulary import find_symbol_order
    from tfcharrnn.serving import keras_import, keras_reader, run_writer

    lengths = {"seq_length": _FLAGS.seq_length or keras_import.DEFAULT_SEQ_LENGTH, "stride": _FLAGS.stride}
    check_settings(DataConfig, {"layout": "windows", **lengths})
    if Path(_FLAGS.run_dir).exists():
        raise UserError(f"{_FLAGS.run_dir}: exists already; choose another --run_dir")
    source = keras_reader.read_file_safely(_FLAGS.model)  # it forks, so TensorFlow must not have started threads yet
    imported = keras_import.convert_model(source)
    characters = _read_characters()
    if len(characters) != imported.vocabulary_size:
        raise UserError(
            f"{_FLAGS.characters or _FLAGS.text}: has {len(characters)} characters, but {source.path} has "
            f"{imported.vocabulary_size}; pass those that it was trained with"
        )
    cli.load_tensorflow()
    for note in imported.notes:
        cli.print_status(f"note       {note}")
    if _FLAGS.verify:
        difference = keras_import.check_logits(source, imported, find_symbol_order(characters))
        cli.print_status(f"checked    logits differ from the file's by at most {difference:.1e}")
    data = keras_import.make_data_config(imported, characters, seq_length=_FLAGS.seq_length, stride=_FLAGS.stride)
    run_dir = Path(_FLAGS.run_dir)
    run_writer.write_run(imported.config, imported.variables, characters, data, run_dir, keras_import.TRAINING)
    cli.print_status(
        "note       a run with --init_from this one trains as Keras's fit does, unless told otherwise: on the whole "
        "text (--val_fraction=0), without clipping (--clip_norm=0), on incomplete batches too (--nodrop_remainder)"
    )
    print(_FLAGS.run_dir)


def _read_characters() -> list[str]:
    """Returns the model's symbols in id order, from --characters or --text."""
    from tfcharrnn.preparation import corpora

    if _FLAGS.characters:
        return untrusted_files.read_vocabulary(_FLAGS.characters)
    config = DataConfig(input=(_FLAGS.text,), lowercase=_FLAGS.lowercase, encoding=_FLAGS.encoding)
    return sorted(set(corpora.load(config).text))


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("model", "", "The model file: .h5 or .keras, written by Keras 2 or 3.")
    flags.DEFINE_string("characters", "", "The model's characters: a JSON list in id order, or an object of their ids.")
    flags.DEFINE_string("text", "", "Instead: the training text, whose sorted characters are the model's symbols.")
    flags.DEFINE_bool("lowercase", True, "Convert --text to lower case first.")
    flags.DEFINE_string("encoding", "utf-8", "Encoding of --text.")
    flags.DEFINE_string("run_dir", "", "The run folder to create.")
    flags.DEFINE_integer("seq_length", 0, "Characters that a prediction sees; 0: as the model says, or 40.")
    flags.DEFINE_integer("stride", 3, "Characters from one training window to the next, for fine-tuning.")
    flags.DEFINE_bool("verify", True, "Check the imported model against the layers of the file, run in NumPy.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
