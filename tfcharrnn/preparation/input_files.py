"""Finds the files that `--input` names and reads them, decompressing gzip, xz and Zstandard."""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import importlib
import io
import lzma
import os
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, cast

from tfcharrnn.errors import UserError, first_line
from tfcharrnn.preparation import remote_files

_MAGIC = {"gzip": b"\x1f\x8b\x08", "xz": b"\xfd7zXZ\x00", "zstd": b"\x28\xb5\x2f\xfd"}
_PIECE_BYTES = 2**20
_LONGEST_MAGIC = max(map(len, _MAGIC.values()))
# the backport of Python 3.14's compression.zstd
_ZSTD = "backports.zstd"
# raised by the decompressors for damaged files
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def find_files(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the files that `--input` names, in order.

    A pattern (`*`, `?`, `[...]`, and `**` for nested folders) is replaced by its matches, a folder by all regular
    files below it, both sorted by path; hidden and empty files among these are skipped. A name that exists is never
    taken for a pattern, nor is a URL.

    Raises:
        UserError: a pattern or folder without a file, or an unreadable folder.
    """
    files: list[str] = []
    for name in names:
        if remote_files.is_remote(name):
            files.append(name)
            continue
        if os.path.isdir(name):
            matches = _list_folder(name)
        elif glob.has_magic(name) and not os.path.lexists(name):
            matches = [
                file
                for match in sorted(glob.glob(name, recursive=True))
                for file in (_list_folder(match) if os.path.isdir(match) else [match] if _has_text(match) else [])
            ]
        else:
            files.append(name)
            continue
        if not matches:
            raise UserError(f"{name}: no file with text found; check --input")
        files += dict.fromkeys(matches)  # `**` matches both a folder and its files
    return tuple(files)


def _list_folder(folder: str) -> list[str]:
    def stop(error: OSError) -> None:  # skipping files silently would change the text
        with report_input_errors(error.filename):
            raise error

    paths = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [os.path.join(parent, name) for name in names if not name.startswith(".")]
    return sorted(filter(_has_text, paths))


def _has_text(path: str) -> bool:
    try:
        status = os.stat(path)
    except OSError:  # a dangling link
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def get_name(path: str) -> str:
    """Returns the name of an input for `dataset.json`, never a path."""
    return remote_files.get_name(path) if remote_files.is_remote(path) else Path(path).name


def get_label(path: str) -> str:
    """Returns the name of an input for messages: its path, or its URL without what may be secret."""
    return remote_files.describe_url(path) if remote_files.is_remote(path) else path


def is_uncompressed_file(path: str) -> bool:
    """Whether `path` is a regular file, not a pipe, device or URL, that is not compressed.

    Raises:
        OSError: it cannot be read.
    """
    if remote_files.is_remote(path):
        return False
    if not stat.S_ISREG(os.stat(path).st_mode):  # peeking into a pipe would consume its data
        return False
    with open(path, "rb") as file:
        return not _detect_compression(file.read(_LONGEST_MAGIC))


def read_file(path: str, limit: int) -> tuple[bytes, HashingReader]:
    """Reads a whole file into memory.

    Args:
        path: the file.
        limit: bytes of decompressed content that are too many.

    Returns:
        The decompressed content, and the reader that has counted and hashed the file itself.

    Raises:
        UserError: it cannot be read, is damaged, or holds more than `limit` bytes.
    """
    pieces, size = [], 0
    with open_decompressed(path) as (content, hashing):
        while piece := content.read(_PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise UserError(
                    f"{get_label(path)}: unpacks to more than the {limit:,} bytes that may still be read into memory; "
                    "pass less text at a time"
                )
    return b"".join(pieces), hashing


@contextlib.contextmanager
def open_decompressed(path: str, member: str = "") -> Iterator[tuple[IO[bytes], HashingReader]]:
    """Opens a file for one sequential read of its decompressed content.

    Args:
        path: the file; may be a pipe or a URL.
        member: for a zip archive, the member to read.

    Yields:
        The decompressed content, and the reader that counts and hashes the file (or member) itself.
    """
    label = get_label(path)
    with report_input_errors(label), contextlib.ExitStack() as stack:
        if member:
            archive = stack.enter_context(zipfile.ZipFile(path))
            raw: IO[bytes] = stack.enter_context(archive.open(member))
            kind = ""
        else:
            opened = remote_files.open_url(path) if remote_files.is_remote(path) else open(path, "rb")  # noqa: SIM115
            raw = stack.enter_context(opened)
            kind = _detect_compression(raw.peek(_LONGEST_MAGIC))  # type: ignore[attr-defined]
        hashing = HashingReader(raw)
        as_file = cast(IO[bytes], hashing)
        yield (_decompress(as_file, kind, label) if kind else as_file), hashing
        while hashing.read(2**20):  # padding may follow the compressed data
            pass


class HashingReader(io.BufferedIOBase):
    """A reader that counts and hashes the bytes read through it.

    Attributes:
        size: number of bytes read so far.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads the next bytes."""
        data = self._file.read(-1 if size is None else size)
        self._digest.update(data)
        self.size += len(data)
        return data

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes read so far, in hexadecimal."""
        return self._digest.hexdigest()


@contextlib.contextmanager
def report_input_errors(path: str) -> Iterator[None]:
    """Turns an error of reading a file into a one-line `UserError`."""
    try:
        yield
    except _list_damage_errors() as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); get the file again") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be read ({reason}); check --input") from None


def _list_damage_errors() -> tuple[type[Exception], ...]:
    """Returns what the decompressors that were imported raise for damaged files."""
    zstd = sys.modules.get(_ZSTD)
    return _DAMAGED if zstd is None else (*_DAMAGED, zstd.ZstdError)


def _import_zstd(label: str) -> ModuleType:
    """Imports Python's module for Zstandard, or its backport.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(_ZSTD)
    except ImportError:
        raise UserError(f"{label}: is compressed by zstd, which needs: pip install 'tfcharrnn[zstd]'") from None


def _detect_compression(start: bytes) -> str:
    """Returns `gzip`, `xz`, `zstd` or "" (none) for a file that begins with `start`."""
    return next((kind for kind, magic in _MAGIC.items() if start.startswith(magic)), "")


def _decompress(file: IO[bytes], kind: str, label: str) -> IO[bytes]:
    if kind == "zstd":  # windows of at most 128 MiB are decompressed
        return cast(IO[bytes], _import_zstd(label).ZstdFile(file))
    return gzip.GzipFile(fileobj=file) if kind == "gzip" else lzma.LZMAFile(file)  # type: ignore[return-value]
