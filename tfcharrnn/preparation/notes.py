"""Notes on finished work in a staging folder, and the checksums by which it is known again.

A note is a JSON value with its checksum. A file is described by its size and SHA-256. Nothing that an interrupted
preparation left is used before its checksum was verified.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tfcharrnn import files
from tfcharrnn.errors import UserError

ValueT = TypeVar("ValueT")


class FileContent(NamedTuple):
    """What a complete file contains.

    Attributes:
        size: its size in bytes.
        sha256: its SHA-256 in hexadecimal.
    """

    size: int
    sha256: str


def describe_file(path: Path) -> FileContent:
    """Describes the content of a file that was just written.

    Raises:
        UserError: it cannot be read.
    """
    with files.report_read_errors(path):
        return FileContent(path.stat().st_size, files.file_sha256(path))


def is_intact(path: Path, content: FileContent) -> bool:
    """Whether a file is there and has this content."""
    try:
        status = path.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_size == content.size and describe_file(path) == content
    except (OSError, UserError):
        return False


def write_note(path: Path, value: Any) -> None:
    """Writes a JSON value with its checksum.

    Raises:
        UserError: the write fails.
    """
    files.write_bytes(path, json.dumps({"sha256": _hash_json(value), "value": value}).encode())


def read_note(path: Path, parse: Callable[[Any], ValueT]) -> ValueT | None:
    """Reads a value that `write_note` wrote.

    Args:
        path: the note.
        parse: makes the result from the JSON value.

    Returns:
        The result; None if the note is missing, damaged, or of another form than `parse` expects.
    """
    try:
        note = files.read_json(path)
        if isinstance(note, dict) and note.get("sha256") == _hash_json(note.get("value")):
            return parse(note["value"])
    except (UserError, RecursionError, KeyError, IndexError, TypeError, ValueError, AttributeError):
        pass
    return None


def _hash_json(value: Any) -> str:
    return files.sha256(json.dumps(value).encode())


def remove_all_but_files(folder: Path, *, keep: str = "") -> None:
    """Removes everything from a folder that is no regular file, and hidden files, which killed processes left.

    Args:
        folder: the folder, which is made if there is none.
        keep: the name of a subfolder that stays.

    Raises:
        OSError: something cannot be removed.
    """
    if os.path.islink(folder) or not folder.is_dir():
        remove(folder)
        folder.mkdir(parents=True)
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        is_kept = stat.S_ISDIR(mode) if path.name == keep else stat.S_ISREG(mode) and not path.name.startswith(".")
        if not is_kept:
            remove(path)


def remove(path: Path) -> None:
    """Removes a file, a link (not what it points to) or a folder, if there is one.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
