"""Writes a model as one HTML page that generates text in a browser, without a network or a server."""

from __future__ import annotations

import base64
import dataclasses
import html
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfcharrnn import cell_registry, files
from tfcharrnn.analysis import html_page, report_text
from tfcharrnn.analysis.report_text import ReportText
from tfcharrnn.data import chunking
from tfcharrnn.errors import UserError
from tfcharrnn.inference import eval_inputs
from tfcharrnn.inference.eval_inputs import EvalInput
from tfcharrnn.inference.evaluation import Evaluator
from tfcharrnn.inference.trained_model import TrainedModel
from tfcharrnn.model.cells import get_cell_class
from tfcharrnn.model.char_rnn import CharRNN

# how much worse, in nats a character, rounded weights may predict
MAX_LOSS_INCREASE = 0.01
# bytes of base64 in float16 from which on int8 is tried, which halves them
_LARGE_PAGE = 4_000_000
# characters that a model without data generates to be measured on
_MEASURED_CHARACTERS = 3000

_FOLDER = Path(__file__).with_name("page")
_SCRIPTS = ("arithmetic.js", "cells.js", "network.js", "writer.js", "page.js")
# matrices that are multiplied by vectors from the left; the page has them transposed, so that its sums run along rows
_PRODUCT_MATRICES = ("kernel", "recurrent_kernel", "gate_kernel", "output_kernel")

Array = npt.NDArray[np.float32]


class RoundedWeights(NamedTuple):
    """Weights as the page has them.

    Attributes:
        type: of the matrices, `float16` or `int8`.
        arrays: for the page, by name.
        values: what they stand for, by their names in a checkpoint, and in the shapes they have there.
    """

    type: str
    arrays: dict[str, Any]
    values: dict[str, Array]


class CheckedWeights(NamedTuple):
    """Rounded weights that are good enough.

    Attributes:
        weights: the weights.
        loss: the model's loss with them, in nats a character.
        increase: how much higher this is than with the weights as they were trained.
        source: a description of the text on which it was measured.
    """

    weights: RoundedWeights
    loss: float
    increase: float
    source: str


def write_page(trained: TrainedModel, path: Path) -> None:
    """Writes the page to a file, atomically, and prints its size and its loss on standard error.

    Raises:
        UserError: the page cannot compute the model's cell, rounding the weights makes it predict much worse, or the
            write fails.
    """
    check_built_in(trained)
    checked = choose_weights(trained)
    page = render_page(trained, checked)
    files.write_bytes(path, page)
    print(
        f"html: {len(page) / 1e6:.1f} MB, weights in {checked.weights.type}; loss {checked.loss:.4f} nats a character, "
        f"{round(checked.increase, 4) + 0.0:+.4f} by rounding, on {checked.source}",
        file=sys.stderr,
        flush=True,
    )


def check_built_in(trained: TrainedModel) -> None:
    """Checks that the page has the arithmetic of the model's cell.

    Raises:
        UserError: the cell is not built in.
    """
    cell = trained.run.model.cell
    if cell not in cell_registry.BUILT_IN:
        raise UserError(
            f"{trained.run.path}: the page can compute only the cells {', '.join(cell_registry.BUILT_IN)}, not {cell}; "
            "use --format=saved_model"
        )


def render_page(trained: TrainedModel, checked: CheckedWeights) -> bytes:
    """Returns the page with some weights, as UTF-8."""
    description = _describe_for_script(trained, checked)
    script = "".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}}})();\n'
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    values = {
        "POLICY": html_page.make_policy(script, style),
        "TITLE": html.escape(description["name"]),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": html_page.encode_for_script(description),
    }
    template = (_FOLDER / "page.html").read_text(encoding="utf-8")
    return re.sub("{{(POLICY|TITLE|STYLE|SCRIPT|DATA)}}", lambda match: values[match[1]], template).encode("utf-8")


def round_weights(model: CharRNN, type: str) -> RoundedWeights:
    """Rounds the matrices of a model to float16 or int8; vectors, which are small, stay float32.

    Args:
        model: the model.
        type: `float16`, or `int8` with a scale for each row of the page's matrices, which is a unit or a symbol.
    """
    arrays: dict[str, Any] = {}
    values: dict[str, Array] = {}
    for name, variable in model.named_variables.items():
        value, kind = variable.numpy().astype(np.float32), name.rpartition("/")[2]
        values[name] = value
        if kind == "bias" and value.ndim == 2:  # the GRU has two
            prefix = name.removesuffix("bias")
            arrays |= {f"{prefix}bias": _pack(value[0]), f"{prefix}recurrent_bias": _pack(value[1])}
        elif value.ndim == 1:
            arrays[name] = _pack(value)
        else:
            # the rows of a kernel that reads one-hot vectors are looked up, as those of an embedding are
            is_looked_up = name == "cells/0/kernel" and model.embedding is None
            transposes = kind in _PRODUCT_MATRICES and not is_looked_up
            arrays[name], rounded = _round_matrix(value.T if transposes else value, type)
            values[name] = rounded.T if transposes else rounded
    return RoundedWeights(type, arrays, values)


def _round_matrix(matrix: Array, type: str) -> tuple[dict[str, Any], Array]:
    """Rounds a matrix; returns it for the page, and what it stands for."""
    if type == "float16":
        limit = float(np.finfo(np.float16).max)
        rounded = np.clip(matrix, -limit, limit).astype("<f2")
        return _pack(rounded, "float16"), rounded.astype(np.float32)
    largest = np.max(np.abs(matrix), axis=1, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype("<f4")
    levels = np.round(matrix / scales)
    with np.errstate(invalid="ignore"):  # the loss of weights that are not finite is none either, and is refused
        stored = levels.astype(np.int8)
    return _pack(stored, "int8") | {"scales": _encode(scales)}, (levels * scales).astype(np.float32)


def _pack(values: npt.NDArray[Any], type: str = "float32") -> dict[str, Any]:
    """Returns an array as the page decodes it."""
    values = values.astype("<f4") if type == "float32" else values
    return {"shape": list(values.shape), "type": type, "data": _encode(values)}


def _encode(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def choose_weights(trained: TrainedModel) -> CheckedWeights:
    """Rounds the weights and checks the loss: to float16, or to int8 if the page is large and that is good enough.

    The losses before and after are both computed in float32, as the page does.

    Raises:
        UserError: there is no text to measure on, or the loss becomes much worse.
    """
    text = _choose_text(trained)
    eval_input = _make_eval_input(trained, text)
    model = CharRNN(
        dataclasses.replace(trained.model.config, precision="float32"),
        len(trained.run.vocabulary),
        layout=trained.model.layout,
    )
    measured = dataclasses.replace(trained, model=model, evaluator=Evaluator(model))

    def measure(values: dict[str, Array]) -> float:
        for name, variable in model.named_variables.items():
            variable.assign(values[name])
        return measured.evaluate(eval_input).loss

    before = measure({name: variable.numpy() for name, variable in trained.model.named_variables.items()})
    is_large = trained.model.num_parameters * 2 * 4 / 3 > _LARGE_PAGE
    for type in ("int8", "float16") if is_large else ("float16",):
        weights = round_weights(trained.model, type)
        loss = measure(weights.values)
        if loss - before <= MAX_LOSS_INCREASE:
            return CheckedWeights(weights, loss, loss - before, text.source)
    raise UserError(
        f"{trained.run.path}: with weights in float16 the loss would be {loss:.4f} nats a character instead of "
        f"{before:.4f}; use another --checkpoint, or --format=saved_model"
    )


def _choose_text(trained: TrainedModel) -> ReportText:
    """Returns the beginning of the validation text, or else text that the model generates.

    Raises:
        UserError: the model cannot generate text either.
    """
    notes: list[str] = []
    # the layout `windows` must have a whole window before the first prediction
    characters = _MEASURED_CHARACTERS + trained.run.data.seq_length
    text = report_text.choose_text(trained, characters, "val", "", notes)
    if text is None or not text.part:
        reason = notes[0] if notes else "No text: the model generates nothing."
        raise UserError(f"{trained.run.path}: the page cannot be checked against the model. {reason}")
    return text


def _make_eval_input(trained: TrainedModel, text: ReportText) -> EvalInput:
    vocabulary, data = trained.run.vocabulary, trained.run.data
    if isinstance(text.part, str):
        return eval_inputs.make_text_input(text.part, vocabulary, data, text.source)
    examples = chunking.encode_lines(list(text.part), vocabulary, text.source)
    return EvalInput(examples, False, chunking.join_characters(examples, vocabulary, data))


def _describe_for_script(trained: TrainedModel, checked: CheckedWeights) -> dict[str, Any]:
    """Describes the model to the script of the page, JSON-compatible."""
    run, model, carried = trained.run, trained.model, trained.sampler.carried
    config, layout, vocabulary = model.config, model.layout, run.vocabulary
    arrays = dict(checked.weights.arrays)
    if carried is not None:
        for layer, state in enumerate(carried.state):
            # a text continues the first of the parallel streams, as `generate` does
            arrays |= {f"carried/{layer}/{index}": _pack(part.numpy()[0]) for index, part in enumerate(state)}
    return {
        "name": run.path.resolve().name.encode("utf-8", "replace").decode(),
        "summary": _summarise(trained, checked),
        "cell": config.cell,
        "activation": config.recurrent_activation,
        "numBlocks": get_cell_class(config.cell).num_gates,
        "hiddenSize": config.hidden_size,
        "numLayers": config.num_layers,
        "residual": config.residual,
        "symbols": list(vocabulary.symbols),
        "numSymbols": len(vocabulary),
        "numSpecial": vocabulary.num_special,
        "numUnpredicted": layout.num_unpredicted,
        "startId": layout.start_id,
        "endId": layout.end_id,
        "zeroStart": config.zero_start,
        "windowSize": run.data.seq_length if layout.last_only else 0,
        "carriedSymbol": None if carried is None else int(carried.symbols.numpy()[0]),
        "ofBytes": vocabulary.of_bytes,
        "normalisation": {
            "lowercase": run.data.lowercase,
            "dropDigits": run.data.drop_digits,
            "dropped": list(run.data.drop_chars),
        },
        "arrays": arrays,
    }


def _summarise(trained: TrainedModel, checked: CheckedWeights) -> list[tuple[str, str]]:
    """Returns what the page says about the model, as pairs of a name and a value."""
    config, vocabulary = trained.model.config, trained.run.vocabulary
    layers = "1 layer" if config.num_layers == 1 else f"{config.num_layers} layers"
    return [
        ("cell", config.cell),
        ("size", f"{layers} of {config.hidden_size:,} units"),
        ("parameters", f"{trained.model.num_parameters:,}"),
        ("vocabulary", f"{len(vocabulary):,} {'bytes' if vocabulary.of_bytes else 'symbols'}"),
        ("trained for", f"{trained.checkpoint.step:,} steps"),
        (f"loss on {checked.source}", f"{checked.loss:.3f} nats a character"),
    ]
