"""Trains a character-level language model.

With no flags: an Elman RNN on an embedded corpus. A text of your own: --input=FILE. Prints the run folder.
"""

from __future__ import annotations

import sys

from absl import flags

from tfcharrnn import cli
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig

_FLAGS = flags.FLAGS
# the exit code of workers that a signal has ended early, for those who start them again (EX_TEMPFAIL of sysexits.h)
STOPPED = 75
_CONFIGS = (DataConfig, ModelConfig, TrainingConfig)


def main() -> None:
    """Reads the flags, prepares the text if need be, and trains; prints the run folder."""
    settings = cli.settings(*_CONFIGS)
    cli.load_tensorflow()
    from tfcharrnn.training import setup

    result = setup.train_model(
        _FLAGS.run_dir,
        data_dir=_FLAGS.data_dir,
        init_from=_FLAGS.init_from,
        resume=_FLAGS.resume,
        overwrite=_FLAGS.overwrite,
        **settings,
    )
    print(result.run_dir)
    if result.interrupted and result.is_shared:
        sys.stdout.flush()
        sys.exit(STOPPED)


if __name__ == "__main__":
    cli.define(*_CONFIGS)
    flags.DEFINE_string("data_dir", "", "A data folder that tfcharrnn.prepare made, instead of --input or --corpus.")
    flags.DEFINE_string("run_dir", "", "The run folder to make; by default one in runs/ named after the time.")
    flags.DEFINE_string("init_from", "", "A run whose model and last weights the new one begins with, on another text.")
    flags.DEFINE_bool("resume", False, "Go on with the run of --run_dir, or the newest, from its last checkpoint.")
    flags.DEFINE_bool("overwrite", False, "Replace an existing run.")
    cli.run(main)
