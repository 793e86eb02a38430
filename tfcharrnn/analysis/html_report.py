"""The report of a run: all that it shows, gathered as plain data, and the page that shows it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import html
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfcharrnn import files
from tfcharrnn.analysis import baselines, unit_activations
from tfcharrnn.analysis.unit_activations import Reading
from tfcharrnn.config import DataConfig, GenerationConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.chunking import Part
from tfcharrnn.data.dataset import DataFolder
from tfcharrnn.errors import UserError, warn
from tfcharrnn.inference.eval_inputs import Passage
from tfcharrnn.inference.trained_model import TrainedModel, data_of
from tfcharrnn.layouts import LAYOUTS

# The page shows some hundred characters; what a unit tracks is measured on this many, so that it is not by chance.
MEASURED = 10_000
# rows of the curves at most; of more, some are left out
_MAX_ROWS = 2000
_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "val_loss",
    "smooth_loss",
    "learning_rate",
    "grad_norm",
    "chars_per_second",
    "seconds",
)
_SAMPLE_TITLE = re.compile(r"^--- (step \d.*) ---$", re.MULTILINE)
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_PARTS = {"h": "output", "c": "memory"}
_TEMPLATE = Path(__file__).with_name("report.html")


class Text(NamedTuple):
    """A text for the model to read, normalised and cut as the layout has it, and where it comes from, in words."""

    part: Part
    source: str


def write_report(
    trained: TrainedModel,
    output: str | Path = "",
    *,
    text: Text | None = None,
    prime: str = "",
    characters: int = 1000,
    split: str = "val",
    data_dir: str | Path = "",
) -> Path:
    """Writes one HTML file that shows a run and what its units do, and needs nothing else.

    Args:
        trained: the model, as `load_model` gives it.
        output: the file; by default `report.html` in the run's folder.
        text: what the units are shown on; None: the beginning of `split`, or else what the model writes.
        prime: let the model write the text, with this beginning.
        characters: how many characters of it are shown.
        split: the part of the run's data to evaluate on; "none": do not.
        data_dir: the run's data folder, where it has moved.

    Returns:
        The file.

    Raises:
        UserError: the text has characters outside the vocabulary, or the file cannot be written.
    """
    path = Path(output) if str(output) else trained.run.path / "report.html"
    notes: list[str] = []
    if text is None and prime:
        text = generated(trained, characters, prime)
    elif text is None:
        text = _default_text(trained, characters, split, data_dir, notes)
    evaluations = evaluate(trained, split, data_dir, notes)
    files.write_bytes(path, render(gather(trained, text, characters, evaluations, notes)).encode("utf-8"))
    return path


def gather(
    trained: TrainedModel, text: Text | None, characters: int, evaluations: list[dict[str, Any]], notes: list[str]
) -> dict[str, Any]:
    """All that the page shows, as JSON can write it."""
    run, model = trained.run, trained.model
    rows, columns, note = _metrics(run.path)
    notes = [*notes, *note]
    summary = {
        "layout": run.data.layout,
        "model": f"{run.model.cell}, {run.model.num_layers} x {run.model.hidden_size} units",
        "parameters": f"{model.num_parameters:,}",
        "vocabulary": f"{len(run.vocabulary):,} symbols",
        "checkpoint": f"step {trained.checkpoint.step:,}",
    }
    losses = {"smoothed loss": trained.checkpoint.losses.smooth, "validation loss": trained.checkpoint.losses.val}
    summary |= {name: f"{loss:.4f}" for name, loss in losses.items() if loss is not None}
    return {
        "title": run.path.resolve().name,
        "summary": list(summary.items()),
        "settings": [_settings(name, getattr(run, name)) for name in ("data", "model", "training")],
        "metrics": {"columns": columns, "rows": rows},
        "samples": _samples(run.path),
        "evaluations": evaluations,
        "text": _shown(trained, text, characters),
        "notes": notes,
    }


def evaluate(
    trained: TrainedModel, split: str, data_dir: str | Path, notes: list[str]
) -> list[dict[str, float | int | str | None]]:
    """The rows of the evaluation: the model's own first; baselines on the same characters come after it.

    What cannot be measured is told in `notes`.
    """
    if split == "none":
        return []
    name = _SPLITS[split]
    try:
        if not data_of(trained.run, data_dir).splits[split].records:
            notes.append(f"Not evaluated: the run's data has no {name} part.")
            return []
        passage = trained.passage_of_split(split, data_dir)
        result = trained.evaluate(passage)
    except UserError as error:
        warn(f"{error}; the report has no evaluation")
        notes.append("Not evaluated: the run's data could not be found; --data_dir names it.")
        return []
    training = None if split == "train" else trained.passage_of_split("train", data_dir).ids
    return [{"name": f"this model, on the {name} part", **result.to_dict()}, *_baselines(trained, passage, training)]


def _baselines(
    trained: TrainedModel, passage: Passage, training: npt.NDArray[np.int32] | None
) -> list[dict[str, float | int | str | None]]:
    """What n-gram models and compressors need for the same characters; see `tfcharrnn.analysis.baselines`."""
    vocabulary = trained.run.vocabulary
    size = len(vocabulary) - trained.model.layout.num_unpredicted
    measured = baselines.measure(passage.ids, passage.text(vocabulary), size, training)
    after = "" if training is None else ", after the training text"
    by_order = measured["ngrams" if training is None else "ngrams_after_training"]
    bits = {f"n-gram model of {name.replace('_', ' ')}{after}": value for name, value in by_order.items()}
    bits |= {name: measured[name] for name in ("gzip", "xz")}
    count = measured["characters"]
    return [
        {"name": name, "loss": value * math.log(2), "bits_per_char": value, "perplexity": 2**value, "characters": count}
        for name, value in bits.items()
    ]


def as_part(text: str, config: DataConfig) -> Part:
    """A text as the layout cuts it: lines, or one piece."""
    return chunking.split_lines(text, config)[0] if config.layout == "lines" else text


def generated(trained: TrainedModel, characters: int, prime: str = "") -> Text:
    """Text that the model writes itself, enough to show and to measure.

    Raises:
        UserError: the prime has characters outside the vocabulary.
    """
    source = "text that the model wrote itself" + (f", from {prime!r} on" if prime else "")
    data = trained.run.data
    if data.layout == "lines":
        lines: list[str] = []
        for seed in range(20):  # so that a model which writes nothing comes to an end
            config = GenerationConfig(length=data.max_length, prime=prime, num_samples=64, seed=seed)
            lines += [line for line in trained.sampler.generate(config) if line]
            if sum(map(len, lines)) + len(lines) >= max(characters, MEASURED):
                break
        return Text(lines, source)
    # a window is read anew for every character, so there only what is shown is written
    length = characters if LAYOUTS[data.layout].last_only else max(characters, MEASURED)
    return Text(trained.generate(length=length, prime=prime), source)


def beginning(data: DataFolder, split: str, characters: int) -> Part:
    """The first characters of a part of the data, or its first lines."""
    records, config, vocabulary = data.read(split), data.config, data.vocabulary
    layout = LAYOUTS[config.layout]
    if layout.start_id is None:
        return vocabulary.decode(records.ids[:characters])
    step = config.max_length if layout.end_id is not None else chunking.stride(config.seq_length, config.overlap)
    pieces, size = [], 0
    for start, length in zip(records.starts, records.lengths, strict=True):
        # what a sequence repeats of the one before it stands at its beginning, and so at the end of that one
        pieces.append(vocabulary.decode(records.ids[start : start + min(length, 1 + step)]))
        size += len(pieces[-1])
        if size >= characters:
            break
    return pieces if config.layout == "lines" else "".join(pieces)


def render(report: dict[str, Any]) -> str:
    """The page: the template with the data in it, and a policy that lets nothing else run or be loaded."""
    template = _TEMPLATE.read_text(encoding="utf-8")
    sources = {}
    for tag in ("script", "style"):
        found = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        if found is None:
            raise ValueError(f"{_TEMPLATE}: has no <{tag}>")
        sources[tag] = "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src '{sources['script']}'; style-src '{sources['style']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    title = report["title"].encode("utf-8", "replace").decode()
    parts = {"POLICY": policy, "TITLE": html.escape(title), "DATA": as_script(report)}
    return re.sub("{{(POLICY|TITLE|DATA)}}", lambda match: parts[match[1]], template)


def as_script(value: Any) -> str:
    """JSON that can stand in a script element: plain ASCII, and nothing in it that HTML could take for markup."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def quantised(values: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int8], list[float]]:
    """Activations in eight bits, each unit as fine as it is large.

    Args:
        values: `[time, hidden]`, with NaN where there is none.

    Returns:
        `[hidden, time]` from -127 to 127, and -128 for NaN; and for each unit what 127 stands for.
    """
    real = np.isfinite(values)
    scales = np.max(np.abs(values), axis=0, where=real, initial=0.0)
    whole = np.round(np.where(real, values, 0.0) * (127.0 / np.where(scales > 0, scales, 1.0)))
    return np.where(real, whole, -128).astype(np.int8).T, [float(f"{scale:.4g}") for scale in scales]


def _default_text(
    trained: TrainedModel, characters: int, split: str, data_dir: str | Path, notes: list[str]
) -> Text | None:
    """The beginning of a split, or of the validation part if none is evaluated; else what the model writes."""
    split = "val" if split == "none" else split
    try:
        data = data_of(trained.run, data_dir)
        if data.splits[split].records:
            part = beginning(data, split, max(characters, MEASURED))
            return Text(part, f"the beginning of the {_SPLITS[split]} part of {data.name}")
    except UserError:
        pass  # the evaluation tells it
    try:
        return generated(trained, characters)
    except UserError as error:
        notes.append(f"No text to show the units on: {error}.")
        return None


def _shown(trained: TrainedModel, text: Text | None, characters: int) -> dict[str, Any] | None:
    """The text as the model read it; None if there is none."""
    if text is None:
        return None
    model, vocabulary, layout = trained.model, trained.run.vocabulary, LAYOUTS[trained.run.data.layout]
    part = _limited(text.part, max(characters, MEASURED))
    reading = unit_activations.read(model, vocabulary, part, name=text.source)
    found, correlations = unit_activations.interpret(reading)
    shown = reading.first(characters)
    if not shown.symbols:
        return None
    how = {
        "sequences": "It was read on from one <S>, as in generating; in training a sequence "
        f"had {trained.run.data.seq_length} symbols.",
        "stream": "It was read on and on from the initial state.",
        "lines": "Each line was read from the initial state, with <S> before it; its end, ↵, was predicted, not read.",
        "windows": "It was read on and on with the state carried over; in training a prediction saw only "
        f"{trained.run.data.seq_length} characters.",
    }[layout.name]
    predicted = shown.losses[np.isfinite(shown.losses)]
    return {
        "source": text.source,
        "how": how,
        "measured": len(reading.symbols),
        "loss": float(predicted.mean()) if len(predicted) else None,
        "symbols": list(shown.symbols),
        "vocabulary": list(vocabulary.symbols),
        "special": vocabulary.num_special,
        "losses": _rounded(shown.losses),
        "guesses": shown.guesses.tolist(),
        "probabilities": [_rounded(row) for row in shown.probabilities],
        "hidden": trained.run.model.hidden_size,
        "planes": _planes(shown),
        "features": [{"name": feature.name, "remembered": feature.remembered} for feature in found],
        "correlations": [_packed(np.round(100 * r).astype(np.int8)) for r in correlations],
    }


def _planes(reading: Reading) -> list[dict[str, Any]]:
    result = []
    several = any(plane.part != "h" for plane in reading.planes)
    for plane in reading.planes:
        values, scales = quantised(plane.values)
        name = short = f"layer {plane.layer + 1}"
        if several:
            name, short = f"{name}, {_PARTS[plane.part]} {plane.part}", f"{name} {plane.part}"
        result.append({"name": name, "short": short, "values": _packed(values), "scales": scales})
    return result


def _limited(part: Part, characters: int) -> Part:
    """The beginning of a text: so many characters, or lines that have them with their ends."""
    if isinstance(part, str):
        return part[:characters]
    ends = list(itertools.accumulate(len(line) + 1 for line in part))
    return part[: sum(end < characters for end in ends) + 1]


def _settings(name: str, config: Any) -> dict[str, Any]:
    """Each setting, its value, its help, and whether it is the default; of files the names alone."""
    rows = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_default = value == field.default
        if field.name == "input":
            value = [Path(path).name for path in value]
        shown = ", ".join(value) if isinstance(value, (list, tuple)) else value
        if not isinstance(shown, str) or not shown.isprintable() or shown != shown.strip():
            shown = json.dumps(shown, ensure_ascii=False)
        rows.append({"name": field.name, "value": shown, "default": is_default, "help": field.metadata["help"]})
    return {"name": name, "rows": rows}


def _metrics(run_dir: Path) -> tuple[list[list[float | None]], list[str], list[str]]:
    """The rows of `metrics.jsonl`, the names of their columns, and what is to be said of them."""
    rows: list[dict[str, float]] = []
    lines = _read(run_dir / "metrics.jsonl").splitlines()
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            row = json.loads(line)
            row = {name: float(row[name]) for name in _COLUMNS if row.get(name) is not None}
            if "step" in row:
                rows.append(row)
    damaged = len(lines) - len(rows)
    notes = [f"{damaged:,} damaged rows of metrics.jsonl were left out."] if damaged else []
    every = max(1, math.ceil(len(rows) / _MAX_ROWS))
    kept = [row for i, row in enumerate(rows) if i % every == 0 or i == len(rows) - 1 or "val_loss" in row]
    if len(kept) < len(rows):
        notes.append(f"The curves show {len(kept):,} of {len(rows):,} rows of metrics.jsonl.")
    columns = [name for name in _COLUMNS if any(name in row for row in kept)]
    return [[_significant(row.get(name)) for name in columns] for row in kept], columns, notes


def _samples(run_dir: Path) -> list[dict[str, str]]:
    """The texts of `samples.txt` with their titles."""
    _, *pieces = _SAMPLE_TITLE.split(_read(run_dir / "samples.txt"))
    return [
        {"title": title, "text": text.removeprefix("\n").removesuffix("\n").removesuffix("\n")}
        for title, text in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _read(path: Path) -> str:
    """A log's text, as far as it is text; nothing, if there is none."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _packed(values: npt.NDArray[np.int8]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _rounded(values: npt.NDArray[np.floating]) -> list[float | None]:
    return [round(float(value), 4) if math.isfinite(value) else None for value in values]


def _significant(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}") if abs(value) < 1e6 else value


def _finite(value: Any) -> Any:
    """The same with null in place of numbers that JSON cannot write."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
