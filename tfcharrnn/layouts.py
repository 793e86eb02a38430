"""The layouts: how a text becomes training examples, and what follows from that for the stages after it."""

from __future__ import annotations

import dataclasses

PAD, START, END = "<PAD>", "<S>", "</S>"


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a layout's examples are like.

    Attributes:
        name: as `--layout` takes it.
        special: the special symbols of its vocabulary, in id order.
        settings: the fields of `DataConfig` that say how it cuts a text.
        carries_state: an example goes on where the one before it ended, and so does the model's state.
        last_only: of an example only the last symbol is predicted, and a prediction sees `seq_length` symbols.
    """

    name: str
    special: tuple[str, ...]
    settings: tuple[str, ...]
    carries_state: bool = False
    last_only: bool = False

    @property
    def pad_id(self) -> int | None:
        """The id that fills up examples of different lengths, or None where all are of one."""
        return self._id(PAD)

    @property
    def start_id(self) -> int | None:
        """The id with which an example begins, or None where it begins with a character."""
        return self._id(START)

    @property
    def end_id(self) -> int | None:
        """The id with which an example ends, or None where it ends with a character."""
        return self._id(END)

    @property
    def num_unpredicted(self) -> int:
        """How many of the first ids are never to be drawn: every special symbol but the end, which comes last."""
        return len(self.special) - (self.end_id is not None)

    def _id(self, symbol: str) -> int | None:
        return self.special.index(symbol) if symbol in self.special else None


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("sequences", special=(START,), settings=("seq_length", "overlap")),
        Layout("stream", special=(), settings=("seq_length",), carries_state=True),
        Layout("lines", special=(PAD, START, END), settings=("delimiter", "max_length")),
        Layout("windows", special=(), settings=("seq_length", "stride"), last_only=True),
    )
}
