"""Prepares a text for training: TFRecord shards, vocab.json and dataset.json in one folder.

python -m tfcharrnn.prepare --input=FILE --output_dir=DIR
"""

from __future__ import annotations

from absl import flags

from tfcharrnn import commandline
from tfcharrnn.config import DataConfig
from tfcharrnn.errors import ConfigError

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags and makes the data folder; prints its path."""
    from tfcharrnn import dataset

    config = DataConfig(**commandline.settings(DataConfig))
    if not _FLAGS.output_dir:
        raise ConfigError("--output_dir is missing: name the data folder to make")
    commandline.load_tensorflow()
    data = dataset.prepare_data(config, _FLAGS.output_dir, overwrite=_FLAGS.overwrite)
    commandline.say(f"{data.name}: {data.characters:,} characters, {len(data.vocabulary)} symbols; {data.describe()}")
    print(data.path)


if __name__ == "__main__":
    commandline.define(DataConfig)
    flags.DEFINE_string("output_dir", "", "The data folder to make.")
    flags.DEFINE_bool("overwrite", False, "Replace an existing data folder.")
    commandline.run(main)
