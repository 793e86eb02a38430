"""Runs a command by name: `tfcharrnn NAME` and `python -m tfcharrnn NAME` are `python -m tfcharrnn.NAME`."""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from pathlib import Path

from tfcharrnn.errors import set_command_prefix

COMMANDS = (
    "prepare",
    "train",
    "generate",
    "evaluate",
    "report",
    "plot",
    "novelty",
    "export",
    "import_keras",
    "import_arrays",
    "gradcheck",
    "doctor",
    "launch_local",
)


def main() -> None:
    """Runs the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(list_commands())
        return
    if name == "--version":
        from tfcharrnn import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        closest = difflib.get_close_matches(name.replace("-", "_"), COMMANDS, n=1)
        hint = f"did you mean {closest[0]}?" if closest else "tfcharrnn --help lists the commands"
        print(f"tfcharrnn: there is no command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    set_command_prefix("tfcharrnn " if Path(sys.argv[0]).name == "tfcharrnn" else "python -m tfcharrnn ")
    del sys.argv[1]
    runpy.run_module(f"tfcharrnn.{name}", run_name="__main__", alter_sys=True)


def list_commands() -> str:
    """Returns the help text: every command with the first line of its docstring."""
    lines = ["Usage: tfcharrnn COMMAND [--flag=value ...]", "", "Commands:"]
    for name in COMMANDS:
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")  # importing it would take longer
        summary = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        lines.append(f"  {name:<14} {summary}")
    return "\n".join([*lines, "", "tfcharrnn COMMAND --help lists the flags of a command."])


if __name__ == "__main__":
    main()
