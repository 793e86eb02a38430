"""Draws the curves of one or more runs.

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
    """Reads the flags and draws."""
    if not _FLAGS.run_dir:
        raise ConfigError("--run_dir is missing: name one or more run folders")
    if not _FLAGS.y:
        raise ConfigError(f"--y is empty: name one or more of {', '.join(plotting.COLUMNS)}")
    plotting.draw([Path(name) for name in _FLAGS.run_dir], Path(_FLAGS.output), _FLAGS.y, _FLAGS.x)
    print(_FLAGS.output)


if __name__ == "__main__":
    flags.DEFINE_list("run_dir", [], "Run folders to draw.")
    flags.DEFINE_list("y", ["loss", "val_loss"], f"What to draw, of {', '.join(plotting.COLUMNS)}.")
    flags.DEFINE_enum("x", "step", list(plotting.AXES), "Against what; time: spent in training steps.")
    flags.DEFINE_string("output", "loss.png", "The picture to write, PNG or SVG.")
    cli.run(main)
