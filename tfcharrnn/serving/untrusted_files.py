"""Files that older scripts left behind, read without trusting them: vocabularies as pickle, weights as `.npy`.

Pickle is a small program that Python runs while it loads, and it may call anything. Here it is never run: its opcodes
are walked one by one, and only those that write down a dict of strings to integers are known at all.
"""

from __future__ import annotations

import math
import pickletools
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tfcharrnn import files
from tfcharrnn.data.vocabulary import is_symbol
from tfcharrnn.errors import UserError, first_line, short

_MARK = object()
_HIGHEST_PROTOCOL = 5
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
# bytes, as Python 2 pickled its plain strings, come as str; pickletools reads them as Latin-1
_OLD_STRINGS = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})
_STRINGS = frozenset({"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
_INTEGERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"})
_AS_JSON = "write it as JSON instead: json.dump(vocabulary, open('vocab.json', 'w'))"

# what NumPy itself writes is at most 10,000 bytes
_MAX_HEADER = 65_536
_MAX_DIMENSIONS = 8
_ITEM = re.compile(
    r"\s*'(?:(?P<descr>descr)'\s*:\s*'(?P<type>[^']*)'"
    r"|(?P<fortran_order>fortran_order)'\s*:\s*(?P<is_fortran>True|False)"
    r"|(?P<shape>shape)'\s*:\s*\((?P<sizes>[0-9L,\s]*)\))\s*(?:,|$)"
)
_REAL = re.compile(r"[<>=|]?(?:f[248]|[iu][1248])")


def read_pickled_vocabulary(path: str | Path) -> dict[str, int]:
    """Reads a vocabulary that was pickled as a dict of characters to ids, by any protocol; it runs none of it.

    Args:
        path: the file.

    Returns:
        The ids of the symbols, from 0 on.

    Raises:
        UserError: the file is missing, damaged, or holds anything but such a dict; the message names the opcode.
    """
    path = Path(path)
    ids = _interpret(files.read_bytes(path), path)
    for symbol in ids:
        if not is_symbol(symbol):
            raise UserError(f"{path}: {short(symbol)} is no single character, so this is no vocabulary of characters")
    if not ids or sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{path}: its {len(ids)} ids are not 0 to {len(ids) - 1}, each for one character")
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _interpret(data: bytes, path: Path) -> dict[str, int]:
    """The dict that a pickle writes down."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    at, name = 0, ""

    def damaged(why: str) -> UserError:
        return UserError(f"{path}: no pickled vocabulary, or damaged ({why} at byte {at}); {_AS_JSON}")

    def store(pairs: list[Any]) -> None:
        if not stack or not isinstance(stack[-1], dict):
            raise damaged(f"{name} without a dict")
        if len(pairs) % 2:
            raise damaged(f"{name} of a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str) or type(value) is not int:
                raise damaged(f"{type(key).__name__} to {type(value).__name__} where only str to int is read,")
            if key in stack[-1]:
                raise damaged(f"{short(key)} a second time")
            stack[-1][key] = value

    def above_mark() -> list[Any]:
        for place in range(len(stack) - 1, -1, -1):
            if stack[place] is _MARK:
                above = stack[place + 1 :]
                del stack[place:]
                return above
        raise damaged(f"{name} without a mark")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes in a string
            argument: Any
            for opcode, argument, position in pickletools.genops(data):
                name, at = opcode.name, position or 0
                if name in _STRINGS or name in _OLD_STRINGS:
                    if name in _OLD_STRINGS and not argument.isascii():
                        raise damaged("bytes of an unknown encoding")
                    stack.append(argument)
                elif name in _INTEGERS:
                    stack.append(argument)
                elif name == "EMPTY_DICT":
                    stack.append({})
                elif name == "MARK":
                    stack.append(_MARK)
                elif name == "DICT":
                    pairs = above_mark()
                    stack.append({})
                    store(pairs)
                elif name == "SETITEM":
                    pairs = stack[-2:]
                    del stack[-2:]
                    store(pairs)
                elif name == "SETITEMS":
                    store(above_mark())
                elif name in _PUTS or name == "MEMOIZE":
                    if not stack:
                        raise damaged(f"{name} of nothing")
                    memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
                elif name in _GETS:
                    if argument not in memo:
                        raise damaged(f"{name} of what was never put")
                    stack.append(memo[argument])
                elif name == "STOP":
                    break
                elif name == "PROTO":
                    if argument > _HIGHEST_PROTOCOL:
                        raise damaged(f"protocol {argument}")
                elif name == "FRAME":
                    if at + 9 + argument > len(data):
                        raise damaged("a frame that is cut short")
                else:
                    raise UserError(
                        f"{path}: its opcode {name} at byte {at} is refused, as it may make or call anything; "
                        f"only a dict of str to int is read; {_AS_JSON}"
                    )
    except (ValueError, OverflowError, IndexError, TypeError) as error:  # of pickletools
        raise damaged(first_line(error)) from None
    if at + 1 != len(data):
        raise damaged("more after its end")
    if len(stack) != 1 or not isinstance(stack[0], dict):
        raise damaged("something else than one dict")
    return stack[0]


def read_npy(path: str | Path) -> npt.NDArray[Any]:
    """Reads an array of real numbers from a `.npy` file; never runs a pickle.

    The size that the header gives is checked against the file's before any memory is taken.

    Raises:
        UserError: the file is missing or damaged, or its numbers are not real and finite; for an array of objects the
            message says how to convert it.
    """
    path = Path(path)
    try:
        size = files.regular_size(path)
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            _check_header(file, size, path)
            file.seek(0)
            array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); {_SAVE_AGAIN}") from None
    if not np.isfinite(array).all():
        raise UserError(f"{path}: has values that are no finite numbers; take the weights of an earlier step")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


_SAVE_AGAIN = "save it again: numpy.save(path, array.astype('float32'))"


def _check_header(file: BinaryIO, size: int, path: Path) -> None:
    """Checks that a `.npy` file has as many real numbers as it says; NumPy's own reader would take it at its word."""

    def damaged(why: str) -> UserError:
        return UserError(f"{path}: not a .npy file, or damaged ({why}); {_SAVE_AGAIN}")

    start = file.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY":
        raise damaged("it does not begin as one")
    if start[6:] not in (b"\x01\x00", b"\x02\x00"):
        raise damaged(f"version {start[6]}.{start[7]}")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if length > _MAX_HEADER:
        raise damaged(f"a header of {length} bytes")
    header = file.read(length)
    if len(header) < length:
        raise damaged("its header is cut short")
    text = header.decode("latin-1").strip()
    # a list in the place of the type's name is an array of records
    if re.search(r"'descr'\s*:\s*(\[|'[<>=|]?[OV])", text):
        raise UserError(f"{path}: an array of objects, which could run code when it is read, is refused; {_SAVE_AGAIN}")
    found: dict[str, str] = {}
    place, inside = 0, text[1:-1].rstrip()
    while place < len(inside):
        item = _ITEM.match(inside, place)
        if item is None or {name for name in ("descr", "fortran_order", "shape") if item[name]} & found.keys():
            raise damaged("its header is not of the known form")
        found |= {name: item[value] for name, value in _VALUES.items() if item[name]}
        place = item.end()
    if text[:1] + text[-1:] != "{}" or len(found) != 3:
        raise damaged("its header is not of the known form")
    if not _REAL.fullmatch(found["descr"]):
        raise UserError(f"{path}: holds {short(found['descr'])}, no real numbers; {_SAVE_AGAIN}")
    sizes = found["shape"].replace("L", "").replace(" ", "")
    if not re.fullmatch(r"|\d{1,19},|\d{1,19}(,\d{1,19})+,?", sizes):
        raise damaged("its shape is none")
    shape = [int(number) for number in sizes.split(",") if number]
    if len(shape) > _MAX_DIMENSIONS or 0 in shape:
        raise damaged(f"its shape ({sizes}) holds no numbers or has too many dimensions")
    expected = file.tell() + math.prod(shape) * np.dtype(found["descr"]).itemsize
    if expected != size:
        raise damaged(f"a shape of ({sizes}) makes a file of {expected} bytes, and it has {size}")


_VALUES = {"descr": "type", "fortran_order": "is_fortran", "shape": "sizes"}
