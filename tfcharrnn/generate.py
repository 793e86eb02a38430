"""Generates text from a trained model; the text alone goes to standard output.

With no flags: a thousand characters from the newest run in runs/.
"""

from __future__ import annotations

import json
import sys

from absl import flags

from tfcharrnn import commandline
from tfcharrnn.config import GenerationConfig

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags, restores the model and prints what it writes."""
    config = GenerationConfig(**commandline.settings(GenerationConfig))
    commandline.load_tensorflow()
    from tfcharrnn import restoring

    trained = restoring.load_model(_FLAGS.run_dir, _FLAGS.checkpoint)
    # whatever the terminal's own encoding is
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    if _FLAGS.json:
        texts = trained.sampler.generate(config)
        result = {"run_dir": str(trained.run.path), "step": trained.checkpoint.step, "texts": texts}
        print(json.dumps(result, ensure_ascii=False))
    elif config.num_samples == 1:
        for (piece,) in trained.sampler.stream(config):
            print(piece, end="", flush=True)
        print()
    else:
        for index, text in enumerate(trained.sampler.generate(config)):
            if index:
                print("-" * 8)
            print(text)


if __name__ == "__main__":
    commandline.define(GenerationConfig)
    flags.DEFINE_string("run_dir", "", "The run folder; by default the newest in runs/.")
    flags.DEFINE_string("checkpoint", "latest", "latest, best (by validation loss), or a checkpoint's folder.")
    flags.DEFINE_bool("json", False, "Print one JSON object with the texts instead.")
    commandline.run(main)
