"""Trains a character-level language model.

With no flags: an Elman RNN on an embedded corpus. For your own text: --input=FILE. Prints the run folder.
"""

from __future__ import annotations

import sys

from absl import flags

from tfcharrnn import cli
from tfcharrnn.config import DataConfig, ModelConfig, TrainingConfig
from tfcharrnn.flag_help import FlagGroup

_FLAGS = flags.FLAGS
# exit code of workers that a signal stopped early, for whoever restarts them (EX_TEMPFAIL in sysexits.h)
STOPPED = 75
_CONFIGS = (DataConfig, ModelConfig, TrainingConfig)
_GROUPS = (
    FlagGroup("Text", ("input", "layout"), ("corpus", "data_dir", DataConfig)),
    FlagGroup("Model", ("cell", "hidden_size", "num_layers"), (ModelConfig, "cell_module", "init_from", "init_arrays")),
    FlagGroup("Training", ("minutes", "learning_rate", "steps"), ("recipe", TrainingConfig, "device")),
    FlagGroup(
        "What is written",
        ("run_dir", "resume"),
        (
            "overwrite",
            "log_every",
            "sample_every",
            "sample_length",
            "checkpoint_every",
            "keep_checkpoints",
            "keep_every",
            "smoothing",
            "smoothing_start",
            "plot",
            "tensorboard",
            "num_shards",
            "compression",
        ),
    ),
)


def main() -> None:
    """Reads the flags and trains; prints the run folder."""
    cli.load_cells(_FLAGS.cell)
    settings = cli.parse_settings(*_CONFIGS)
    cli.load_tensorflow()
    from tfcharrnn.training import setup

    result = setup.train_model(
        _FLAGS.run_dir,
        data_dir=_FLAGS.data_dir,
        init_from=_FLAGS.init_from,
        init_arrays=_FLAGS.init_arrays,
        resume=_FLAGS.resume,
        overwrite=_FLAGS.overwrite,
        **settings,
    )
    print(result.run_dir)
    if result.interrupted and result.is_shared:
        sys.stdout.flush()
        sys.exit(STOPPED)


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config_flags(*_CONFIGS)
    cli.define_cell_module_flag()
    cli.define_recipe_flag()
    cli.define_device_flag()
    flags.DEFINE_string("data_dir", "", "A data folder created by `prepare`, instead of --input or --corpus.")
    flags.DEFINE_string("run_dir", "", "The run folder to create; by default one in runs/ named after the time.")
    flags.DEFINE_string(
        "init_arrays",
        "",
        "A .npz file with the weights to start from, named as in a checkpoint; export --format=npz writes one.",
    )
    flags.DEFINE_string(
        "init_from", "", "A run, or pretrained:NAME, whose model and latest weights to start from, on another text."
    )
    flags.DEFINE_bool("resume", False, "Continue the run in --run_dir, or the newest, from its latest checkpoint.")
    flags.DEFINE_bool("overwrite", False, "Replace an existing run.")


if __name__ == "__main__":
    cli.run_command(define_flags, main, groups=_GROUPS)
