"""Reports how much of a generated text is copied from the training text.

python -m tfcharrnn.novelty --generated=sample.txt --run_dir=RUN
python -m tfcharrnn.novelty --generated=sample.txt --training=text.txt [--held_out=other.txt]

For each n, the table shows the share of the generated text's n-grams (all spans of n characters) that occur literally
in the training text; it also shows the longest such span. Short spans always occur, so compare the shares with those of
real text of the same kind: a held-out text, or with --run_dir the run's validation data, gets a column of its own. The
results are exact.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import flags

from tfcharrnn import cli
from tfcharrnn.analysis import novelty
from tfcharrnn.config import BYTES
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.preparation import corpora
from tfcharrnn.symbols import symbols_to_text

_FLAGS = flags.FLAGS
_MAX_SHOWN = 300


def main() -> None:
    """Reads the flags, compares the texts, and prints a table or a JSON object."""
    cli.require_flags(generated="the file of a generated text")
    if _FLAGS.encoding == BYTES:
        raise ConfigError(f"--encoding={BYTES}: texts are compared by characters; to compare bytes, pass latin-1")
    if bool(_FLAGS.training) == bool(_FLAGS.run_dir):
        raise ConfigError("pass either --training, a text file, or --run_dir, the run that generated the text")
    generated = _read_text(_FLAGS.generated)
    if not generated:
        raise UserError(f"{_FLAGS.generated}: is empty")
    texts = {"train": _read_text(_FLAGS.training)} if _FLAGS.training else _read_run_texts()
    if _FLAGS.held_out:
        texts["val"] = _read_text(_FLAGS.held_out)
    results = {"generated": novelty.measure(generated, texts["train"])}
    if "val" in texts:
        results["held out"] = novelty.measure(texts["val"], texts["train"])
    if _FLAGS.json:
        values: dict[str, Any] = {name.replace(" ", "_"): dataclasses.asdict(text) for name, text in results.items()}
        print(json.dumps({"training_characters": len(texts["train"])} | values))
        return
    print(novelty.format_table(results))
    text = results["generated"]
    shown = text.span if len(text.span) <= _MAX_SHOWN else text.span[:_MAX_SHOWN] + "…"
    positions = f"character {text.place:,} of the generated, {text.training_place:,} of the training text"
    print(f"\nThe longest copied span, at {positions}:\n{shown!r}")


def _read_text(path: str) -> str:
    try:
        return corpora.decode(Path(path).read_bytes(), _FLAGS.encoding, path).replace("\r\n", "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _read_run_texts() -> dict[str, str]:
    """Reads the training text of a run and its validation text, if any, as `generate` would print them."""
    cli.load_tensorflow()
    cli.load_cells()
    from tfcharrnn.inference import eval_inputs, trained_model
    from tfcharrnn.runs import run_folder as run_lib

    run = run_lib.load(_FLAGS.run_dir)
    data = trained_model.open_run_data(run, _FLAGS.data_dir)

    def read_text(split: str) -> str:
        symbols = eval_inputs.make_split_input(data.read(split), run.vocabulary, data.config).text(run.vocabulary)
        return symbols_to_text(symbols, run.vocabulary.of_bytes).replace("\r\n", "\n")

    return {split: read_text(split) for split in ("train", "val") if data.splits[split].records}


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("generated", "", "File of the generated text.")
    flags.DEFINE_string("training", "", "File of the training text.")
    flags.DEFINE_string("run_dir", "", "The run that generated the text, instead of --training.")
    flags.DEFINE_string("data_dir", "", "The run's data folder if it has moved.")
    cli.define_cell_module_flag()
    flags.DEFINE_string("held_out", "", "File of a real text that was not trained on, for comparison.")
    flags.DEFINE_string("encoding", "utf-8", "Encoding of the files.")
    flags.DEFINE_bool("json", False, "Print a JSON object.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
