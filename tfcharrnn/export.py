"""Exports a trained model for other programs to a new folder, or a page for a browser, and prints its path.

saved_model: from text to text, for TensorFlow Serving or any program with TensorFlow. keras: from ids to logits, as a
plain Keras model. npz: the arrays alone. safetensors: a folder to share, which this package reads like a run folder,
with a model card for the Hugging Face hub. onnx: from ids to logits, for ONNX Runtime. html: a page that writes text in
a browser, without a network; --output may be a folder, or a file NAME.html. docs/serving.md has the details.
"""

from __future__ import annotations

from absl import flags

from tfcharrnn import cli
from tfcharrnn.config import EXPORT_FORMATS
from tfcharrnn.flag_help import FlagGroup

_FLAGS = flags.FLAGS
_GROUPS = (
    FlagGroup("Model", ("run_dir", "checkpoint"), ("cell_module",)),
    FlagGroup("What is written", ("format", "output", "license", "overwrite")),
)


def main() -> None:
    """Reads the flags and exports the model."""
    cli.load_tensorflow()
    cli.load_cells()
    from tfcharrnn.serving import export_formats

    path = export_formats.export_model(
        _FLAGS.run_dir,
        _FLAGS.format,
        _FLAGS.output,
        _FLAGS.checkpoint,
        overwrite=_FLAGS.overwrite,
        license=_FLAGS.license,
    )
    print(path)


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_run_flags()
    flags.DEFINE_enum("format", "saved_model", EXPORT_FORMATS, "Format of the export.")
    flags.DEFINE_string("output", "", "The folder to create, or NAME.html; by default export/FORMAT in the run folder.")
    flags.DEFINE_string(
        "license", "", "format=safetensors: the license in the model card, as the hub names it, such as mit; see docs."
    )
    flags.DEFINE_bool("overwrite", False, "Replace an existing folder or file.")


if __name__ == "__main__":
    cli.run_command(define_flags, main, groups=_GROUPS)
