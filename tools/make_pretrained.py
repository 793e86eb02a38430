"""Makes a model that comes with the package: trains it by its recipe, rounds its weights and writes its card.

python tools/make_pretrained.py --name=shakespeare

The recipes are `tools/pretrained/NAME.flags`. A run folder that the recipe has made already is used as it is, so an
interrupted training can be resumed with `tfcharrnn train --resume`.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import textwrap
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from tfcharrnn import cli, files
from tfcharrnn.errors import UserError

_FLAGS = flags.FLAGS
_RECIPES = Path(__file__).parent / "pretrained"
_MODELS = Path(__file__).parents[1] / "tfcharrnn" / "pretrained"
_MAX_BYTES = 2**20
_MAX_INCREASE = 0.001  # of the loss by rounding, in nats a character


class Origin(NamedTuple):
    """What a card says about a text.

    Attributes:
        text: what the text is, and its license.
        prime: an example of a beginning.
        not_for: what the model is not for, besides what no such model is for.
    """

    text: str
    prime: str
    not_for: str


ORIGINS = {
    "shakespeare": Origin(
        "Tiny Shakespeare, 40,000 lines of his plays (1,115,394 characters), as Karpathy's char-rnn has them. The text "
        "is in the public domain.",
        "ROMEO:",
        "It knows no modern English, and its characters speak in no play of Shakespeare's.",
    ),
    "python": Origin(
        "The source code of 45 modules of Python's standard library, as `--corpus=python` reads them from Python "
        "{version}. Copyright Python Software Foundation, PSF License Version 2.",
        "def ",
        "It is no programming assistant: its code looks right and does nothing.",
    ),
    "names": Origin(
        "The names of Unicode's characters, one a line, as `--corpus=unicode-names` lists them from Python {version} "
        "(Unicode {unicode}). Copyright Unicode, Inc., Unicode License V3.",
        "GREEK ",
        "Its names are invented: most stand for no character.",
    ),
}


def main() -> None:
    """Trains the model unless that is done, and writes its folder."""
    name = _FLAGS.name
    run_dir = Path(_FLAGS.run_dir or f"runs/pretrained-{name}")
    recipe = _RECIPES / f"{name}.flags"
    if not (run_dir / "config.json").exists():
        _run("train", f"--flagfile={recipe}", f"--run_dir={run_dir}")
    cli.load_tensorflow()
    from tfcharrnn.inference import trained_model
    from tfcharrnn.runs import model_folder
    from tfcharrnn.serving import model_card

    trained = trained_model.load_model(run_dir, "best")
    before = json.loads(_run("evaluate", f"--run_dir={run_dir}", "--checkpoint=best", "--baselines"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model_folder.write(folder, trained.run, trained.checkpoint, model_folder.round_weights(trained.copy_weights()))
        after = json.loads(_run("evaluate", f"--run_dir={folder}"))
        increase, size = after["loss"] - before["loss"], (folder / model_folder.WEIGHTS).stat().st_size
        if not increase <= _MAX_INCREASE or size > _MAX_BYTES:
            raise UserError(f"{run_dir}: {size:,} bytes, {increase:+.5f} nats by rounding; train a smaller model")
        body = _describe(name, before, after, recipe.read_text(encoding="utf-8"))
        model_card.write_card(trained, folder / "README.md", "apache-2.0", name=name, body=body)
        with files.create_folder(_MODELS / name, overwrite=True) as made:
            for path in folder.iterdir():
                (made / path.name).write_bytes(path.read_bytes())
    print(_MODELS / name)


def _run(command: str, *arguments: str) -> str:
    """Runs a command and returns what it prints; its progress is shown."""
    line = [sys.executable, "-m", f"tfcharrnn.{command}", *arguments]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout


def _describe(name: str, before: dict[str, Any], after: dict[str, Any], recipe: str) -> str:
    """Returns the card's own sections."""
    origin, baselines = ORIGINS[name], before["baselines"]
    text = origin.text.format(version=platform.python_version(), unicode=unicodedata.unidata_version)
    rows = [("this model", after["bits_per_char"])]
    for key, how in (("ngrams_after_training", "read the training text before"), ("ngrams", "learn as they read")):
        order, bits = min(baselines[key].items(), key=lambda entry: entry[1])
        rows.append((f"n-grams of {order.replace('_', ' ')} that {how}", bits))
    rows += [("xz", baselines["xz"]), ("gzip", baselines["gzip"])]
    table = "\n".join(f"| {label} | {bits:.3f} |" for label, bits in rows)
    about = textwrap.fill(f"{text} The weights are under the license of the package, Apache 2.0.", 120)
    limits = textwrap.fill(
        f"{origin.not_for} It has learned which characters follow which, not facts, follows no instructions, and may "
        "repeat passages of its text.",
        120,
    )
    return f"""## Text

{about}

## Loss

On the {before["characters"]:,} characters held out, in bits a character; of the n-gram models the best order up to 5:

| | bits |
| --- | --- |
{table}

In nats: {after["loss"]:.4f}. The weights are rounded to float16 and computed with in float32; unrounded, the loss is
{before["loss"]:.4f} ({after["loss"] - before["loss"]:+.5f} by rounding).

## Use

```bash
tfcharrnn generate --model={name} --prime="{origin.prime}" --temperature=0.7
tfcharrnn train --init_from=pretrained:{name} --input=my.txt
```

```python
import tfcharrnn

model = tfcharrnn.load_model("pretrained:{name}")
print(model.generate("{origin.prime}", length=200, temperature=0.7))
```

A text to train on further may have only the characters in `vocab.json`; `--drop_chars` drops others.

## Recipe

`python tools/make_pretrained.py --name={name}` in a clone of the repository trains it with these flags, and keeps
the checkpoint with the lowest validation loss:

```text
{recipe.strip()}
```

## Not for

{limits}
"""


def define_flags() -> None:
    """Defines the flags."""
    flags.DEFINE_enum("name", None, sorted(ORIGINS), "The model to make.", required=True)
    flags.DEFINE_string("run_dir", "", "The run folder of its training; by default runs/pretrained-NAME.")


if __name__ == "__main__":
    cli.run_command(define_flags, main)
