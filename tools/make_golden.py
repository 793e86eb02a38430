"""Makes the golden runs: tiny run folders, one per cell, that every later version must load with the same results.

python tools/make_golden.py --output_dir=tests/golden

Next to each folder, a JSON file has the expected results: texts from known seeds, and the loss of a known text. Seeds
are chosen so that weights that are off by a thousandth still give the same text, as another machine's rounding must.
Runs that exist are left as they are; a later format gets folders with new names.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from tfcharrnn import cli, files, load_model
from tfcharrnn.errors import UserError
from tfcharrnn.training.setup import train_model

_FLAGS = flags.FLAGS
_TEXT = "The cat sat on the mat.\nThe dog ate the naïve hen\u2019s egg 🥚.\nThen the cat sat on the dog.\n"
_DEEP = {"residual": True, "layer_norm": True}
_SETTINGS: dict[str, dict[str, Any]] = {
    "rnn": {"layout": "sequences", "seq_length": 12, "steps": 300},
    "lstm": {"layout": "stream", "seq_length": 8, "steps": 200, "embedding_size": 4, "num_layers": 2},
    "gru": {"layout": "lines", "max_length": 60, "steps": 200, "learned_initial_state": True},
    "lnlstm": {"layout": "stream", "seq_length": 8, "steps": 200, "num_layers": 2, **_DEEP},
    "mlstm": {"layout": "lines", "max_length": 60, "steps": 200, "embedding_size": 4},
    "mingru": {"layout": "sequences", "seq_length": 12, "steps": 300, "num_layers": 2},
    "minlstm": {"layout": "stream", "seq_length": 8, "steps": 200, "num_layers": 2, "layer_norm": True},
    "sru": {"layout": "lines", "max_length": 60, "steps": 200, "num_layers": 2, "residual": True},
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
_GENERATED: tuple[dict[str, Any], ...] = (
    {"length": 40, "greedy": True, "prime": "The "},
    {"length": 60, "prime": "the dog"},
    {"length": 60, "temperature": 0.7, "top_k": 5},
)
_EVALUATED = "The hen sat on the naïve cat\u2019s dog.\nThe dog ate.\n"
# how much and how often each weight is changed to find seeds whose text stays the same
_SHARE, _TRIALS, _SEEDS = 1e-3, 8, 200


def make_run(cell: str, folder: Path) -> dict[str, Any]:
    """Trains one run in `folder`; returns its expected results."""
    with _work_in_empty_folder():
        Path("text.txt").write_text(_TEXT * 40, encoding="utf-8")
        train_model(folder, input=["text.txt"], cell=cell, quiet=True, **_SMALL, **_SETTINGS[cell])
    (folder / ".lock").unlink(missing_ok=True)
    trained = load_model(folder)
    read = "examples" if trained.run.data.layout == "sequences" else ""
    evaluation = trained.evaluate_text(_EVALUATED, read=read)
    return {
        "step": trained.checkpoint.step,
        "texts": make_texts(folder),
        "evaluated": {
            "text": _EVALUATED,
            "read": read,
            "loss": evaluation.loss,
            "characters": evaluation.characters,
        },
    }


def make_texts(folder: Path) -> list[dict[str, Any]]:
    """Returns texts of a run, each with its settings.

    Raises:
        UserError: no seed gives a text that is robust to rounding.
    """
    trained, changed = load_model(folder), []
    for trial in range(_TRIALS):
        other = load_model(folder)
        rng = np.random.default_rng(trial)
        for variable in other.model.trainable_variables:
            variable.assign(variable * (1.0 + _SHARE * rng.uniform(-1.0, 1.0, variable.shape)))
        changed.append(other)
    texts = []
    for settings in _GENERATED:
        for seed in range(_SEEDS):
            text = trained.generate(**settings, seed=seed)
            if all(other.generate(**settings, seed=seed) == text for other in changed):
                break
        else:
            raise UserError(
                f"{folder}: no seed below {_SEEDS} gives a text that is robust to rounding; shorten the text"
            )
        texts.append({"settings": {**settings, "seed": seed}, "text": text})
    return texts


@contextlib.contextmanager
def _work_in_empty_folder() -> Iterator[None]:
    """Changes to an empty folder with an empty cache, so that nothing of this machine gets into the run."""
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
    """Makes the golden runs."""
    cli.load_tensorflow()
    for cell in _SETTINGS:
        folder = Path(_FLAGS.output_dir).absolute() / cell
        expected = folder.with_suffix(".json")
        if folder.exists() and _FLAGS.new_texts:
            results = json.loads(expected.read_text(encoding="utf-8"))
            files.write_json(expected, results | {"texts": make_texts(folder)})
            print(expected)
            continue
        if folder.exists():
            print(f"{folder}: exists already, and golden runs never change")
            continue
        files.write_json(expected, make_run(cell, folder))
        print(folder)


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_string("output_dir", "tests/golden", "Folder for the run folders and JSON files.")
    flags.DEFINE_bool("new_texts", False, "Make the texts of the runs anew, after a change of how symbols are drawn.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
