"""What is evaluated: a split of a model's own data, or any text, in the way in which the model is to read it."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from tfcharrnn.config import DataConfig
from tfcharrnn.data import chunking
from tfcharrnn.data.examples import Examples
from tfcharrnn.data.vocabulary import Vocabulary
from tfcharrnn.errors import ConfigError, UserError
from tfcharrnn.layouts import LAYOUTS

# how a text is read: in one piece, or cut into examples as in training
READ = ("whole", "examples")


@dataclasses.dataclass(frozen=True)
class Passage:
    """A text to be predicted.

    Attributes:
        examples: its parts, in order.
        in_order: they are read one after another with the state carried over; else each from the initial state.
        ids: all its characters, each once, int32 `[characters]`; of lines also their ends.
        unknown: how many characters were left out, since they are outside the vocabulary.
    """

    examples: Examples
    in_order: bool
    ids: npt.NDArray[np.int32]
    unknown: int = 0

    def text(self, vocabulary: Vocabulary) -> str:
        """Its characters as text, with a newline for the end of a line."""
        ends = np.flatnonzero(self.ids == (-1 if vocabulary.end_id is None else vocabulary.end_id))
        return "\n".join(vocabulary.decode(part) for part in np.split(self.ids, ends))


def of_split(records: Examples, vocabulary: Vocabulary, config: DataConfig, read: str = "") -> Passage:
    """A split as it was prepared.

    Args:
        records: the split's.
        vocabulary: the model's.
        config: how the split was cut.
        read: one of `READ`; empty: as in training, which for a stream is in one piece.

    Raises:
        ConfigError: the layout cannot be read so.
    """
    carries = LAYOUTS[config.layout].carries_state
    ids = chunking.characters_once(records, vocabulary, config)
    if _reads_whole(config, read or ("whole" if carries else "examples")) and not carries:
        return Passage(chunking.in_one_piece(ids, vocabulary.start_id), True, ids)
    return Passage(chunking.predicted_once(records, config), carries, ids)


def of_text(
    text: str, vocabulary: Vocabulary, config: DataConfig, name: str = "text", *, read: str = "", unknown: str = "error"
) -> Passage:
    """A text, normalised already.

    Args:
        text: what to predict.
        vocabulary: the model's.
        config: how the model's texts are cut.
        name: of the text, for errors.
        read: one of `READ`; empty: in one piece, or where a layout does not allow that as examples.
        unknown: what to do with characters outside the vocabulary: `error`, or `skip` them.

    Raises:
        ConfigError: the layout cannot be read so.
        UserError: characters outside the vocabulary.
    """
    if unknown not in ("error", "skip"):
        raise ConfigError(f"--unknown must be one of error, skip. Received: {unknown!r}")
    layout = LAYOUTS[config.layout]
    able = layout.name in ("sequences", "stream")
    whole = _reads_whole(config, read or ("whole" if able else "examples"))

    def kept(part: str) -> str:
        return vocabulary.known(part) if unknown == "skip" else part

    try:
        if layout.name == "lines":  # what divides them may well be outside the vocabulary
            lines, _ = chunking.split_lines(text, config)
            left = [line for line in map(kept, lines) if line]
            examples = chunking.lines_as_examples(left, vocabulary, name)
            dropped = sum(map(len, lines)) - sum(map(len, left))
            return Passage(examples, False, chunking.characters_once(examples, vocabulary, config), dropped)
        left_text = kept(text)
        ids = vocabulary.encode(left_text, name)
    except UserError as error:
        raise UserError(f"{error}; --unknown=skip leaves such characters out") from None
    if whole:
        examples = chunking.in_one_piece(ids, layout.start_id)
    else:
        examples = chunking.of_text(left_text, vocabulary, config, name)
    return Passage(examples, whole, ids, len(text) - len(left_text))


def _reads_whole(config: DataConfig, read: str) -> bool:
    """Whether a text is read in one piece.

    Raises:
        ConfigError: the layout cannot be read as asked.
    """
    able = {"sequences": READ, "stream": READ[:1]}.get(config.layout, READ[1:])
    if read not in able:
        raise ConfigError(f"--read must be {' or '.join(able)} for --layout={config.layout}. Received: {read!r}")
    return read == "whole"
