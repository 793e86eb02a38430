"""Writes a trained model for other programs, as a new folder, and prints its path.

saved_model: for TensorFlow Serving and any process with TensorFlow; it takes and gives text. keras: a plain Keras model
of the logits. npz: the arrays alone. onnx: the logits for ONNX Runtime. docs/serving.md says what is in each.
"""

from __future__ import annotations

from absl import flags

from tfcharrnn import cli
from tfcharrnn.config import EXPORT_FORMATS

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags and writes the folder."""
    cli.load_tensorflow()
    from tfcharrnn.serving import export_formats

    path = export_formats.export_model(
        _FLAGS.run_dir, _FLAGS.format, _FLAGS.output, _FLAGS.checkpoint, overwrite=_FLAGS.overwrite
    )
    print(path)


if __name__ == "__main__":
    cli.define_trained_run()
    flags.DEFINE_enum("format", "saved_model", EXPORT_FORMATS, "What to write.")
    flags.DEFINE_string("output", "", "The folder to make; by default export/FORMAT in the run folder.")
    flags.DEFINE_bool("overwrite", False, "Replace an existing folder.")
    cli.run(main)
