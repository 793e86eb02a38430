"""The help of a command, with its flags in groups, and hints at the flag that is meant by a wrong one."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Collection
from typing import NamedTuple

from absl import app, flags

from tfcharrnn.errors import command_line

# longer lines are hard to read
_MAX_WIDTH = 100
_INDENT = 26


class FlagGroup(NamedTuple):
    """Flags that are shown together.

    Attributes:
        title: the heading.
        first: flags that `--help` explains, in this order.
        more: flags that `--help` names and `--helpfull` explains; a config dataclass stands for those of its fields
            that no group names.
    """

    title: str
    first: tuple[str, ...]
    more: tuple[str | type, ...] = ()

    def expand(self, named: Collection[str]) -> list[str]:
        """Returns the names of all flags; `named` are those that groups name."""
        names = [*self.first]
        for item in self.more:
            if isinstance(item, str):
                names.append(item)
            else:
                names += [field.name for field in dataclasses.fields(item) if field.name not in named]
        return names


def define_help_flags(command: str, description: str, groups: tuple[FlagGroup, ...]) -> None:
    """Defines `--help` (`-h`) and `--helpfull`, which print the help and exit, in place of absl's.

    Args:
        command: the name of the command.
        description: what it does.
        groups: its flags; one that is in none of them is in a last group. With no groups, `--help` explains all.
    """
    app.define_help_flags()
    for name in ("help", "?", "helpshort", "helpfull"):
        delattr(flags.FLAGS, name)

    def define(name: str, short_name: str | None, text: str, *, full: bool) -> None:
        def show() -> None:
            print(describe_command(command, description, groups, full=full))

        flags.DEFINE_flag(_HelpFlag(name, short_name, text, show))

    define("help", "h", "Show the flags that matter most.", full=not groups)
    define("helpfull", None, "Show all flags.", full=True)


class _HelpFlag(flags.BooleanFlag):
    """A flag that prints something and ends the process."""

    def __init__(self, name: str, short_name: str | None, text: str, show: Callable[[], None]):
        super().__init__(name, False, text, short_name=short_name)
        self._show = show

    def parse(self, argument: typing.Any) -> None:
        """Prints and exits, unless the flag is set to false."""
        if self._parse(argument):
            self._show()
            sys.stdout.flush()
            sys.exit(0)


def describe_command(command: str, description: str, groups: tuple[FlagGroup, ...], *, full: bool) -> str:
    """Returns the help of a command.

    Args:
        command: its name.
        description: what it does.
        groups: its flags.
        full: explain all flags, not only the first of each group.
    """
    defined = filter(_is_own, flags.FLAGS.flag_values_dict())  # in the order of their definitions
    parts, seen = [description.strip(), f"Usage: {command_line(command)} [--NAME=VALUE ...]"], {"help", "helpfull"}
    named = {name for group in groups for name in (*group.first, *group.more) if isinstance(name, str)}
    for group in (*groups, FlagGroup("Other" if groups else "Flags", (), (*defined, "flagfile"))):
        names = [name for name in group.expand(named) if name not in seen]
        explained = [name for name in names if full or name in group.first]
        lines = [_describe_flag(name) for name in explained]
        if rest := [f"--{name}" for name in names if name not in explained]:
            lines.append(_wrap(f"also {' '.join(rest)}", "  ", "    "))
        if lines:
            parts.append("\n".join([f"{group.title}:", *lines]))
        seen.update(names)
    more = "" if full else f"\n{command_line(command)} --helpfull explains all flags."
    parts.append(f"The values are the defaults; --noNAME switches NAME off.{more}")
    return "\n\n".join(parts)


def _is_own(name: str) -> bool:
    """Tells whether a flag is the command's, not absl's."""
    module = flags.FLAGS.find_module_defining_flag(name, "")
    return not str(module).startswith("absl.") and name == flags.FLAGS[name].name


def _describe_flag(name: str) -> str:
    """Returns a flag with its default and help, which has the choices, in lines that fit the terminal."""
    if name == "flagfile":
        return _align("  --flagfile=", "Read flags from this file, one a line; flags after it override them.")
    flag = flags.FLAGS[name]
    default = flag.default_as_str or "''"
    default = default[1:-1].replace("\n", r"\n") if default[0] in "'\"" else default
    text = " ".join((flag.help or "").split())
    if flag.boolean:
        head = f"  --[no]{flag.name}={default}" if default == "true" else f"  --{flag.name}"
    else:
        head = f"  --{flag.name}={shlex.quote(default) if ' ' in default else default}"
    return _align(head, text)


def _align(head: str, text: str) -> str:
    """Returns a flag and its help in two columns."""
    if len(head) < _INDENT:
        return _wrap(text, head.ljust(_INDENT), " " * _INDENT)
    return f"{head}\n{_wrap(text, ' ' * _INDENT, ' ' * _INDENT)}"


def _wrap(text: str, first: str, others: str) -> str:
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH) - 1
    return textwrap.fill(
        text,
        max(width, 2 * _INDENT),
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
        break_long_words=False,
    )


# Hints


# what people type for a flag, from other programs
_SYNONYMS = {
    "lr": "learning_rate",
    "rate": "learning_rate",
    "layers": "num_layers",
    "hidden": "hidden_size",
    "units": "hidden_size",
    "rnn_size": "hidden_size",
    "embedding": "embedding_size",
    "batch": "batch_size",
    "seq_len": "seq_length",
    "block_size": "seq_length",
    "model": "cell",
    "file": "input",
    "text": "input",
    "data": "input",
    "output": "run_dir",
    "out_dir": "run_dir",
    "dir": "run_dir",
    "temp": "temperature",
    "n": "length",
    "num_chars": "length",
    "start": "prime",
    "prompt": "prime",
    "samples": "num_samples",
}


def explain_flag_error(error: flags.Error) -> str:
    """Returns the message of a wrong flag in one line, with the flag that is meant."""
    if not isinstance(error, flags.UnrecognizedFlagError):
        return str(error).replace("\n", " ")
    name = error.flagname.replace("-", "_")
    close = difflib.get_close_matches(_SYNONYMS.get(name, name), list(flags.FLAGS), 1)
    return f"there is no flag --{error.flagname}" + (f"; did you mean --{close[0]}?" if close else "")


def suggest_flag(argument: str) -> str:
    """Returns the flag that may be meant by an argument without one."""
    name = next((name for name in ("input", "run_dir") if name in flags.FLAGS), "")
    if name and os.path.exists(argument):
        return f"did you mean --{name}={shlex.quote(argument)}?"
    return "every setting is a flag, --NAME=VALUE"
