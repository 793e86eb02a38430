"""Cells by name: the built-in ones, and those that other modules register.

Code is only ever imported because the person at the keyboard named it: `--cell_module`, `--cell` for an installed
package that declares it, or an `import` in a script. A run folder names its cell, and can make nothing be imported.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tfcharrnn.errors import ConfigError, UserError, find_place, first_line, shorten

if TYPE_CHECKING:
    from tfcharrnn.model.cells import Cell

BUILT_IN = ("rnn", "lstm", "gru", "lnlstm", "mlstm", "mingru", "minlstm", "sru")
# packages declare their cells in this group of entry points, as NAME = MODULE
ENTRY_POINT_GROUP = "tfcharrnn.cells"

_registered: dict[str, type[Cell]] = {}
# the value of --cell_module that registered a cell, unless Python code imported it by itself
_modules: dict[str, str] = {}


def add_cell(name: str, cell_class: type[Cell]) -> None:
    """Makes a cell known as `--cell=name`; see `tfcharrnn.register_cell`."""
    _registered[name] = cell_class
    _modules.pop(name, None)


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
    module = find_installed_module(name)
    if module is not None:
        remedy = f"the installed module {module} has it: add --cell_module={module}"
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
    module = find_installed_module(name)
    if module is None:
        return
    load_cell_module(module)
    if name not in _registered:
        raise UserError(f"--cell={shorten(name)}: an installed package declares it, but {module} does not register it")


def load_cell_module(module: str) -> tuple[str, ...]:
    """Imports a module that registers cells, and returns their names.

    Args:
        module: a file, `FILE.py`, or the name of an installed module, `PACKAGE.MODULE`.

    Raises:
        UserError: it cannot be imported, or registers no cell.
    """
    before = dict(_registered)
    try:
        imported = _import_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    except (SystemExit, Exception) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--cell_module={module}: cannot be imported: {_describe_error(error, module)}") from error
    inside = (imported.__name__, f"{imported.__name__}.")
    names = tuple(
        name
        for name, cell in _registered.items()
        if before.get(name) is not cell or cell.__module__ == inside[0] or cell.__module__.startswith(inside[1])
    )
    if not names:
        raise UserError(
            f'--cell_module={module}: registers no cell; decorate one with @tfcharrnn.register_cell("NAME")'
        )
    _modules.update(dict.fromkeys(names, module))
    return names


def format_module_flag(name: str) -> str:
    """Returns ` --cell_module=...` to append to a command that needs the cell; "" if it needs none."""
    return f" --cell_module={shlex.quote(_modules[name])}" if name in _modules else ""


def find_installed_module(name: str) -> str | None:
    """Finds the module of an installed package that declares a cell; nothing is imported."""
    try:
        declared = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)
        return next((entry_point.module for entry_point in declared), None)
    except (OSError, ValueError, AttributeError):  # the files of some package are damaged
        return None


def _import_file(path: Path) -> ModuleType:
    """Runs a file as a module of its own, with its folder importable, as Python does for a script."""
    if not path.is_file():
        raise UserError(f"--cell_module={path}: there is no such file")
    path = path.absolute()
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
    return module


def _describe_error(error: BaseException, module: str) -> str:
    """Describes in one line why a module cannot be imported, and where."""
    if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
        file = Path(*module.split(".")).with_suffix(".py")
        hint = f"; did you mean --cell_module={file}?" if file.is_file() else "; install it, or name a file, FILE.py"
        return f"there is no module {error.name}{hint}"
    # the message of a syntax error repeats the place
    message = error.msg if isinstance(error, SyntaxError) else first_line(error)
    place = find_place(error)
    return f"{place + ': ' if place else ''}{type(error).__name__}: {message}"
