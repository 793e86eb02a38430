"""Measures how well a model predicts a text."""

from __future__ import annotations

import dataclasses
import math
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcharrnn.data.evaluation_examples import OutOfCoreExamples, make_evaluation_batches
from tfcharrnn.data.examples import Examples
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import UserError
from tfcharrnn.layouts import END
from tfcharrnn.model.cells import State
from tfcharrnn.model.char_rnn import CharRNN

# the classes of characters, in the order in which losses by class are printed
CHARACTER_CLASSES = ("lower", "upper", "digit", "space", "newline", "punctuation", "other", "end")

# partial sums to keep before adding them up, which is exact
_MAX_PARTIAL_SUMS = 2**20


def classify_symbol(symbol: str, *, of_bytes: bool = False) -> str:
    """Returns the class of a symbol: `end` is `</S>`; `other` is, for example, a letter of a caseless script.

    A byte outside ASCII is part of a character, and `other`.
    """
    if symbol == END:
        return "end"
    if symbol == "\n":
        return "newline"
    if len(symbol) != 1 or (of_bytes and not symbol.isascii()):
        return "other"
    if symbol.isspace():
        return "space"
    category = unicodedata.category(symbol)
    if category in ("Ll", "Lu", "Nd"):
        return {"Ll": "lower", "Lu": "upper", "Nd": "digit"}[category]
    return "punctuation" if category[0] in "PS" else "other"


class SymbolTotals(NamedTuple):
    """Totals for each symbol of the vocabulary as a target, each float64 `[vocabulary]`.

    Attributes:
        losses: in nats.
        hits: how often the model ranked the symbol first.
        counts: how often the symbol occurred.
    """

    losses: npt.NDArray[np.float64]
    hits: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        loss: mean loss in nats a character.
        characters: number of predicted characters.
        accuracy: fraction of them that the model ranked first; None: not measured.
        unknown: number of characters skipped because they are outside the vocabulary; None: not counted.
        by_symbol: totals for each symbol; None: not measured.
    """

    loss: float
    characters: int
    accuracy: float | None = None
    unknown: int | None = None
    by_symbol: SymbolTotals | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def bits_per_char(self) -> float:
        """The loss in bits a character."""
        return self.loss / math.log(2.0)

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely characters with the same uncertainty."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def by_class(self, vocabulary: Vocabulary) -> dict[str, dict[str, float | int]]:
        """Returns the mean loss, accuracy and number of characters of each class that occurs in the text."""
        if self.by_symbol is None:
            return {}
        sums = {name: np.zeros(3) for name in CHARACTER_CLASSES}
        for symbol, *totals in zip(vocabulary.symbols, *self.by_symbol, strict=True):
            sums[classify_symbol(symbol, of_bytes=vocabulary.of_bytes)] += totals
        return {
            name: {"loss": float(nats / count), "accuracy": float(hits / count), "characters": int(count)}
            for name, (nats, hits, count) in sums.items()
            if count
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns what `evaluate` prints; None replaces an infinite perplexity, which JSON cannot represent."""
        measured = {"accuracy": self.accuracy, "unknown": self.unknown}
        return {
            "loss": self.loss,
            "bits_per_char": self.bits_per_char,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
            "characters": self.characters,
        } | {name: value for name, value in measured.items() if value is not None}


class _BatchResult(NamedTuple):
    """Measurements of a batch.

    Attributes:
        indices: of its examples, `[examples]`.
        targets: symbols, `[examples, targets]`, like the rest.
        losses: in nats, 0 where there is no target.
        hits: whether the model ranked the target first.
        is_real: False for padding.
    """

    indices: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int32]
    losses: npt.NDArray[np.float64]
    hits: npt.NDArray[np.bool_]
    is_real: npt.NDArray[np.bool_]


class Evaluator:
    """Measures the loss of a model on examples; compiled once for each shape.

    Independent examples are read in batches, each from the initial state. Pieces of one text are read in order, and
    the state is carried over.

    Args:
        model: the model.
        on_compiled: called with the seconds of each call that compiled.
    """

    def __init__(self, model: CharRNN, on_compiled: Callable[[float], None] | None = None):
        self._model = model
        self._on_compiled = on_compiled
        self._compiled = tf.function(self._predict, autograph=False)

    def __call__(
        self, examples: Examples | OutOfCoreExamples, batch_size: int, *, in_order: bool | None = None
    ) -> Evaluation:
        """Measures the mean loss over all targets of some examples.

        Args:
            examples: in memory, or read in parts.
            batch_size: examples in a batch.
            in_order: whether they are consecutive pieces of one text; None: as in the model's layout.

        Raises:
            UserError: there are no targets.
        """
        size = self._model.vocabulary_size
        by_symbol = SymbolTotals(np.zeros(size), np.zeros(size), np.zeros(size))
        sums: list[float] = []
        for batch in self._measure(examples, batch_size, in_order):
            targets = batch.targets[batch.is_real]
            weights = (batch.losses[batch.is_real], batch.hits[batch.is_real], None)
            for totals, weight in zip(by_symbol, weights, strict=True):
                totals += np.bincount(targets, weight, size)
            sums.extend(batch.losses.sum(axis=1).tolist())
            if len(sums) > _MAX_PARTIAL_SUMS:
                sums = [math.fsum(sums)]
        count = round(by_symbol.counts.sum())
        if not count:
            raise UserError("there is no text to evaluate")
        return Evaluation(math.fsum(sums) / count, count, float(by_symbol.hits.sum()) / count, by_symbol=by_symbol)

    def sum_losses(self, examples: Examples, batch_size: int) -> npt.NDArray[np.float64]:
        """Returns the sum of the losses of each example in nats, `[examples]`."""
        sums = np.zeros(len(examples))
        for batch in self._measure(examples, batch_size):
            sums[batch.indices] = batch.losses.sum(axis=1)
        return sums

    def _measure(
        self, examples: Examples | OutOfCoreExamples, batch_size: int, in_order: bool | None = None
    ) -> Iterator[_BatchResult]:
        """Measures every example once; indices count within the part that an example is read in."""
        in_order = self._model.layout.carries_state if in_order is None else in_order
        batch_size = 1 if in_order else max(1, min(batch_size, examples.num_examples))
        state = self._model.initial_state(batch_size)
        parts, widths = ([examples], None) if isinstance(examples, Examples) else (examples, examples.widths)
        for part in parts:
            for ids, is_real, indices in make_evaluation_batches(part, batch_size, in_order=in_order, widths=widths):
                if not is_real.any():  # such as texts of <S> alone
                    continue
                losses, hits, last_state = self._call_compiled(ids, state)
                rows, width = len(indices), losses.shape[1]
                targets, is_real = ids[:rows, -width:], is_real[:rows, -width:]
                losses = np.where(is_real, losses[:rows], 0.0)
                yield _BatchResult(indices, targets, losses, hits[:rows].numpy(), is_real)
                if in_order:
                    state = last_state

    def _call_compiled(
        self, ids: npt.NDArray[np.int32], state: tuple[State, ...]
    ) -> tuple[tf.Tensor, tf.Tensor, tuple[State, ...]]:
        """Calls `_predict`, compiled; tells `on_compiled` if it had to be compiled first."""
        num_traced, start = self._compiled.experimental_get_tracing_count(), time.perf_counter()
        predicted = self._compiled(ids, state)
        if self._on_compiled and self._compiled.experimental_get_tracing_count() > num_traced:
            self._on_compiled(time.perf_counter() - start)
        return predicted

    def _predict(self, ids: tf.Tensor, state: tuple[State, ...]) -> tuple[tf.Tensor, tf.Tensor, tuple[State, ...]]:
        losses, hits, state = self._model.losses_and_hits(ids, state)
        return tf.cast(losses, tf.float64), hits, state
