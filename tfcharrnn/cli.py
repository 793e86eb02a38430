"""What the commands share: flags made from the config dataclasses, exit codes, and errors in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
import traceback
import typing
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags, logging

from tfcharrnn.errors import ConfigError, UserError, first_line

# the commands' own flags are to be listed under the command, not under this module
flags.disclaim_key_flags()


def define(*classes: type) -> None:
    """Defines a flag for every field of config dataclasses."""
    for cls in classes:
        types = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            _define_field(field, types[field.name])


def define_trained_run(more: str = "") -> None:
    """Defines the flags that name a trained run and its checkpoint, as `restoring.load_model` takes them.

    Args:
        more: what else a command lets `--checkpoint` say, for its help.
    """
    flags.DEFINE_string("run_dir", "", "The run folder; by default the newest in runs/.")
    known = "latest, best (of the least loss), a step, or a checkpoint's folder"
    flags.DEFINE_string("checkpoint", "latest", f"{known}{more}.")


def _define_field(field: dataclasses.Field[Any], kind: Any) -> None:
    name, text = field.name, field.metadata["help"]
    default: Any = field.default
    if field.metadata["choices"] is not None:
        flags.DEFINE_enum(name, default, field.metadata["choices"], text)
    elif kind is bool:
        flags.DEFINE_bool(name, default, text)
    elif kind is int:
        flags.DEFINE_integer(name, default, text)
    elif kind is float:
        flags.DEFINE_float(name, default, text)
    elif kind is str:
        flags.DEFINE_string(name, default, text)
    else:
        flags.DEFINE_list(name, list(default), text)


def settings(*classes: type) -> dict[str, Any]:
    """The values of the flags that were given, on the command line or in a flagfile, by the fields' names.

    Raises:
        ConfigError: a value out of bounds.
    """
    values: dict[str, Any] = {}
    for cls in classes:
        given = {}
        for field in dataclasses.fields(cls):
            flag = flags.FLAGS[field.name]
            if flag.present:
                given[field.name] = tuple(flag.value) if isinstance(flag.value, list) else as_utf8(flag.value)
        cls(**given)  # checks them, before anything slow begins
        values |= given
    return values


def as_utf8(value: Any) -> Any:
    """Reads text from the command line as UTF-8 where Python, under another locale, could not."""
    if isinstance(value, str):
        with contextlib.suppress(UnicodeError):
            return value.encode("utf-8", "surrogateescape").decode("utf-8")
    return value


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs a command; never returns.

    Exit codes: 0 done; 1 a `UserError`, in one line on standard error; 2 wrong flags; 130 Ctrl-C.
    """
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    app.define_help_flags()
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        _fail(str(error).replace("\n", " "), 2)
    except SystemExit:  # absl's help flags leave with 1, though help was wanted and given
        sys.exit(0)
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}; every setting is a flag, --NAME=VALUE", 2)
    return list(rest)


def _guarded(main: Callable[[], None]) -> None:
    # whatever the terminal's own encoding is; a path that is no UTF-8 is printed as it is
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        if flags.FLAGS.debug:
            traceback.print_exc()
        _fail(str(error), 2 if isinstance(error, ConfigError) else 1)
    except BrokenPipeError:
        # the reader of our output has gone, which is its right; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError as error:
        if flags.FLAGS.debug:
            traceback.print_exc()
        _fail(f"not enough memory ({error}); take a smaller --batch_size, --seq_length or --hidden_size", 1)
    except Exception as error:  # a mistake of ours, or something that no check foresaw
        if flags.FLAGS.debug:
            traceback.print_exc()
        _fail(f"{type(error).__name__}: {first_line(error)} (--debug shows where)", 1)


def _fail(message: str, code: int) -> typing.NoReturn:
    script = sys.argv[0]
    command = os.path.splitext(os.path.basename(script))[0]
    ours = os.path.dirname(os.path.abspath(script)) == os.path.dirname(__file__)
    hint = f" (see python {f'-m tfcharrnn.{command}' if ours else script} --help)" if code == 2 else ""
    print(f"{command}: {message}{hint}", file=sys.stderr)
    sys.exit(code)


def say(text: str) -> None:
    """Prints a line for the person at the terminal, on standard error."""
    print(text, file=sys.stderr, flush=True)


def load_tensorflow() -> None:
    """Imports TensorFlow for a command, without the start-up messages that it prints below Python's level.

    They are shown with `--debug`, or if the import fails.
    """
    if not flags.FLAGS.debug:
        logging.set_verbosity(logging.WARNING)
    with contextlib.nullcontext() if flags.FLAGS.debug else _quiet_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices("GPU")  # looks for the driver, which is said then


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, and lets it out if the body fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
