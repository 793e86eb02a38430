"""Measures how well a trained model predicts a text; prints one JSON object.

The text is a split of the model's own data (--split), or any file (--input). With --score=FILE it prints the
log-probability of each line of a file instead, in nats, one a line.
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
    if bool(_FLAGS.input) + _FLAGS["split"].present + bool(_FLAGS.score) > 1:
        raise ConfigError("--input, --split and --score exclude one another")
    commandline.load_tensorflow()
    from tfcharrnn import corpora, restoring

    trained = restoring.load_model(_FLAGS.run_dir, _FLAGS.checkpoint)
    if _FLAGS.input or _FLAGS.score:
        paths = tuple(_FLAGS.input) or (_FLAGS.score,)
        corpus = corpora.load(dataclasses.replace(trained.run.data, input=paths, corpus="", encoding=_FLAGS.encoding))
        if _FLAGS.score:
            for score in trained.score(corpus.text.removesuffix("\n").split("\n"), corpus.name):
                print(score)
            return
        result = trained.evaluate_text(corpus.text, corpus.name)
    else:
        result = trained.evaluate_split(_FLAGS.split, _FLAGS.data_dir)
    print(json.dumps({**result.to_dict(), "step": trained.checkpoint.step}))


if __name__ == "__main__":
    flags.DEFINE_string("run_dir", "", "The run folder; by default the newest in runs/.")
    flags.DEFINE_string("checkpoint", "latest", "latest, best (of the least loss), a step, or a checkpoint's folder.")
    flags.DEFINE_enum("split", "val", ["train", "val", "test"], "The part of the run's own data to evaluate on.")
    flags.DEFINE_list("input", [], "Text files to evaluate on instead.")
    flags.DEFINE_string("score", "", "A text file; print the log-probability of each of its lines instead.")
    flags.DEFINE_string("encoding", "utf-8", "Encoding of the --input and --score files.")
    flags.DEFINE_string("data_dir", "", "The run's data folder, where it has moved.")
    commandline.run(main)
