"""Measures how well a trained model predicts a text; prints one JSON object.

The text is a split of the model's own data (--split), or any file (--input).
"""

from __future__ import annotations

import dataclasses
import json

from absl import flags

from tfcharrnn import commandline
from tfcharrnn.errors import ConfigError

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags, restores the model and prints its loss."""
    if _FLAGS.input and _FLAGS["split"].present:
        raise ConfigError("--input and --split exclude each other")
    commandline.load_tensorflow()
    from tfcharrnn import corpora, restoring

    trained = restoring.load_model(_FLAGS.run_dir, _FLAGS.checkpoint)
    if _FLAGS.input:
        config = dataclasses.replace(trained.run.data, input=tuple(_FLAGS.input), corpus="", encoding=_FLAGS.encoding)
        corpus = corpora.load(config)
        result = trained.evaluate_text(corpus.text, corpus.name)
    else:
        result = trained.evaluate_split(_FLAGS.split, _FLAGS.data_dir)
    print(json.dumps({**result.to_dict(), "step": trained.checkpoint.step}))


if __name__ == "__main__":
    flags.DEFINE_string("run_dir", "", "The run folder; by default the newest in runs/.")
    flags.DEFINE_string("checkpoint", "latest", "latest, best (by validation loss), or a checkpoint's folder.")
    flags.DEFINE_enum("split", "val", ["train", "val", "test"], "The part of the run's own data to evaluate on.")
    flags.DEFINE_list("input", [], "Text files to evaluate on instead.")
    flags.DEFINE_string("encoding", "utf-8", "Encoding of the --input files.")
    flags.DEFINE_string("data_dir", "", "The run's data folder, where it has moved.")
    commandline.run(main)
