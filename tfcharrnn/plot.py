"""Plots the metrics of one or more runs.

python -m tfcharrnn.plot --run_dir=RUN[,RUN...] --output=loss.png
python -m tfcharrnn.plot --run_dir=RUN --y=loss,smooth_loss,val_loss,learning_rate,grad_norm --x=time --output=all.svg
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from tfcharrnn import cli
from tfcharrnn.errors import ConfigError
from tfcharrnn.runs import plotting

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags, draws the curves and prints the path of the image."""
    cli.require_flags(run_dir="one or more run folders")
    if not _FLAGS.y:
        raise ConfigError(f"--y is empty: name one or more of {', '.join(plotting.COLUMNS)}")
    plotting.draw([Path(name) for name in _FLAGS.run_dir], Path(_FLAGS.output), _FLAGS.y, _FLAGS.x)
    print(_FLAGS.output)


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_files_flag("run_dir", "Run folders to plot: DIR[,...].")
    flags.DEFINE_list("y", ["loss", "val_loss"], f"Columns to plot, of {', '.join(plotting.COLUMNS)}.")
    flags.DEFINE_enum("x", "step", list(plotting.AXES), "The x axis; time: time spent in training steps.")
    flags.DEFINE_string("output", "loss.png", "The image to write, PNG or SVG.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
