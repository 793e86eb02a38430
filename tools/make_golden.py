"""Makes the golden runs: tiny run folders, one a cell, that every later version must read to the same effect.

python tools/make_golden.py --output_dir=tests/golden

Beside each folder stands what it gives: texts from known seeds, and the loss of a known text. Texts are of seeds at
which weights that are off by a thousandth give the same text, so that another machine's rounding gives it too. What is
there is never made again; a later format gets folders of its own names.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from tfcharrnn import cli, files
from tfcharrnn.errors import UserError
from tfcharrnn.training.setup import train_model

_FLAGS = flags.FLAGS
_TEXT = "The cat sat on the mat.\nThe dog ate the naïve hen\u2019s egg 🥚.\nThen the cat sat on the dog.\n"
_SETTINGS: dict[str, dict[str, Any]] = {
    "rnn": {"layout": "sequences", "seq_length": 12, "steps": 300},
    "lstm": {"layout": "stream", "seq_length": 8, "steps": 200, "embedding_size": 4, "num_layers": 2},
    "gru": {"layout": "lines", "max_length": 60, "steps": 200, "learned_initial_state": True},
}
_ONCE = {"eval_every": 0, "sample_every": 0, "checkpoint_every": 0}
_SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "batch_size": 4,
    "learning_rate": 0.02,
    "sample_length": 20,
    "log_every": 100,
    **_ONCE,
}
_DRAWN: tuple[dict[str, Any], ...] = (
    {"length": 40, "greedy": True, "prime": "The "},
    {"length": 60, "prime": "the dog"},
    {"length": 60, "temperature": 0.7, "top_k": 5},
)
_EVALUATED = "The hen sat on the naïve cat\u2019s dog.\nThe dog ate.\n"
# how much each weight is changed, and how often, to see which seeds stand it
_SHARE, _TRIALS, _SEEDS = 1e-3, 8, 200


def make(cell: str, folder: Path) -> dict[str, Any]:
    """Trains one run into `folder`; returns what it gives."""
    from tfcharrnn import load_model

    with _elsewhere():
        Path("text.txt").write_text(_TEXT * 40, encoding="utf-8")
        train_model(folder, input=["text.txt"], cell=cell, quiet=True, **_SMALL, **_SETTINGS[cell])
    (folder / ".lock").unlink(missing_ok=True)
    trained = load_model(folder)
    changed = []
    for trial in range(_TRIALS):
        other = load_model(folder)
        rng = np.random.default_rng(trial)
        for variable in other.model.trainable_variables:
            variable.assign(variable * (1.0 + _SHARE * rng.uniform(-1.0, 1.0, variable.shape)))
        changed.append(other)
    texts = []
    for settings in _DRAWN:
        for seed in range(_SEEDS):
            text = trained.generate(**settings, seed=seed)
            if all(other.generate(**settings, seed=seed) == text for other in changed):
                break
        else:
            raise UserError(f"{folder}: no seed below {_SEEDS} gives a text that stands rounding; shorten the text")
        texts.append({"settings": {**settings, "seed": seed}, "text": text})
    read = "examples" if trained.run.data.layout == "sequences" else ""
    evaluation = trained.evaluate_text(_EVALUATED, read=read)
    return {
        "step": trained.checkpoint.step,
        "texts": texts,
        "evaluated": {
            "text": _EVALUATED,
            "read": read,
            "loss": evaluation.loss,
            "characters": evaluation.characters,
        },
    }


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """In an empty folder, with an empty cache, so that nothing of this machine gets into the run."""
    here, cache = os.getcwd(), os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            os.chdir(here)
            del os.environ["XDG_CACHE_HOME"]
            if cache is not None:
                os.environ["XDG_CACHE_HOME"] = cache


def main() -> None:
    """Makes the runs that are not there yet."""
    cli.load_tensorflow()
    for cell in _SETTINGS:
        folder = Path(_FLAGS.output_dir).absolute() / cell
        if folder.exists():
            raise UserError(f"{folder}: exists already, and golden runs stay as they are; choose another --output_dir")
        files.write_json(folder.with_suffix(".json"), make(cell, folder))
        print(folder)


if __name__ == "__main__":
    flags.DEFINE_string(
        "output_dir", "tests/golden", "The folder that gets a run folder and a JSON file for each cell."
    )
    cli.run(main)
