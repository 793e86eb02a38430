"""The work that benchmarks measure: `tools/bench.py` beside other libraries, `doctor --bench` on a device."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

# blocks of columns in a kernel, of the cells whose arithmetic is counted
NUM_GATES = {"rnn": 1, "lstm": 4, "gru": 3}


@dataclasses.dataclass(frozen=True)
class Training:
    """A training step: symbols through a recurrent network to a loss, back, and an update of the weights."""

    name: str
    cell: str
    batch: int
    time: int
    hidden: int
    layers: int
    symbols: int
    optimizer: str = "adam"

    @property
    def gates(self) -> int:
        """Blocks of columns in a kernel."""
        return NUM_GATES[self.cell]

    @property
    def flops(self) -> float:
        """Arithmetic of the matrix products of a step: forward, and twice as much backward.

        The first layer's input is a lookup and counts nothing.
        """
        recurrent = self.layers * self.hidden * self.gates * self.hidden
        between = (self.layers - 1) * self.hidden * self.gates * self.hidden
        output = self.hidden * self.symbols
        return 3 * 2.0 * self.batch * self.time * (recurrent + between + output)

    @property
    def characters(self) -> int:
        """Characters predicted in a step."""
        return self.batch * self.time

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.cell.upper()} {self.batch} x {self.time}, "
            f"{self.hidden} x {self.layers}, {self.symbols} symbols"
        )


@dataclasses.dataclass(frozen=True)
class Generation:
    """Sampling from the softmax, symbol after symbol."""

    name: str
    cell: str
    hidden: int
    layers: int
    streams: int
    symbols: int = 68
    length: int = 1024

    @property
    def characters(self) -> int:
        """Characters generated."""
        return self.streams * self.length

    def __str__(self) -> str:
        return f"{self.name}: {self.cell.upper()} {self.hidden} x {self.layers}, streams: {self.streams}"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """From a text on disk to TFRecords of sequences of 200."""

    name: str
    characters: int

    @property
    def text(self) -> str:
        """Lines of random ASCII characters."""
        codes = np.random.default_rng(0).integers(32, 127, self.characters).astype(np.uint8)
        codes[::60] = 10
        return codes.tobytes().decode("ascii")

    def __str__(self) -> str:
        return f"{self.name}: prepare {self.characters / 1e6:.0f} MB of text"


Work = Training | Generation | Preparation

ALL: dict[str, Work] = {
    work.name: work
    for work in (
        Training("A", "rnn", 128, 200, 512, 1, 68),
        Training("B", "lstm", 100, 100, 256, 2, 65),
        Training("C", "gru", 100, 100, 256, 2, 65),
        Training("D", "lstm", 128, 200, 512, 1, 68),
        Training("E", "gru", 128, 200, 512, 1, 68),
        Training("F", "rnn", 1, 100, 150, 1, 38, "sgd"),
        Training("G", "rnn", 1, 25, 100, 1, 54, "adagrad"),
        Training("H", "rnn", 1, 8, 50, 1, 27, "sgd"),
        Generation("I", "rnn", 512, 1, 1),
        Generation("J", "lstm", 256, 2, 1),
        Generation("K", "rnn", 512, 1, 64),
        Generation("L", "lstm", 256, 2, 64),
        Preparation("M", 20_000_000),
    )
}


def text(work: Training, steps: int) -> npt.NDArray[np.int32]:
    """Random symbols for some steps, `[steps, batch, time + 1]`."""
    return np.random.default_rng(0).integers(0, work.symbols, (steps, work.batch, work.time + 1)).astype(np.int32)
