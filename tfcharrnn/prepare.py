"""Prepares a text for training: TFRecord shards, vocab.json and dataset.json in one folder.

python -m tfcharrnn.prepare --input=FILE --output_dir=DIR

A text of any size: a large one is prepared in pieces, by all cores, and after an interruption the same command goes on.
"""

from __future__ import annotations

import time

from absl import flags

from tfcharrnn import cli
from tfcharrnn.config import DataConfig
from tfcharrnn.errors import ConfigError

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags and makes the data folder; prints its path."""
    from tfcharrnn.data import dataset

    config = DataConfig(**cli.settings(DataConfig))
    if not _FLAGS.output_dir:
        raise ConfigError("--output_dir is missing: name the data folder to make")
    began = time.perf_counter()
    data = dataset.prepare_data(config, _FLAGS.output_dir, overwrite=_FLAGS.overwrite, jobs=_FLAGS.jobs, quiet=False)
    speed = data.characters / (time.perf_counter() - began)
    cli.say(
        f"{data.name}: {data.characters:,} characters, {len(data.vocabulary)} symbols; {data.describe()}; "
        f"{speed:,.0f} characters/s"
    )
    print(data.path)


if __name__ == "__main__":
    cli.define(DataConfig)
    flags.DEFINE_string("output_dir", "", "The data folder to make.")
    flags.DEFINE_integer("jobs", 0, "Processes that prepare a large text; 0: one for each core.", lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Replace an existing data folder.")
    cli.run(main)
