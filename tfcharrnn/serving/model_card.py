"""Writes the model card of an exported model: `README.md` as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from tfcharrnn import cell_registry, files
from tfcharrnn.errors import ConfigError, shorten
from tfcharrnn.inference.trained_model import TrainedModel
from tfcharrnn.preparation import corpora, input_files
from tfcharrnn.runs.run_folder import Run

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_NOT_IN_A_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff`|<>\[\]]")

_ABOUT = "A character-level language model: it continues a text, one {symbol} at a time."
_LIMITS = """It has learned which characters follow which, not facts: what it writes is often wrong and may repeat
passages of its training text, with whatever that text contains. It does not follow instructions."""


def check_license(license: str) -> None:
    """Checks that a license looks like an identifier of the hub.

    Raises:
        ConfigError: it does not.
    """
    if not _LICENSE.fullmatch(license):
        raise ConfigError(
            "--license: must be an identifier of the Hugging Face hub, such as mit, cc-by-4.0, other or unknown. "
            f"Received: {shorten(license)}"
        )


def write_card(trained: TrainedModel, path: Path, license: str, *, name: str = "", body: str = "") -> None:
    """Writes the card of a model.

    Args:
        trained: the model.
        path: the file to create.
        license: its license, an identifier of the hub.
        name: its name; empty: that of the run folder.
        body: what follows the table of sizes; empty: how to use the model, and its limits.
    """
    name = _clean(name or trained.run.path.resolve().name)
    metadata: dict[str, Any] = {
        "library_name": "tfcharrnn",
        "license": license,
        "pipeline_tag": "text-generation",
        "tags": ["character-level", "char-rnn", "rnn", _clean(trained.run.model.cell)],
    }
    if results := _list_results(trained):
        metadata["model-index"] = [{"name": name, "results": results}]
    symbol = "byte" if trained.run.vocabulary.of_bytes else "character"
    table = ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in _summarise(trained))]
    parts = [
        "\n".join(["---", *_to_yaml(metadata), "---"]),
        f"# {name}",
        _ABOUT.format(symbol=symbol),
        "\n".join(table),
        body.strip() or _describe_use(trained),
    ]
    files.write_bytes(path, ("\n\n".join(parts) + "\n").encode("utf-8"))


def _clean(name: str) -> str:
    """Returns a name without what Markdown, YAML or UTF-8 would not show as it is."""
    return " ".join(_NOT_IN_A_NAME.sub(" ", name).split()) or "model"


def _list_text_names(run: Run) -> list[str]:
    if run.data.input:
        return [_clean(input_files.get_name(name)) for name in run.data.input]
    corpus = run.data.corpus or (corpora.DEFAULT_CORPUS if run.fingerprint else "")
    return [_clean(corpus)] if corpus else []


def _list_results(trained: TrainedModel) -> list[dict[str, Any]]:
    """Returns the figures in the format of the hub's `model-index`; none if the loss is unknown."""
    loss = trained.checkpoint.losses.val
    if loss is None:
        return []
    text = ", ".join(_list_text_names(trained.run)) or "unknown"
    unit = "byte" if trained.run.vocabulary.of_bytes else "character"
    return [
        {
            "task": {"type": "text-generation", "name": f"{unit.capitalize()}-level language modelling"},
            "dataset": {"type": re.sub(r"[^\w.-]+", "-", text), "name": text, "split": "validation"},
            "metrics": [
                {"type": "loss", "value": round(loss, 4), "name": f"nats a {unit}"},
                {"type": f"bits_per_{unit}", "value": round(loss / math.log(2), 4), "name": f"bits a {unit}"},
            ],
        }
    ]


def _summarise(trained: TrainedModel) -> list[tuple[str, str]]:
    run, model = trained.run, trained.run.model
    losses, unit = trained.checkpoint.losses, "byte" if run.vocabulary.of_bytes else "character"
    rows = [
        ("text", ", ".join(_list_text_names(run)) or "unknown"),
        ("cell", _clean(model.cell)),
        ("layers", f"{model.num_layers} of {model.hidden_size:,} units"),
        ("input", f"an embedding of {model.embedding_size}" if model.embedding_size else "one-hot"),
        ("parameters", f"{trained.model.num_parameters:,}"),
        ("vocabulary", f"{len(run.vocabulary):,} symbols, in `vocab.json`"),
        ("layout", run.data.layout),
        ("trained for", f"{trained.checkpoint.step:,} steps"),
    ]
    if losses.smooth is not None:
        rows.append(("training loss", f"{losses.smooth:.4f}, smoothed"))
    if losses.val is not None:
        bits = f"{losses.val / math.log(2):.3f} bits"
        rows.append(
            ("validation loss", f"{losses.val:.4f} nats a {unit} ({bits}), on the {run.data.val_fraction:.0%} held out")
        )
    return rows


def _describe_use(trained: TrainedModel) -> str:
    module_flag = cell_registry.format_module_flag(trained.run.model.cell)
    return f"""## Use

With `FOLDER` for this folder, such as `huggingface_hub.snapshot_download("USER/NAME")` returns it:

```bash
tfcharrnn generate --run_dir=FOLDER{module_flag} --temperature=0.8
tfcharrnn train --init_from=FOLDER{module_flag} --input=my.txt
```

```python
import tfcharrnn

model = tfcharrnn.load_model("FOLDER")
print(model.generate(length=200, temperature=0.8))
```

`config.json` describes the model, and `model.safetensors` has its weights, named as in tfcharrnn's checkpoints.

## Limits

{_LIMITS}"""


def _to_yaml(value: Any, indent: str = "") -> list[str]:
    """Returns the lines of a mapping or list in YAML; strings are quoted as in JSON, of which YAML is a superset."""
    lines = []
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        start = f"{indent}{key}:" if isinstance(value, dict) else f"{indent}-"
        if not isinstance(item, (dict, list)):
            is_plain = isinstance(item, str) and re.fullmatch(r"[a-z]+(-[a-z]+)*", item) and item not in _YAML_WORDS
            lines.append(f"{start} {item if is_plain else json.dumps(item)}")
            continue
        nested = _to_yaml(item, indent + "  ")
        if isinstance(value, list):  # the first line stands behind the dash
            lines.append(f"{start} {nested[0].lstrip()}")
            nested = nested[1:]
        else:
            lines.append(start)
        lines += nested
    return lines


# words that are no strings in YAML
_YAML_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
