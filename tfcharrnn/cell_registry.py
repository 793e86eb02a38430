"""Cells by name: the built-in ones, and those that other modules register.

Code is only ever imported because the person at the keyboard named it: `--cell_module`, `--cell` for an installed
package that declares it, or an `import` in a script. A run folder names its cell, and can make nothing be imported.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tfcharrnn.errors import ConfigError, UserError, first_line, shorten

if TYPE_CHECKING:
    from tfcharrnn.model.cells import Cell

BUILT_IN = ("rnn", "lstm", "gru", "lnlstm", "mlstm", "mingru", "minlstm", "sru")
# packages declare their cells in this group of entry points, as NAME = MODULE
ENTRY_POINT_GROUP = "tfcharrnn.cells"

_registered: dict[str, type[Cell]] = {}


def add_cell(name: str, cell_class: type[Cell]) -> None:
    """Makes a cell known as `--cell=name`; see `tfcharrnn.register_cell`."""
    _registered[name] = cell_class


def list_cells() -> tuple[str, ...]:
    """Returns the names of all cells, the built-in ones first."""
    return (*BUILT_IN, *sorted(_registered))


def get_registered(name: str) -> type[Cell]:
    """Returns a registered cell.

    Raises:
        ConfigError: there is none of this name; see `check_cell`.
    """
    check_cell(name)
    return _registered[name]


def check_cell(name: str) -> None:
    """Checks that a cell is built in or registered.

    Raises:
        ConfigError: it is not; the message says how to name the module that registers it.
    """
    if name in BUILT_IN or name in _registered:
        return
    entry_point = _find_entry_point(name)
    if entry_point is not None:
        remedy = f"the installed module {entry_point.module} has it: add --cell_module={entry_point.module}"
    elif close := difflib.get_close_matches(name, list_cells(), 1, 0.75):
        remedy = f"did you mean {close[0]}? A cell of your own needs --cell_module=FILE.py"
    else:
        remedy = "a cell of your own needs the file that registers it, --cell_module=FILE.py"
    raise ConfigError(f"--cell={shorten(name)}: not one of {', '.join(list_cells())}; {remedy}")


def load_named_cell(name: str) -> None:
    """Imports the module of an installed package that declares this cell, if no module has registered it yet.

    Raises:
        UserError: the module cannot be imported, or does not register the cell.
    """
    if name in BUILT_IN or name in _registered:
        return
    entry_point = _find_entry_point(name)
    if entry_point is not None:
        load_cell_module(entry_point.module)


def load_cell_module(module: str) -> None:
    """Imports a module that registers cells.

    Args:
        module: a file, `FILE.py`, or the name of an installed module, `PACKAGE.MODULE`.

    Raises:
        UserError: it cannot be imported, or registers no cell.
    """
    before = dict(_registered)
    try:
        if module.endswith(".py"):
            _import_file(Path(module))
        else:
            importlib.import_module(module)
    except (SystemExit, Exception) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"--cell_module={module}: cannot be imported ({type(error).__name__}: {first_line(error)})"
        ) from error
    if _registered == before and not any(cell.__module__ == module for cell in before.values()):
        raise UserError(
            f'--cell_module={module}: registers no cell; decorate one with @tfcharrnn.register_cell("NAME")'
        )


def _import_file(path: Path) -> None:
    """Runs a file as a module of its own, with its folder importable, as Python does for a script."""
    path = path.absolute()
    if not path.is_file():
        raise UserError(f"--cell_module={path}: there is no such file")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != str(path):
        name = f"cell_module_{path.stem}"  # the name of another module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec.loader.exec_module(module)


def _find_entry_point(name: str) -> importlib.metadata.EntryPoint | None:
    """Finds the entry point of an installed package that declares a cell; nothing is imported."""
    return next(iter(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)), None)
