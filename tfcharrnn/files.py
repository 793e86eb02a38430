"""Reads and writes files and folders so that nothing is ever half-written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tfcharrnn import portability
from tfcharrnn.errors import UserError, warn
from tfcharrnn.portability import sync

# A vocabulary of every Unicode character, written as JSON escapes, stays well under this.
MAX_JSON_BYTES = 64 * 2**20
# where a folder is kept until the one that replaces it has its name
_REPLACED = "folder"


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal, reading it in chunks."""
    with open_regular(path) as file:
        return open_file_sha256(file)


def open_file_sha256(file: IO[bytes]) -> str:
    """Returns the SHA-256 of an open file in hexadecimal, from its start, reading it in chunks."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, atomically: the new file appears complete, or the old one stays."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=True) + "\n").encode("ascii"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically: the new file appears complete, or the old one stays."""
    with create_file(path) as write:
        write(data)


@contextlib.contextmanager
def create_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yields a function that appends to a new file, which appears complete and synced, or after any error not at all.

    Raises:
        UserError: the write fails.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")

    def write(data: bytes) -> None:
        with _report_write_errors(path):
            file.write(data)

    try:
        with _report_write_errors(path):
            # not through a link that somebody else has put there
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | portability.O_BINARY
            descriptor = os.open(temporary, flags, 0o666)
            _try_lock(descriptor)  # so that it is not taken for a leftover
        file = open(descriptor, "wb")  # noqa: SIM115
        try:
            yield write
            with _report_write_errors(path):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with contextlib.suppress(OSError):  # of the same bytes that could not be flushed
                file.close()
        with _report_write_errors(path):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # it exists only after an error
            temporary.unlink()


@contextlib.contextmanager
def _report_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing, unreadable, too large or not JSON.
    """
    with report_read_errors(path), open_regular(path) as file:
        return parse_json(file, path)


def parse_json(file: IO[bytes], path: Path) -> Any:
    """Parses an open JSON file, from its start.

    Args:
        file: the file.
        path: its path, for error messages.

    Raises:
        OSError: it cannot be read.
        UserError: it is too large or not JSON.
    """
    data = _read_open_file(file, path, MAX_JSON_BYTES)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON; the file is damaged ({type(error).__name__})") from error


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """Reads a file of at most `limit` bytes.

    Raises:
        UserError: the file is missing, unreadable, too large, or a pipe or device, which may never end.
    """
    with report_read_errors(path), open_regular(path) as file:
        return _read_open_file(file, path, limit)


def _read_open_file(file: IO[bytes], path: Path, limit: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        raise UserError(f"{path}: {size} bytes is too large for such a file; it is damaged")
    file.seek(0)
    return file.read(size)  # it may grow meanwhile


@contextlib.contextmanager
def report_read_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` of reading a file into a `UserError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def open_regular(path: Path, *, folder: int | None = None) -> IO[bytes]:
    """Opens a file for reading, without waiting for whoever writes into a pipe.

    Args:
        path: the file.
        folder: descriptor of the folder that contains it, if it may no longer be at `path`.

    Raises:
        OSError: it cannot be opened.
        UserError: it is a pipe or a device, which may never end.
    """
    name = path if folder is None else path.name
    descriptor = os.open(name, os.O_RDONLY | portability.O_NONBLOCK | portability.O_BINARY, dir_fd=folder)
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder raises its own error
            raise _not_regular_error(path)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def regular_file_size(path: Path) -> int:
    """Returns the size of a file in bytes.

    Raises:
        OSError: it is missing.
        UserError: it is a pipe or a device, which may never end.
    """
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # opening a folder raises its own error
        raise _not_regular_error(path)
    return status.st_size


def open_in_place(path: Path, flags: int) -> int:
    """Opens a file to be changed where it is, or creates it; returns its descriptor.

    In a folder from somebody else, a link would lead to a file elsewhere, and a pipe would never end.

    Raises:
        OSError: it cannot be opened.
        UserError: it is a link, a pipe or a device.
    """
    if path.is_symlink():
        raise UserError(f"{path}: is a symbolic link, which may lead out of its folder; put the file itself there")
    try:
        safe = portability.O_NOFOLLOW | portability.O_NONBLOCK | portability.O_BINARY
        descriptor = os.open(path, flags | os.O_CREAT | safe, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a pipe that nobody reads
            raise _not_regular_error(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular_error(path)
    return descriptor


def _not_regular_error(path: Path) -> UserError:
    return UserError(f"{path}: is not a regular file")


@contextlib.contextmanager
def create_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new folder to fill, which appears at `path` complete, or after any error not at all.

    The folder is filled next to its destination, synced to disk and then renamed. What killed processes left of their
    attempts to make the same folder is removed first.

    Args:
        path: the destination.
        overwrite: replace an existing folder, which stays until then, and after an error.

    Yields:
        The temporary folder to write into.

    Raises:
        UserError: `path` exists and `overwrite` is false, or the write fails.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        check_free(path, overwrite)
        with _create_hidden_folder(path, ".tmp") as temporary:
            # mkdtemp makes a private folder; its permissions should follow the umask instead
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o777 & ~umask)
            yield temporary
            publish_folder(temporary, path, overwrite=overwrite)
    except OSError as error:
        raise write_error(path, error) from error


@contextlib.contextmanager
def _create_hidden_folder(path: Path, suffix: str) -> Iterator[Path]:
    """Yields a new folder beside `path`, which other processes do not take for a leftover; removes it at the end."""
    with contextlib.ExitStack() as stack:
        is_locked = False
        while not is_locked:  # another process may take it for a leftover before it is locked
            folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                descriptor = portability.open_folder(folder)
                if descriptor is not None:
                    stack.callback(os.close, descriptor)
                    _try_lock(descriptor, wait=True)
                is_locked = folder.exists()
        yield folder


def _try_lock(descriptor: int, *, wait: bool = False) -> bool:
    """Locks a file or folder until its descriptor is closed; returns whether that was possible."""
    try:
        portability.lock(descriptor, wait=wait)
    except OSError:  # locked by another process; or there are no locks, and leftovers stay
        return False
    return True


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left when they made or replaced a file or folder, and puts back what was replaced.

    What a process is still at is locked, and stays.

    Args:
        path: the file or folder.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.\w+\.(tmp|old)")
    leftovers: list[Path] = []
    with contextlib.suppress(OSError):  # no such folder
        leftovers += [child for child in path.parent.iterdir() if name.fullmatch(child.name)]
    for leftover in leftovers:
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | portability.O_NOFOLLOW | portability.O_NONBLOCK)
            try:
                if _try_lock(descriptor):
                    _remove_leftover(leftover, path)
            finally:
                os.close(descriptor)


def _remove_leftover(leftover: Path, path: Path) -> None:
    if not leftover.is_dir():
        leftover.unlink()
        return
    replaced = leftover / _REPLACED
    if leftover.suffix == ".old" and replaced.is_dir() and not os.path.lexists(path):
        os.rename(replaced, path)
    shutil.rmtree(leftover, ignore_errors=True)


def publish_folder(made: Path, path: Path, *, overwrite: bool) -> None:
    """Syncs a folder to disk and renames it to its destination.

    Args:
        made: the folder, on the same file system.
        path: the destination.
        overwrite: replace an existing folder.

    Raises:
        OSError: the write fails; an existing folder stays.
        UserError: `path` exists and `overwrite` is false.
    """
    for file in sorted(made.rglob("*")):
        sync(file)
    sync(made)
    check_free(path, overwrite)  # again, since making the folder may have taken long
    if os.path.lexists(path):
        _replace_folder(path, made)
    else:
        os.rename(made, path)
    sync(path.parent)


def check_free(path: Path, overwrite: bool) -> None:
    """Checks that there is nothing at `path`, or that it may be replaced.

    Raises:
        UserError: it exists and `overwrite` is false.
    """
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path}: exists already; choose another folder or pass --overwrite")


@contextlib.contextmanager
def ascii_alias(folder: Path) -> Iterator[str]:
    """Yields a path of a folder that TensorFlow can convert; it takes every name for UTF-8.

    That is the folder's own path if it is ASCII. Others are reached through the descriptor of the folder.

    Args:
        folder: an existing folder.
    """
    alias = ""
    with contextlib.ExitStack() as stack:
        if not str(folder).isascii():
            descriptor = portability.open_folder(folder)
            if descriptor is not None:
                stack.callback(os.close, descriptor)
                alias = f"/proc/self/fd/{descriptor}"
        yield alias if os.path.isdir(alias) else str(folder)


def write_error(path: Path, error: OSError) -> UserError:
    """Returns the error to raise when a write fails."""
    return UserError(f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder")


def lock_file(path: Path, to: str, *, wait: bool = False) -> int:
    """Opens and locks a file, writes the owner into it, and returns its descriptor; the lock ends with the process.

    Args:
        path: the file.
        to: what only one process may do at a time, for the warning on a file system without locks.
        wait: wait until the lock is free.

    Raises:
        BlockingIOError: another process holds the lock; the message names it.
        OSError: the file cannot be created.
        UserError: it is a link, a pipe or a device.
    """
    while True:
        descriptor = open_in_place(path, os.O_RDWR)
        try:
            portability.lock(descriptor, wait=wait)
            # the owner removes the file on unlocking; a lock on a removed file excludes nobody
            if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.close(descriptor)
                continue
        except FileNotFoundError:
            os.close(descriptor)
            continue
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise BlockingIOError(owner or "unknown") from None
        except OSError as error:  # no locks
            warn(f"{path.parent}: cannot be locked ({error.strerror}); make sure no other process will {to} there")
        with contextlib.suppress(OSError):  # only needed for the message
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        return descriptor


def unlock_file(path: Path, descriptor: int) -> None:
    """Releases a lock and removes its file."""
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)  # which unlocks


def remove_folder(path: Path) -> None:
    """Removes a folder so that nobody sees half of it: it is renamed to a hidden name first.

    What a process that is killed meanwhile leaves has a name that begins with "." and that of the folder.

    Raises:
        OSError: it cannot be renamed, and stays.
    """
    with _create_hidden_folder(path, ".old") as aside:
        os.rename(path, aside)


def _replace_folder(path: Path, new: Path) -> None:
    """Replaces the folder `path` by the folder `new`; after an error the old one is restored."""
    with _create_hidden_folder(path, ".old") as aside:
        old = aside / _REPLACED
        try:
            os.rename(path, old)
            os.rename(new, path)
        except BaseException:
            if os.path.lexists(old):
                os.rename(old, path)
            raise
