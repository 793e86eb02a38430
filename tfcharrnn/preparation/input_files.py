"""The files of `--input`: which ones it names, and their bytes, unpacked where gzip or xz packed them."""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from tfcharrnn.errors import UserError, first_line

_MAGIC = {"gzip": b"\x1f\x8b\x08", "xz": b"\xfd7zXZ\x00"}
_LONGEST_MAGIC = max(map(len, _MAGIC.values()))
# what the decompressors raise for a file that is not as it was packed
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def find(named: tuple[str, ...]) -> tuple[str, ...]:
    """The files that `--input` names, in order.

    A pattern (`*`, `?`, `[...]`, and `**` for folders in folders) stands for what it matches, a folder for every
    regular file below it, both sorted by path; of those, hidden and empty files are left out. A name that exists is no
    pattern.

    Raises:
        UserError: a pattern or a folder without a file, or a folder that cannot be read.
    """
    found: list[str] = []
    for name in named:
        if os.path.isdir(name):
            matches = _below(name)
        elif glob.has_magic(name) and not os.path.lexists(name):
            matches = [
                file
                for match in sorted(glob.glob(name, recursive=True))
                for file in (_below(match) if os.path.isdir(match) else [match] if _has_text(match) else [])
            ]
        else:
            found.append(name)
            continue
        if not matches:
            raise UserError(f"{name}: no file with text is there; check --input")
        found += dict.fromkeys(matches)  # `**` matches a folder and what is in it, too
    return tuple(found)


def _below(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:  # a text without some of its files would be another one
        with reading(error.filename):
            raise error

    paths = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [os.path.join(place, name) for name in names if not name.startswith(".")]
    return sorted(filter(_has_text, paths))


def _has_text(path: str) -> bool:
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def packed(start: bytes) -> str:
    """What packed a file that begins with `start`: `gzip`, `xz`, or "" for nothing that is known."""
    return next((kind for kind, magic in _MAGIC.items() if start.startswith(magic)), "")


def is_unpacked_file(path: str) -> bool:
    """Whether this is a file, not a pipe or a device, that nothing packed.

    Raises:
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # to look into a pipe would take away what is there
        return False
    with open(path, "rb") as file:
        return not packed(file.read(_LONGEST_MAGIC))


def read(path: str) -> tuple[bytes, bytes]:
    """A whole file, unpacked, and as it is on disk.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    with reading(path):
        data = Path(path).read_bytes()
        return (_unpacked(io.BytesIO(data), packed(data)).read() if packed(data) else data), data


@contextlib.contextmanager
def unpacked(path: str, member: str = "") -> Iterator[tuple[IO[bytes], Hashing]]:
    """Opens a file to be read from its beginning to its end, unpacked.

    Args:
        path: the file; a pipe is read, too.
        member: if it is a zip archive, what to read of it.

    Yields:
        The text's bytes, and what has been read of the file itself, or of the member.
    """
    with reading(path), contextlib.ExitStack() as stack:
        if member:
            archive = stack.enter_context(zipfile.ZipFile(path))
            raw: IO[bytes] = stack.enter_context(archive.open(member))
            kind = ""
        else:
            raw = stack.enter_context(open(path, "rb"))
            kind = packed(raw.peek(_LONGEST_MAGIC))  # type: ignore[attr-defined]
        hashing = Hashing(raw)
        as_file = cast(IO[bytes], hashing)
        yield (_unpacked(as_file, kind) if kind else as_file), hashing
        while hashing.read(2**20):  # zeros may follow the end of what is packed
            pass


class Hashing(io.BufferedIOBase):
    """A file that counts and sums what is read of it.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes."""
        data = self._file.read(-1 if size is None else size)
        self._digest.update(data)
        self.size += len(data)
        return data

    @property
    def sha256(self) -> str:
        """The SHA-256 so far, in hexadecimal."""
        return self._digest.hexdigest()


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Tells in one line why a file cannot be read."""
    try:
        yield
    except _DAMAGED as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); get the file again") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be read ({reason}); check --input") from None


def _unpacked(file: IO[bytes], kind: str) -> IO[bytes]:
    return gzip.GzipFile(fileobj=file) if kind == "gzip" else lzma.LZMAFile(file)  # type: ignore[return-value]
