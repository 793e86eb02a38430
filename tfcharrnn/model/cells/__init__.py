"""Recurrent cells, each with the arithmetic of a step in one page, and some with its derivative by hand."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TypeVar

from tfcharrnn import cell_registry
from tfcharrnn.model.cells.base import GATE_ACTIVATIONS, Cell, State, check_complete

CellT = TypeVar("CellT", bound=type[Cell])

# where each built-in cell lives; its module is imported when it is first used
_HOMES = {
    "rnn": ("rnn", "RNNCell"),
    "lstm": ("lstm", "LSTMCell"),
    "gru": ("gru", "GRUCell"),
    "lnlstm": ("lnlstm", "LayerNormLSTMCell"),
    "mlstm": ("mlstm", "MultiplicativeLSTMCell"),
    "mingru": ("mingru", "MinGRUCell"),
    "minlstm": ("minlstm", "MinLSTMCell"),
    "sru": ("sru", "SRUCell"),
}


def get_cell_class(name: str, recurrent_activation: str = "sigmoid") -> type[Cell]:
    """Returns the cell class for `--cell` and `--recurrent_activation`; equal arguments give the same class.

    Raises:
        ConfigError: no cell has this name; the message says how to name its module.
    """
    if name in _HOMES:
        module, class_name = _HOMES[name]
        cell_class = getattr(importlib.import_module(f"tfcharrnn.model.cells.{module}"), class_name)
    else:
        cell_class = cell_registry.get_registered(name)
    return _replace_gate(cell_class, recurrent_activation)


def register_cell(name: str) -> Callable[[CellT], CellT]:
    """Returns a class decorator that makes a cell known as `--cell=name`.

    A name that is registered again stands for the later class, as when the cell of a notebook is run twice.

    Args:
        name: letters, digits and `_`; not that of a built-in cell.

    Raises:
        ValueError: the name is built in, or not such a word.
        TypeError: what it decorates is not a complete subclass of `tfcharrnn.Cell`.
    """
    if not name.isidentifier() or not name.isascii():
        raise ValueError(f"the name of a cell must consist of letters, digits and _. Received: {name!r}")
    if name in _HOMES:
        raise ValueError(f"the cell {name!r} is built in; choose another name")

    def register(cell_class: CellT) -> CellT:
        check_complete(cell_class)
        cell_registry.add_cell(name, cell_class)
        return cell_class

    return register


@functools.cache
def _replace_gate(cell_class: type[Cell], recurrent_activation: str) -> type[Cell]:
    """Returns the cell with another gate activation.

    Compiled loops are cached by class, so a new class for each model would compile them again.
    """
    gate = GATE_ACTIVATIONS[recurrent_activation]
    if gate is cell_class.gate:
        return cell_class
    return type(cell_class.__name__, (cell_class,), {"gate": gate})


__all__ = ["Cell", "State", "get_cell_class", "register_cell"]
