"""How well a model predicts a text."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.data.examples import Examples
from tfcharrnn.data.input_pipeline import evaluation_batches
from tfcharrnn.data.out_of_core import EvaluationBlocks
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import END
from tfcharrnn.model.cells import State
from tfcharrnn.model.char_rnn import CharRNN

# the kinds of characters whose losses `by_class` tells, in its order
CLASSES = ("lower", "upper", "digit", "space", "newline", "punctuation", "other", "end")

# sums of losses that are kept apart, to be added up exactly
_TOTALS = 2**20


def class_of(symbol: str) -> str:
    """Which of `CLASSES` a symbol is of: `end` is `</S>`; `other`, say, a letter of a script without case."""
    if symbol == END:
        return "end"
    if symbol == "\n":
        return "newline"
    if len(symbol) != 1:
        return "other"
    if symbol.isspace():
        return "space"
    category = unicodedata.category(symbol)
    if category in ("Ll", "Lu", "Nd"):
        return {"Ll": "lower", "Lu": "upper", "Nd": "digit"}[category]
    return "punctuation" if category[0] in "PS" else "other"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result.

    Attributes:
        loss: in nats a character.
        characters: how many were predicted.
        accuracy: the share of them that the model held for the likeliest; None: not measured.
        unknown: characters left out, since they are outside the vocabulary; None: not counted.
        by_id: for each symbol of the vocabulary as a target the sum of its losses in nats, how often it was the
            likeliest, and how often it stood there, float64 `[3, vocabulary]`; None: not measured.
    """

    loss: float
    characters: int
    accuracy: float | None = None
    unknown: int | None = None
    by_id: npt.NDArray[np.float64] | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def bits_per_char(self) -> float:
        """The loss in bits."""
        return self.loss / math.log(2.0)

    @property
    def perplexity(self) -> float:
        """Exp of the loss: among how many equally likely characters the model is as unsure."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def by_class(self, vocabulary: Vocabulary) -> dict[str, dict[str, float | int]]:
        """For each of `CLASSES` that the text has: its mean loss, accuracy, and how many characters are of it."""
        if self.by_id is None:
            return {}
        sums = {name: np.zeros(3) for name in CLASSES}
        for symbol, measured in zip(vocabulary.symbols, self.by_id.T, strict=True):
            sums[class_of(symbol)] += measured
        return {
            name: {"loss": float(nats / count), "accuracy": float(hits / count), "characters": int(count)}
            for name, (nats, hits, count) in sums.items()
            if count
        }

    def to_dict(self) -> dict[str, Any]:
        """As `evaluate` prints it; null in place of a perplexity too large for a number, which JSON cannot write."""
        measured = {"accuracy": self.accuracy, "unknown": self.unknown}
        return {
            "loss": self.loss,
            "bits_per_char": self.bits_per_char,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
            "characters": self.characters,
        } | {name: value for name, value in measured.items() if value is not None}


class _Batch(NamedTuple):
    """What was measured of some examples: each `[examples, targets]`; and which they are, `[examples]`."""

    indices: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int32]
    losses: npt.NDArray[np.float64]
    hits: npt.NDArray[np.bool_]
    real: npt.NDArray[np.bool_]


class Evaluator:
    """Measures the loss of a model on examples; compiled once for each shape.

    Examples that stand alone are each read from the initial state, many side by side. Those that are pieces of one
    text are read one after another, and the state is carried over.
    """

    def __init__(self, model: CharRNN):
        """Takes the model, whose weights may change between evaluations."""
        self._model = model
        self._compiled = tf.function(self._predict)

    def __call__(
        self, examples: Examples | EvaluationBlocks, batch_size: int, *, in_order: bool | None = None
    ) -> Evaluation:
        """The mean loss of every symbol that is predicted in some examples.

        Args:
            examples: what to measure; all at once, or block by block.
            batch_size: examples evaluated side by side.
            in_order: they are pieces of one text, as `cutting.stream_pieces` makes them; None: if the model's layout
                is of such.

        Raises:
            UserError: there are none.
        """
        totals, by_id = [], np.zeros((3, self._model.vocabulary_size))
        for batch in self._batches(examples, batch_size, in_order):
            targets = batch.targets[batch.real]
            for sums, weights in zip(by_id, (batch.losses[batch.real], batch.hits[batch.real], None), strict=True):
                sums += np.bincount(targets, weights, len(sums))
            totals.extend(batch.losses.sum(axis=1).tolist())
            if len(totals) > _TOTALS:
                totals = [math.fsum(totals)]
        count = round(by_id[2].sum())
        if not count:
            raise UserError("there is no text to evaluate")
        return Evaluation(math.fsum(totals) / count, count, float(by_id[1].sum()) / count, by_id=by_id)

    def totals(self, examples: Examples, batch_size: int) -> tuple[npt.NDArray[np.float64], int]:
        """The sum of the losses of each example in nats, `[examples]`, and over how many symbols they all go."""
        totals, count = np.zeros(len(examples)), 0
        for batch in self._batches(examples, batch_size):
            totals[batch.indices] = batch.losses.sum(axis=1)
            count += int(np.count_nonzero(batch.real))
        return totals, count

    def _batches(
        self, examples: Examples | EvaluationBlocks, batch_size: int, in_order: bool | None = None
    ) -> Iterator[_Batch]:
        """Every example once; losses of what is not real are 0. Which example is which is told within its block."""
        carries = self._model.layout.carries_state if in_order is None else in_order
        batch_size = 1 if carries else max(1, min(batch_size, len(examples)))
        state = self._model.initial_state(batch_size)
        blocks, ends = ([examples], None) if isinstance(examples, Examples) else (examples, examples.ends)
        for block in blocks:
            for ids, real, indices in evaluation_batches(block, batch_size, in_order=carries, ends=ends):
                if not real.any():  # as in texts of nothing but <S>
                    continue
                losses, hits, after = self._compiled(ids, state)
                rows, width = len(indices), losses.shape[1]
                targets, real = ids[:rows, -width:], real[:rows, -width:]
                yield _Batch(indices, targets, np.where(real, losses[:rows], 0.0), hits[:rows].numpy(), real)
                if carries:
                    state = after

    def _predict(self, ids: tf.Tensor, state: tuple[State, ...]) -> tuple[tf.Tensor, tf.Tensor, tuple[State, ...]]:
        losses, hits, state = self._model.losses_and_hits(ids, state)
        return tf.cast(losses, tf.float64), hits, state
