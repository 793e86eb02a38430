"""Reads files of other programs without running code from them: pickled vocabularies and `.npy` weights.

A pickle is a program that can call anything while Python loads it. It is never loaded here: its opcodes are interpreted
one by one, and only those that build a dict of strings to integers are supported.
"""

from __future__ import annotations

import json
import math
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfcharrnn import files
from tfcharrnn.errors import UserError, first_line, shorten
from tfcharrnn.symbols import is_symbol

Array = npt.NDArray[np.floating[Any]]

_MARK = object()
_HIGHEST_PROTOCOL = 5
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
# Python 2's byte strings, which pickletools decodes as Latin-1
_OLD_STRINGS = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})
_STRINGS = frozenset({"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
_INTEGERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"})
_WRITTEN_INTEGERS = frozenset({"INT", "LONG"})
_AS_JSON = "write it as JSON instead: json.dump(vocabulary, open('vocab.json', 'w'))"

# how protocols 2 and later, 0 and 1 begin a dict
_PICKLE_STARTS = (b"\x80", b"(d", b"}q", b"}.")
_VOCABULARY_FORMATS = (
    "pass a JSON list of symbols, a JSON object or a pickled dict from symbols to ids, or one symbol a line"
)
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\\": "\\"}
_UNICODE_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}")

_SAVE_AGAIN = "save it again: numpy.save(path, array.astype('float32'))"

_MAX_HEADER_BYTES = 65_536  # NumPy writes at most 10,000
_MAX_DIMENSIONS = 8
_HEADER_ITEM = re.compile(
    r"\s*'(?:(?P<descr>descr)'\s*:\s*'(?P<type>[^']*)'"
    r"|(?P<fortran_order>fortran_order)'\s*:\s*(?P<is_fortran>True|False)"
    r"|(?P<shape>shape)'\s*:\s*\((?P<sizes>[0-9L,\s]*)\))\s*(?:,|$)"
)
_HEADER_VALUES = {"descr": "type", "fortran_order": "is_fortran", "shape": "sizes"}
_REAL_TYPE = re.compile(r"[<>=|]?(?:f[248]|[iu][1248])")
_TEXT_TYPE = re.compile(r"[<>=]?U[1-9]")


def read_vocabulary(path: str | Path) -> list[str]:
    r"""Reads the symbols of another program's vocabulary, in id order; the content decides about the format.

    It is a JSON list of symbols, a JSON object or a pickled dict from symbols to ids, or one symbol a line, where an
    escape (`\n`, `\t`, `\\` or `\uXXXX`) or two empty lines stand for characters that have no line of their own.

    Raises:
        UserError: the file is none of these, an id or symbol occurs twice, or an id is missing.
    """
    path = Path(path)
    data = files.read_bytes(path)
    if path.suffix in (".pkl", ".pickle") or data.startswith(_PICKLE_STARTS):
        return list(read_pickled_vocabulary(path))
    value = _parse_vocabulary(path, data)
    if isinstance(value, dict) and set(value) == {"format", "symbols"}:  # this library's vocab.json
        value = value["symbols"]
    if isinstance(value, dict):
        if sorted(map(repr, value.values())) != sorted(map(repr, range(len(value)))):
            raise UserError(f"{path}: its ids must be 0 to {len(value) - 1}, each for one character")
        value = sorted(value, key=value.__getitem__)
    wrong = [symbol for symbol in value if not (isinstance(symbol, str) and is_symbol(symbol))]
    if wrong or not value:
        what = f"{shorten(wrong[0])} is not a single character" if wrong else "it is empty"
        raise UserError(f"{path}: not a vocabulary ({what}); {_VOCABULARY_FORMATS}")
    if len(set(value)) < len(value):
        raise UserError(f"{path}: lists a character twice; each needs an id of its own")
    return list(value)


def _parse_vocabulary(path: Path, data: bytes) -> list[Any] | dict[str, Any]:
    """Parses a vocabulary as JSON or, if it is none, as lines."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, (list, dict)):
        return value
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a vocabulary (it is not UTF-8); {_VOCABULARY_FORMATS}") from None
    lines = text.removesuffix("\n").replace("\r\n", "\n").split("\n")
    symbols: list[str] = []
    for line in lines:
        if not line and symbols and symbols[-1] == "":
            symbols[-1] = "\n"
        else:
            symbols.append(_ESCAPES.get(line, chr(int(line[2:], 16)) if _UNICODE_ESCAPE.fullmatch(line) else line))
    return symbols


def read_pickled_vocabulary(path: str | Path) -> dict[str, int]:
    """Reads a vocabulary pickled, with any protocol, as a dict of characters to ids.

    Returns:
        The id of each symbol, from 0 on in order.

    Raises:
        UserError: the file is missing, damaged, or holds anything else; the message names the opcode.
    """
    path = Path(path)
    ids = _DictInterpreter(path).run(files.read_bytes(path))
    for symbol in ids:
        if not is_symbol(symbol):
            raise UserError(f"{path}: {shorten(symbol)} is not a single character; {_AS_JSON}")
    if not ids or sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{path}: its {len(ids)} ids are not 0 to {len(ids) - 1}, each once; {_AS_JSON}")
    return dict(sorted(ids.items(), key=lambda item: item[1]))


class _DictInterpreter:
    """Interprets a pickle that builds a dict of strings to integers, and rejects any other."""

    def __init__(self, path: Path):
        self._path = path
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._opcode, self._position = "", 0

    def run(self, data: bytes) -> dict[str, int]:
        """Returns the dict that a pickle builds.

        Raises:
            UserError: the pickle is damaged or builds anything else.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in a string
                argument: Any
                for opcode, argument, position in pickletools.genops(data):
                    self._opcode, self._position = opcode.name, position or 0
                    if self._opcode == "STOP":
                        break
                    if self._opcode == "FRAME" and self._position + 9 + argument > len(data):
                        raise self._make_error("a truncated frame")
                    if self._opcode in _WRITTEN_INTEGERS:
                        end = data.index(b"\n", self._position)
                        written = data[self._position + 1 : end].removesuffix(b"L")
                        if written != b"%d" % argument:  # Python's two unpicklers read 010 as an error and as 8
                            raise self._make_error(f"{self._opcode} of {shorten(written)}")
                    self._execute(argument)
        except (ValueError, OverflowError, IndexError, TypeError) as error:  # pickletools raises these
            raise self._make_error(first_line(error)) from None
        if self._position + 1 != len(data):
            raise self._make_error("data after its end")
        if len(self._stack) != 1 or not isinstance(self._stack[0], dict):
            raise self._make_error("not a single dict")
        return self._stack[0]

    def _execute(self, argument: Any) -> None:
        """Executes the current opcode, other than STOP."""
        name, stack = self._opcode, self._stack
        if name in _OLD_STRINGS and not argument.isascii():
            raise self._make_error("bytes in an unknown encoding")
        if name in _STRINGS or name in _OLD_STRINGS or name in _INTEGERS:
            stack.append(argument)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "DICT":
            pairs = self._pop_to_mark()
            stack.append({})
            self._store(pairs)
        elif name == "SETITEM":
            pairs = stack[-2:]
            del stack[-2:]
            self._store(pairs)
        elif name == "SETITEMS":
            self._store(self._pop_to_mark())
        elif name in _PUTS or name == "MEMOIZE":
            if not stack or stack[-1] is _MARK:
                raise self._make_error(f"{name} without a value")
            if name != "MEMOIZE" and argument < 0:  # only PUT, a line of text, can say so; Python refuses it too
                raise self._make_error(f"{name} to the memo entry {argument}")
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in _GETS:
            if argument not in self._memo:
                raise self._make_error(f"{name} of an unset memo entry")
            stack.append(self._memo[argument])
        elif name == "PROTO":
            if argument > _HIGHEST_PROTOCOL:
                raise self._make_error(f"protocol {argument}")
        elif name != "FRAME":
            raise UserError(
                f"{self._path}: its opcode {name} at byte {self._position} is not supported, since it could run code; "
                f"only a dict of str to int is; {_AS_JSON}"
            )

    def _store(self, pairs: list[Any]) -> None:
        """Stores alternating keys and values in the dict on top of the stack."""
        if not self._stack or not isinstance(self._stack[-1], dict):
            raise self._make_error(f"{self._opcode} without a dict")
        if len(pairs) % 2:
            raise self._make_error(f"{self._opcode} of a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str) or type(value) is not int:
                raise self._make_error(f"{type(key).__name__} to {type(value).__name__} instead of str to int")
            if key in self._stack[-1]:
                raise self._make_error(f"{shorten(key)} twice")
            self._stack[-1][key] = value

    def _pop_to_mark(self) -> list[Any]:
        """Removes the last mark and everything above it from the stack; returns what was above."""
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                above = self._stack[index + 1 :]
                del self._stack[index:]
                return above
        raise self._make_error(f"{self._opcode} without a mark")

    def _make_error(self, reason: str) -> UserError:
        return UserError(
            f"{self._path}: not a pickled vocabulary, or damaged ({reason} at byte {self._position}); {_AS_JSON}"
        )


def read_npy(path: str | Path) -> npt.NDArray[Any]:
    """Reads an array of real numbers from a `.npy` file without unpickling anything.

    The size in the header is checked against that of the file before memory is allocated.

    Raises:
        UserError: the file is missing or damaged, or its values are not real finite numbers; for an array of objects,
            the message says how to convert it.
    """
    path = Path(path)
    try:
        size = files.regular_file_size(path)
        with open(path, "rb") as file:
            array = _read_array(file, size, str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    return array


class NpzContent(NamedTuple):
    """The content of a `.npz` file.

    Attributes:
        arrays: arrays of real numbers, by name.
        symbols: the array `symbols`, or None if there is none.
    """

    arrays: dict[str, Array]
    symbols: list[str] | None


def read_npz(path: str | Path, shapes: Mapping[str, tuple[int, ...]], ignored: tuple[str, ...] = ()) -> NpzContent:
    """Reads arrays of real numbers, and the strings `symbols`, from a `.npz` file without unpickling anything.

    Args:
        path: the file.
        shapes: the arrays that it must have, by name, with their shapes; no larger one is read.
        ignored: prefixes of names that it may have as well.

    Raises:
        UserError: the file is missing or damaged; an array is missing, unknown, of another shape, or not of real
            finite numbers.
    """
    path = Path(path)
    try:
        files.regular_file_size(path)
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            known = members.keys() - {"symbols", *(name for name in members if name.startswith(ignored))}
            for name in sorted(shapes.keys() ^ known):
                what = "missing" if name in shapes else "unknown"
                raise UserError(f"{path}: the array {shorten(name)} is {what}; it must have {', '.join(shapes)}")

            def read(name: str, shape: tuple[int, ...] | None, types: re.Pattern[str]) -> npt.NDArray[Any]:
                with archive.open(members[name]) as file:
                    return _read_array(file, members[name].file_size, f"{path}: {name}", shape, types)

            arrays = {name: read(name, shape, _REAL_TYPE) for name, shape in shapes.items()}
            symbols = None
            if "symbols" in members and members["symbols"].file_size < files.MAX_JSON_BYTES:
                # NumPy drops the zero characters at the end of a string
                symbols = [symbol or "\0" for symbol in read("symbols", None, _TEXT_TYPE).ravel().tolist()]
            return NpzContent(arrays, symbols)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a .npz file, or damaged ({first_line(error)})") from None


def _read_array(
    file: IO[bytes],
    size: int,
    where: str,
    shape: tuple[int, ...] | None = None,
    types: re.Pattern[str] = _REAL_TYPE,
) -> npt.NDArray[Any]:
    """Reads the array of a `.npy` file of `size` bytes, checked before it is read; `shape` is the one it must have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers written by Python 2
        found = _check_header(file, size, where, types)
        if shape is not None and found != shape:
            raise UserError(f"{where}: has shape {found}, but needs {shape}")
        file.seek(0)
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise UserError(f"{where}: damaged ({first_line(error)}); {_SAVE_AGAIN}") from None
    if array.dtype.kind != "U" and not np.isfinite(array).all():
        raise UserError(f"{where}: has values that are not finite; use the weights of an earlier step")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_header(file: IO[bytes], size: int, where: str, types: re.Pattern[str]) -> tuple[int, ...]:
    """Checks that a `.npy` file is as large as its header says, which NumPy trusts, and that its type is in `types`.

    Returns:
        The shape of the array.
    """

    def make_error(reason: str) -> UserError:
        return UserError(f"{where}: not a .npy file, or damaged ({reason}); {_SAVE_AGAIN}")

    start = file.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY":
        raise make_error("no .npy signature")
    if start[6:] not in (b"\x01\x00", b"\x02\x00"):
        raise make_error(f"version {start[6]}.{start[7]}")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if length > _MAX_HEADER_BYTES:
        raise make_error(f"a header of {length} bytes")
    header = file.read(length)
    if len(header) < length:
        raise make_error("a truncated header")
    text = header.decode("latin-1").strip()
    # a list instead of a type name means an array of records
    if re.search(r"'descr'\s*:\s*(\[|'[<>=|]?[OV])", text):
        raise UserError(
            f"{where}: an array of objects is not supported, since reading it could run code; {_SAVE_AGAIN}"
        )
    header_items: dict[str, str] = {}
    position, inside = 0, text[1:-1].rstrip()
    while position < len(inside):
        item = _HEADER_ITEM.match(inside, position)
        if item is None or {name for name in _HEADER_VALUES if item[name]} & header_items.keys():
            raise make_error("an invalid header")
        header_items |= {name: item[value] for name, value in _HEADER_VALUES.items() if item[name]}
        position = item.end()
    if text[:1] + text[-1:] != "{}" or len(header_items) != 3:
        raise make_error("an invalid header")
    if not types.fullmatch(header_items["descr"]):
        raise UserError(f"{where}: holds {shorten(header_items['descr'])}, not real numbers; {_SAVE_AGAIN}")
    sizes = header_items["shape"].replace("L", "").replace(" ", "")
    if not re.fullmatch(r"|\d{1,19},|\d{1,19}(,\d{1,19})+,?", sizes):
        raise make_error("an invalid shape")
    shape = [int(number) for number in sizes.split(",") if number]
    if len(shape) > _MAX_DIMENSIONS or 0 in shape:
        raise make_error(f"the shape ({sizes}) is empty or has too many dimensions")
    expected = file.tell() + math.prod(shape) * np.dtype(header_items["descr"]).itemsize
    if expected != size:
        raise make_error(f"a shape of ({sizes}) needs a file of {expected} bytes, but it has {size}")
    return tuple(shape)
