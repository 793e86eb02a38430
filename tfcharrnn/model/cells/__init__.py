"""Recurrent cells, each with its forward and its backward step by hand."""

from __future__ import annotations

import functools

from tfcharrnn.model.cells.base import Cell, State
from tfcharrnn.model.cells.gates import GATES
from tfcharrnn.model.cells.gru import GRUCell
from tfcharrnn.model.cells.lstm import LSTMCell
from tfcharrnn.model.cells.rnn import RNNCell

CELLS: dict[str, type[Cell]] = {"rnn": RNNCell, "lstm": LSTMCell, "gru": GRUCell}


@functools.cache
def cell_type(name: str, recurrent_activation: str = "sigmoid") -> type[Cell]:
    """The class of a cell with the activation of its gates; the same one whenever it is asked for the same.

    Args:
        name: a key of `CELLS`.
        recurrent_activation: a key of `tfcharrnn.model.cells.gates.GATES`.
    """
    kind, gate = CELLS[name], GATES[recurrent_activation]
    return kind if gate is kind.gate else type(kind.__name__, (kind,), {"gate": gate})


__all__ = ["CELLS", "Cell", "GRUCell", "LSTMCell", "RNNCell", "State", "cell_type"]
