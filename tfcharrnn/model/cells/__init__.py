"""Recurrent cells, each with its forward and its backward step written by hand."""

from __future__ import annotations

import functools

from tfcharrnn.model.cells.base import GATE_ACTIVATIONS, Cell, State
from tfcharrnn.model.cells.gru import GRUCell
from tfcharrnn.model.cells.lstm import LSTMCell
from tfcharrnn.model.cells.rnn import RNNCell

CELLS: dict[str, type[Cell]] = {"rnn": RNNCell, "lstm": LSTMCell, "gru": GRUCell}


@functools.cache
def get_cell_class(name: str, recurrent_activation: str = "sigmoid") -> type[Cell]:
    """Returns the cell class for `--cell` and `--recurrent_activation`; equal arguments give the same class.

    Compiled loops are cached by class, so a new class for each model would compile them again.
    """
    cell_class, gate = CELLS[name], GATE_ACTIVATIONS[recurrent_activation]
    if gate is cell_class.gate:
        return cell_class
    return type(cell_class.__name__, (cell_class,), {"gate": gate})


__all__ = ["CELLS", "Cell", "GRUCell", "LSTMCell", "RNNCell", "State", "get_cell_class"]
