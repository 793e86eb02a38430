"""Layouts: how a text becomes training examples, and what each layout implies for later stages."""

from __future__ import annotations

import dataclasses

PAD, START, END = "<PAD>", "<S>", "</S>"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Properties of a layout.

    Attributes:
        name: the value of `--layout`.
        special: the special symbols of its vocabulary, in id order.
        settings: the fields of `DataConfig` that configure it.
        carries_state: each example continues the one before, and the model's state is carried over.
        last_only: only the last symbol of an example is predicted, from the `seq_length` symbols before it.
    """

    name: str
    special: tuple[str, ...]
    settings: tuple[str, ...]
    carries_state: bool = False
    last_only: bool = False

    @property
    def pad_id(self) -> int | None:
        """Id that pads examples of different lengths; None where all have the same length."""
        return self._id(PAD)

    @property
    def start_id(self) -> int | None:
        """Id at the start of every example; None where examples start with a character."""
        return self._id(START)

    @property
    def end_id(self) -> int | None:
        """Id at the end of every example; None where examples end with a character."""
        return self._id(END)

    @property
    def is_continuous(self) -> bool:
        """Whether its examples are pieces of one continuous text, which can also be read whole."""
        return self.name in ("sequences", "stream")

    @property
    def num_unpredicted(self) -> int:
        """Number of leading ids that are never sampled: all special symbols except the end, which comes last."""
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
