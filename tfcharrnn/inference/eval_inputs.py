"""Inputs of an evaluation: a split of the model's own data or any text, read whole or as examples."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.examples import Examples, make_evaluation_examples
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.layouts import LAYOUTS

# how a text is read: as a whole, or cut into examples as in training
READ = ("whole", "examples")


@dataclasses.dataclass(frozen=True)
class EvalInput:
    """A text to predict.

    Attributes:
        examples: its parts, in order.
        in_order: whether the state is carried over from each to the next; otherwise each starts from the initial state.
        ids: all characters once, int32 `[characters]`; for lines including their ends.
        unknown: number of characters skipped because they are outside the vocabulary.
    """

    examples: Examples
    in_order: bool
    ids: npt.NDArray[np.int32]
    unknown: int = 0

    def text(self, vocabulary: Vocabulary) -> str:
        """Returns the symbols as a string, with a newline for the end of a line."""
        ends = np.flatnonzero(self.ids == (-1 if vocabulary.end_id is None else vocabulary.end_id))
        return "\n".join(vocabulary.decode(part) for part in np.split(self.ids, ends))


def make_split_input(records: Examples, vocabulary: Vocabulary, config: DataConfig, read: str = "") -> EvalInput:
    """Makes the input for a split.

    Args:
        records: the records of the split.
        vocabulary: the model's vocabulary.
        config: the options the split was prepared with.
        read: one of `READ`; empty: as in training, which for a stream is whole.

    Raises:
        ConfigError: the layout cannot be read this way.
    """
    carries = LAYOUTS[config.layout].carries_state
    ids = chunking.join_characters(records, vocabulary, config)
    if _reads_whole(config, read or ("whole" if carries else "examples")) and not carries:
        return EvalInput(chunking.make_stream_examples(ids, vocabulary.start_id), True, ids)
    return EvalInput(make_evaluation_examples(records, config), carries, ids)


def make_text_input(
    text: str, vocabulary: Vocabulary, config: DataConfig, name: str = "text", *, read: str = "", unknown: str = "error"
) -> EvalInput:
    """Makes the input for a normalised text.

    Args:
        text: its symbols.
        vocabulary: the model's vocabulary.
        config: the data options of the model.
        name: the name of the text, for errors.
        read: one of `READ`; empty: whole, or as examples where the layout does not allow that.
        unknown: `error` refuses characters outside the vocabulary, `skip` ignores them.

    Raises:
        ConfigError: the layout cannot be read this way.
        UserError: the text has characters outside the vocabulary.
    """
    if unknown not in ("error", "skip"):
        raise ConfigError(f"--unknown must be one of error, skip. Received: {unknown!r}")
    layout = LAYOUTS[config.layout]
    can_be_whole = layout.is_continuous
    whole = _reads_whole(config, read or ("whole" if can_be_whole else "examples"))

    def drop_unknown(part: str) -> str:
        return vocabulary.drop_unknown(part) if unknown == "skip" else part

    try:
        if layout.name == "lines":  # delimiters may be outside the vocabulary
            lines, _ = chunking.split_lines(text, config)
            known_lines = [line for line in map(drop_unknown, lines) if line]
            examples = chunking.encode_lines(known_lines, vocabulary, name)
            dropped = sum(map(len, lines)) - sum(map(len, known_lines))
            return EvalInput(examples, False, chunking.join_characters(examples, vocabulary, config), dropped)
        known_text = drop_unknown(text)
        ids = vocabulary.encode(known_text, name)
    except UserError as error:
        raise UserError(f"{error}; --unknown=skip ignores such characters") from None
    if whole:
        examples = chunking.make_stream_examples(ids, layout.start_id)
    else:
        examples = chunking.encode_text(known_text, vocabulary, config, name)
    return EvalInput(examples, whole, ids, len(text) - len(known_text))


def _reads_whole(config: DataConfig, read: str) -> bool:
    """Returns whether a text is read whole.

    Raises:
        ConfigError: the layout cannot be read this way.
    """
    able = {"sequences": READ, "stream": READ[:1]}.get(config.layout, READ[1:])
    if read not in able:
        raise ConfigError(f"--read must be {' or '.join(able)} for --layout={config.layout}. Received: {read!r}")
    return read == "whole"
