"""Recurrent cells, each with its forward and its backward step by hand."""

from __future__ import annotations

from tfcharrnn.cells.base import Cell, State
from tfcharrnn.cells.gru import GRUCell
from tfcharrnn.cells.lstm import LSTMCell
from tfcharrnn.cells.rnn import RNNCell

CELLS: dict[str, type[Cell]] = {"rnn": RNNCell, "lstm": LSTMCell, "gru": GRUCell}

__all__ = ["CELLS", "Cell", "GRUCell", "LSTMCell", "RNNCell", "State"]
