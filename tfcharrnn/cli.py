"""Shared by the commands: flags made from the config dataclasses, recipes, exit codes, one-line errors."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import os
import re
import secrets
import sys
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from absl import app, flags, logging

from tfcharrnn import cell_registry, devices, flag_help, gpu_diagnosis, startup
from tfcharrnn.config import check_settings
from tfcharrnn.errors import ConfigError, UserError, command_line, first_line

# list flags under the command that defines them, not under this module
flags.disclaim_key_flags()

ConfigT = TypeVar("ConfigT")
_PACKAGE = Path(__file__).parent
RECIPES = _PACKAGE / "recipes"


# Flags


def define_config_flags(*classes: type) -> None:
    """Defines a flag for every field of the config dataclasses."""
    for cls in classes:
        types = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            _define_field_flag(field, types[field.name])


def _define_field_flag(field: dataclasses.Field[Any], kind: Any) -> None:
    name, text = field.name, field.metadata["help"]
    default: Any = field.default
    if field.metadata["choices"] is not None:
        flags.DEFINE_enum(name, default, field.metadata["choices"], text)
    elif kind is bool:
        flags.DEFINE_bool(name, default, text)
    elif name == "seed":
        flags.DEFINE(_SeedParser(), name, default, f"{text} random: another one each time, which is shown.")
    elif kind is int:
        flags.DEFINE_integer(name, default, text)
    elif kind is float:
        flags.DEFINE_float(name, default, text)
    elif kind is str:
        flags.DEFINE_string(name, default, text)
    else:
        define_files_flag(name, text)


def define_files_flag(name: str, text: str) -> None:
    """Defines a flag for the names of files or folders, with its help."""
    flags.DEFINE(FilesParser(), name, [], text, serializer=flags.CsvListSerializer(","))


class FilesParser(flags.ListParser):
    """Parses names separated by commas; one that exists with its comma is taken as it is.

    A name with a comma beside others is put in double quotes: `--input='a.txt,"b, c.txt"'`.
    """

    def parse(self, argument: Any) -> list[str]:
        """Returns the names."""
        is_whole = isinstance(argument, str) and "," in argument and os.path.lexists(decode_argument(argument))
        return [argument] if is_whole else super().parse(argument)


class _SeedParser(flags.IntegerParser):
    """Parses an integer, or `random`, which stands for a seed that is drawn once a process."""

    def parse(self, argument: Any) -> int:
        """Returns the seed."""
        return _draw_seed() if argument == "random" else super().parse(argument)


@functools.cache
def _draw_seed() -> int:
    """Draws a seed and shows it, so that its results can be had again."""
    seed = secrets.randbelow(2**31)
    print_status(f"seed       {seed}")
    return seed


def define_run_flags(more: str = "") -> None:
    """Defines `--run_dir` and `--checkpoint`, the arguments of `load_model`.

    Args:
        more: further values of `--checkpoint` that the command accepts, for its help.
    """
    flags.DEFINE_string("run_dir", "", "The run folder; by default the newest in runs/.")
    known = "latest, best (lowest loss), a step, or a checkpoint folder"
    flags.DEFINE_string("checkpoint", "latest", f"{known}{more}.")
    define_cell_module_flag()


def define_cell_module_flag() -> None:
    """Defines `--cell_module`, which `load_cells` imports."""
    flags.DEFINE_list(
        "cell_module",
        [],
        "Python code that registers cells of your own: FILE.py|MODULE[,...]. It is imported, so name only code that "
        "you trust.",
    )


def define_device_flag() -> None:
    """Defines `--device`, which `load_tensorflow` follows."""
    flags.DEFINE_enum(
        "device", "auto", devices.DEVICES, "What to compute on: cpu, gpu, or auto: the GPUs if there are any that work."
    )


def define_recipe_flag() -> None:
    """Defines `--recipe`, which `run_command` expands."""
    flags.DEFINE_string(
        "recipe",
        "",
        "A recipe that comes with the package, such as gru; a wrong name lists them all. Other flags override it, in "
        "any order. (A --flagfile is overridden only by flags after it.)",
    )


def load_cells(name: str = "") -> tuple[str, ...]:
    """Imports the modules of `--cell_module`, before the settings are checked.

    Args:
        name: a cell that the command line names; the installed package that declares it is imported too.

    Returns:
        The names of the cells that `--cell_module` registers.

    Raises:
        UserError: a module cannot be imported, or registers no cell.
    """
    modules = [decode_argument(module) for module in flags.FLAGS.cell_module]
    if modules or (name and cell_registry.find_installed_module(name)):
        load_tensorflow()
    names = [registered for module in modules for registered in cell_registry.load_cell_module(module)]
    cell_registry.load_named_cell(name)
    return tuple(dict.fromkeys(names))


def parse_settings(*classes: type) -> dict[str, Any]:
    """Returns the settings given on the command line, in a flagfile or in a recipe, by field name.

    Raises:
        ConfigError: a value is out of bounds.
    """
    values: dict[str, Any] = {}
    for cls in classes:
        given: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            flag = flags.FLAGS[field.name]
            if flag.present:
                given[field.name] = tuple(flag.value) if isinstance(flag.value, list) else decode_argument(flag.value)
        if "drop_chars" in given:
            given["drop_chars"] = decode_escapes(given["drop_chars"])
        for name in ("prime", "stop"):
            if name in given:
                given[name] = decode_line_ends(given[name])
        check_settings(cls, given)  # before anything slow starts
        values |= given
    return values


def parse_config(cls: type[ConfigT]) -> ConfigT:
    """Returns the flags' values as a config; raises `ConfigError` if one is out of bounds."""
    return cls(**parse_settings(cls))


def decode_argument(value: Any) -> Any:
    """Decodes a command-line string as UTF-8 where Python, under another locale, did not."""
    if isinstance(value, str):
        with contextlib.suppress(UnicodeError):
            return value.encode("utf-8", "surrogateescape").decode("utf-8")
    return value


def decode_escapes(text: str) -> str:
    r"""Replaces each `\uXXXX` by the character of that code point, which a flagfile or a shell cannot show."""
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)


def decode_line_ends(text: str) -> str:
    r"""Replaces `\n` and `\t`, which a shell does not, by a line end and a tab, and `\\` before them by a backslash."""
    replaced = {"n": "\n", "t": "\t", "\\n": "\\n", "\\t": "\\t"}
    return re.sub(r"\\(\\?[nt])", lambda match: replaced[match[1]], text)


def require_flags(**purposes: str) -> None:
    """Checks that each of these flags has a value.

    Args:
        **purposes: for each flag what to name with it, as in `output_dir="the data folder to create"`.

    Raises:
        ConfigError: one is missing.
    """
    for name, purpose in purposes.items():
        if not flags.FLAGS[name].value:
            raise ConfigError(f"--{name} is missing: name {purpose}")


# Recipes


def describe_recipes() -> str:
    """Returns the recipes' names, each with its flagfile's first comment, one a line."""
    lines = []
    for path in sorted(RECIPES.glob("*.flags")):
        with open(path, encoding="utf-8") as file:
            lines.append(f"  {path.stem:<20}  {file.readline().removeprefix('#').strip()}")
    return "\n".join(lines)


def _read_recipe(name: str) -> list[str]:
    """Returns the flags of a recipe."""
    names = [path.stem for path in sorted(RECIPES.glob("*.flags"))]
    if name not in names:
        hint = f"; did you mean {close[0]}?" if (close := difflib.get_close_matches(name, names, 1)) else ""
        print("Recipes:", describe_recipes(), sep="\n", file=sys.stderr)
        _exit_with_error(f"--recipe={name}: there is no such recipe{hint}", 2)
    return [f"--flagfile={RECIPES / name}.flags"]


def _read_flagfiles(argv: list[str], names: frozenset[str]) -> list[str]:
    """Returns the arguments with flagfiles replaced by their flags, except those of another command.

    Args:
        argv: the arguments.
        names: the flags of the other command, which flagfiles and recipes may have as well.
    """
    expanded, left, rest = [], [], iter(argv)
    for argument in rest:
        if argument in ("--flagfile", "-flagfile") and (name := next(rest, "")):
            argument = f"--flagfile={name}"
        if not argument.startswith(("--flagfile=", "-flagfile=")):
            expanded.append(argument)
            continue
        for line in flags.FLAGS.read_flags_from_files([argument]):
            name = line.lstrip("-").partition("=")[0]
            if name not in flags.FLAGS and {name, name.removeprefix("no")} & names:
                left.append(f"--{name}")
            else:
                expanded.append(line)
    if left:
        print_status(f"left to {command_line('train')}: {', '.join(dict.fromkeys(left))}")
    return expanded


# Running a command


def run_command(
    define_flags: Callable[[], None],
    main: Callable[..., None],
    *,
    takes_arguments: bool = False,
    left_to_train: tuple[type, ...] = (),
    groups: tuple[flag_help.FlagGroup, ...] = (),
) -> typing.NoReturn:
    """Parses the flags, runs a command and exits.

    Exit codes: 0 success; 1 a `UserError`, in one line on standard error; 2 wrong flags; 130 Ctrl-C.

    Args:
        define_flags: defines the command's flags.
        main: the command.
        takes_arguments: `main` takes the arguments that are not flags, as a list; otherwise there must be none.
        left_to_train: config dataclasses whose flags a flagfile or recipe may have, to be left to `train`.
        groups: the flags, as its help shows them.
    """
    _open_standard_streams()
    names = frozenset(field.name for cls in left_to_train for field in dataclasses.fields(cls))
    if names:
        names |= {"cell_module", "device"}
    define_flags()
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    flag_help.define_help_flags(Path(sys.argv[0]).stem, sys.modules[main.__module__].__doc__ or "", groups)

    def run(argv: list[str]) -> None:
        if len(argv) > 1 and not takes_arguments:
            _exit_with_error(f"unexpected argument {argv[1]!r}; {flag_help.suggest_flag(argv[1])}", 2)
        _run_main(lambda: main(argv[1:]) if takes_arguments else main())

    try:
        app.run(run, flags_parser=lambda argv: _parse(argv, names))
    except BrokenPipeError:
        # the reader closed the pipe; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def _open_standard_streams() -> None:
    """Replaces closed standard input and error by empty ones, and ends with an error where standard output is closed.

    Otherwise the next file that is opened, such as a checkpoint, would receive what is meant for the stream.
    """
    for number in range(3):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        _exit_with_error("standard output is closed; redirect it to a file or to /dev/null", 1)


def _parse(argv: list[str], names: frozenset[str]) -> list[str]:
    """Parses the flags; those named `names`, of `train`, are dropped from flagfiles and recipes."""
    rest = _parse_flags(argv, names)
    if "recipe" in flags.FLAGS and flags.FLAGS.recipe:
        # the last of two values wins
        rest = _parse_flags([argv[0], *_read_recipe(flags.FLAGS.recipe), *argv[1:]], names)
    return rest


def _parse_flags(argv: list[str], names: frozenset[str]) -> list[str]:
    try:
        return list(flags.FLAGS(_read_flagfiles(argv, names) if names else argv))
    except flags.CantOpenFlagFileError as error:
        cause = error.__context__
        assert isinstance(cause, OSError)
        _exit_with_error(f"--flagfile={cause.filename}: cannot be read ({cause.strerror})", 2)
    except UnicodeDecodeError:
        _exit_with_error("--flagfile: not a text file", 2)
    except flags.Error as error:
        _exit_with_error(flag_help.explain_flag_error(error), 2)
    except SystemExit:  # absl's --helpxml exits with 1
        sys.stdout.flush()
        sys.exit(0)


def _run_main(main: Callable[[], None]) -> None:
    # whatever the encoding of the terminal; a path that is not UTF-8 is printed unchanged
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if flags.FLAGS.debug:
            traceback.print_exc()
        if isinstance(error, UserError):
            _exit_with_error(str(error), 2 if isinstance(error, ConfigError) else 1)
        if exhausted := devices.explain_exhausted(error):
            _exit_with_error(exhausted, 1)
        _exit_with_error(f"{type(error).__name__}: {first_line(error)} (--debug shows where)", 1)


def _exit_with_error(message: str, code: int) -> typing.NoReturn:
    """Prints `command: message` in one line, for wrong flags with a pointer to `--help`, and exits."""
    script = Path(sys.argv[0])
    call = command_line(script.stem) if script.absolute().parent == _PACKAGE else f"python {script}"
    hint = f" (see {call} --help)" if code == 2 else ""
    print(f"{script.stem}: {message}{hint}", file=sys.stderr)
    sys.exit(code)


def print_status(text: str) -> None:
    """Prints a line on standard error; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def load_tensorflow() -> None:
    """Imports TensorFlow without its native start-up messages, and sets up its devices.

    The messages are shown with `--debug`, or if the import fails.

    Raises:
        UserError: `--device` asks for a GPU, and there is none that can be used.
    """
    if not flags.FLAGS.debug:
        logging.set_verbosity(logging.WARNING)
        os.environ.setdefault(startup.LEVEL_VARIABLE, startup.SILENT)
    with contextlib.nullcontext() if flags.FLAGS.debug else startup.hold_stderr():
        import tensorflow as tf

        gpu_diagnosis.load_cusolver()
        tf.config.list_physical_devices("GPU")  # looks for the GPU driver, which logs more messages
    devices.set_up(flags.FLAGS.device if "device" in flags.FLAGS else "auto")
