"""Prepares a text for training: TFRecord shards, vocab.json and dataset.json in one folder.

python -m tfcharrnn.prepare --input=FILE --output_dir=DIR

The text may have any size: a large one is prepared in pieces on all cores, and running the command again after an
interruption resumes.
"""

from __future__ import annotations

import time

from absl import flags

from tfcharrnn import cli
from tfcharrnn.config import DataConfig

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags and makes the data folder; prints its path."""
    from tfcharrnn.preparation.data_folder import prepare_data

    config = cli.parse_config(DataConfig)
    cli.require_flags(output_dir="the data folder to create")
    began = time.perf_counter()
    data = prepare_data(config, _FLAGS.output_dir, overwrite=_FLAGS.overwrite, jobs=_FLAGS.jobs, quiet=False)
    speed = data.characters / (time.perf_counter() - began)
    cli.print_status(
        f"{data.name}: {data.characters:,} characters, {len(data.vocabulary)} symbols; {data.describe()}; "
        f"{speed:,.0f} characters/s"
    )
    print(data.path)


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config_flags(DataConfig)
    cli.define_recipe_flag()
    flags.DEFINE_string("output_dir", "", "The data folder to create.")
    flags.DEFINE_integer("jobs", 0, "Processes for a large text; 0: one per core.", lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Replace an existing data folder.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
