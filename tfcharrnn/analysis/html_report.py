"""Writes the report of a run: settings, curves, samples, evaluation and unit activations on one HTML page."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfcharrnn import files
from tfcharrnn.analysis import baselines, html_page, report_text, unit_activations
from tfcharrnn.analysis.report_text import MEASURED_CHARACTERS, SPLIT_NAMES, ReportText
from tfcharrnn.analysis.unit_activations import Trace
from tfcharrnn.errors import UserError, warn
from tfcharrnn.inference.eval_inputs import EvalInput
from tfcharrnn.inference.trained_model import TrainedModel, load_model, open_run_data
from tfcharrnn.layouts import LAYOUTS
from tfcharrnn.runs import logs
from tfcharrnn.symbols import group_characters, symbols_to_text, text_to_symbols

# longer curves are thinned out
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
_STATE_NAMES = {"h": "output", "c": "memory"}

EvaluationRow = dict[str, float | int | str | None]


def write_report(
    run_dir: str | Path | TrainedModel = "",
    output: str | Path = "",
    *,
    checkpoint: str | int | Path = "latest",
    text: ReportText | None = None,
    prime: str = "",
    characters: int = 1000,
    split: str = "val",
    data_dir: str | Path = "",
) -> Path:
    """Writes a self-contained HTML file that shows a run and what the units of its model do.

    Args:
        run_dir: the run folder, or its model from `load_model`; empty: the newest in `runs/`.
        output: the file; by default `report.html` in the run folder.
        checkpoint: of the run folder, as in `load_model`.
        text: the text to show the units on; None: the beginning of `split` if available, or else generated text.
        prime: generate the text, starting with this.
        characters: number of characters to show.
        split: the split of the run's data to evaluate; "none": do not evaluate.
        data_dir: the run's data folder if it has moved.

    Returns:
        The file.

    Raises:
        UserError: the run cannot be read, the text has characters outside the vocabulary, or the file cannot be
            written.
    """
    trained = run_dir if isinstance(run_dir, TrainedModel) else load_model(run_dir, checkpoint)
    path = Path(output) if str(output) else trained.run.output_path("report.html")
    notes: list[str] = []
    if text is None and prime:
        text = report_text.generate_text(trained, characters, prime)
    elif text is None:
        text = report_text.choose_text(trained, characters, split, data_dir, notes)
    evaluations = _evaluate(trained, split, data_dir, notes)
    report = _collect_report(trained, text, characters, evaluations, notes)
    files.remove_leftovers(path)
    files.write_bytes(path, html_page.render(report).encode("utf-8"))
    return path


def quantise(values: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int8], list[float]]:
    """Quantises activations to eight bits, relative to the largest absolute value of each unit.

    Args:
        values: `[time, hidden]`, NaN where there is none.

    Returns:
        Integers from -127 to 127, -128 for NaN, `[hidden, time]`; and the value that 127 represents, for each unit.
    """
    is_finite = np.isfinite(values)
    scales = np.max(np.abs(values), axis=0, where=is_finite, initial=0.0)
    rounded = np.round(np.where(is_finite, values, 0.0) * (127.0 / np.where(scales > 0, scales, 1.0)))
    return np.where(is_finite, rounded, -128).astype(np.int8).T, [float(f"{scale:.4g}") for scale in scales]


def _collect_report(
    trained: TrainedModel,
    text: ReportText | None,
    characters: int,
    evaluations: list[EvaluationRow],
    notes: list[str],
) -> dict[str, Any]:
    """Collects the data of the page, JSON-compatible but for NaN and infinity."""
    run, model = trained.run, trained.model
    summary = {
        "layout": run.data.layout,
        "model": run.model.describe(),
        "parameters": f"{model.num_parameters:,}",
        "vocabulary": f"{len(run.vocabulary):,} symbols",
        "checkpoint": f"step {trained.checkpoint.step:,}",
    }
    losses = {"smoothed loss": trained.checkpoint.losses.smooth, "validation loss": trained.checkpoint.losses.val}
    summary |= {name: f"{loss:.4f}" for name, loss in losses.items() if loss is not None}
    return {
        "title": run.path.resolve().name,
        "summary": list(summary.items()),
        "settings": [_list_settings(name, getattr(run, name)) for name in ("data", "model", "training")],
        "metrics": _select_curves(run.path, notes),
        "samples": logs.read_samples(run.path),
        "evaluations": evaluations,
        "text": _trace_text(trained, text, characters),
        "notes": notes,
    }


def _evaluate(trained: TrainedModel, split: str, data_dir: str | Path, notes: list[str]) -> list[EvaluationRow]:
    """Evaluates the model and the baselines on the same characters, one row each.

    If the model cannot be evaluated, this appends a message to `notes` and returns no rows.
    """
    if split == "none":
        return []
    name = SPLIT_NAMES[split]
    try:
        if not open_run_data(trained.run, data_dir).splits[split].records:
            notes.append(f"Not evaluated: the run's data has no {name} part.")
            return []
        eval_input = trained.make_split_input(split, data_dir)
        result = trained.evaluate(eval_input)
    except UserError as error:
        warn(f"{error}; the report has no evaluation")
        notes.append("Not evaluated: the run's data was not found; pass --data_dir.")
        return []
    training = None if split == "train" else trained.make_split_input("train", data_dir).ids
    model_row = {"name": f"this model, on the {name} part", **result.to_dict()}
    return [model_row, *_evaluate_baselines(trained, eval_input, training)]


def _evaluate_baselines(
    trained: TrainedModel, eval_input: EvalInput, training: npt.NDArray[np.int32] | None
) -> list[EvaluationRow]:
    vocabulary = trained.run.vocabulary
    alphabet_size = len(vocabulary) - trained.model.layout.num_unpredicted
    text, of_bytes = eval_input.text(vocabulary), vocabulary.of_bytes
    measured = baselines.measure(eval_input.ids, text, alphabet_size, training, of_bytes=of_bytes)
    suffix = "" if training is None else ", after the training text"
    by_order = measured["ngrams" if training is None else "ngrams_after_training"]
    bits = {f"n-gram model of {name.replace('_', ' ')}{suffix}": value for name, value in by_order.items()}
    bits |= {name: measured[name] for name in ("gzip", "xz")}
    count = measured["characters"]
    return [
        {"name": name, "loss": value * math.log(2), "bits_per_char": value, "perplexity": 2**value, "characters": count}
        for name, value in bits.items()
    ]


def _trace_text(trained: TrainedModel, text: ReportText | None, characters: int) -> dict[str, Any] | None:
    """Runs the model over a text and returns what the page shows of it; None if there is no text."""
    if text is None:
        return None
    model, vocabulary, layout = trained.model, trained.run.vocabulary, LAYOUTS[trained.run.data.layout]
    of_bytes = vocabulary.of_bytes
    part = report_text.truncate(text.part, max(characters, MEASURED_CHARACTERS))
    trace = unit_activations.trace_text(model, vocabulary, part, name=text.source)
    features, correlations = unit_activations.correlate_with_features(trace)
    shown = trace.truncate(characters)
    if not shown.symbols:
        return None
    seq_length = trained.run.data.seq_length
    reading = {
        "sequences": "The model read it in one piece after an <S>, as in generation; in training a sequence had "
        f"{seq_length} symbols.",
        "stream": "The model read it in one piece from the initial state.",
        "lines": "The model read each line from the initial state, after an <S>; it predicted the end of a line, ↵, "
        "but did not read it.",
        "windows": "The model read it in one piece with the state carried over; in training a prediction saw only "
        f"{seq_length} characters.",
    }[layout.name]
    predicted = shown.losses[np.isfinite(shown.losses)]
    return {
        "source": text.source,
        "reading": reading,
        "measured": len(trace.symbols),
        "loss": float(predicted.mean()) if len(predicted) else None,
        "symbols": [symbols_to_text(symbol, of_bytes) for symbol in shown.symbols],
        "glyphs": _draw_glyphs(shown.text) if of_bytes else None,
        "vocabulary": [symbols_to_text(symbol, of_bytes) for symbol in vocabulary.symbols],
        "special": vocabulary.num_special,
        "losses": _round(shown.losses),
        "guesses": shown.guesses.tolist(),
        "probabilities": [_round(row) for row in shown.probabilities],
        "hidden": trained.run.model.hidden_size,
        "layers": _encode_layers(shown),
        "features": [{"name": feature.name, "needs_memory": feature.needs_memory} for feature in features],
        "correlations": [_encode_bytes(np.round(100 * r).astype(np.int8)) for r in correlations],
    }


def _draw_glyphs(symbols: str) -> list[str]:
    """Returns what to show for each byte of a text: a character at its last byte, and a dot at the bytes before."""
    glyphs = []
    for character, size in zip(*group_characters(symbols, True), strict=True):
        glyphs += ["·"] * (size - 1) + [symbols_to_text(text_to_symbols(character, True), True)]
    return glyphs


def _encode_layers(trace: Trace) -> list[dict[str, Any]]:
    layers = []
    has_memory = any(layer.part != "h" for layer in trace.layers)
    for layer in trace.layers:
        values, scales = quantise(layer.values)
        name = short_name = f"layer {layer.layer + 1}"
        if has_memory:
            kind = _STATE_NAMES.get(layer.part, "state")
            name, short_name = f"{name}, {kind} {layer.part}", f"{name} {layer.part}"
        layers.append({"name": name, "short": short_name, "values": _encode_bytes(values), "scales": scales})
    return layers


def _list_settings(name: str, config: Any) -> dict[str, Any]:
    """Lists the settings of a config with value, help and whether it is the default; files without their folders."""
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


def _select_curves(run_dir: Path, notes: list[str]) -> dict[str, Any]:
    """Selects about `_MAX_ROWS` rows of `metrics.jsonl` and reports the others in `notes`."""
    try:
        rows, errors = logs.read_intact_metrics(run_dir)
    except UserError:
        notes.append("The curves are missing, since metrics.jsonl cannot be read.")
        rows, errors = [], []
    if errors:
        notes.append(f"{len(errors):,} damaged rows of metrics.jsonl are not shown.")
    interval = max(1, math.ceil(len(rows) / _MAX_ROWS))
    shown = [row for i, row in enumerate(rows) if i % interval == 0 or i == len(rows) - 1 or "val_loss" in row]
    if len(shown) < len(rows):
        notes.append(f"The curves show {len(shown):,} of {len(rows):,} rows of metrics.jsonl.")
    columns = [name for name in _COLUMNS if any(name in row for row in shown)]
    return {"columns": columns, "rows": [[_shorten(row.get(name)) for name in columns] for row in shown]}


def _encode_bytes(values: npt.NDArray[np.int8]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _round(values: npt.NDArray[np.floating]) -> list[float | None]:
    return [round(float(value), 4) if math.isfinite(value) else None for value in values]


def _shorten(value: float | None) -> float | None:
    """Rounds a value below a million to six significant digits."""
    if value is None or abs(value) >= 1e6:
        return value
    return float(f"{value:.6g}")
