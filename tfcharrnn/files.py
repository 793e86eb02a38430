"""Reading and writing small files so that nothing is ever half-written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfcharrnn.errors import UserError, warn

# A vocabulary of every Unicode character, written as JSON escapes, stays well under this.
MAX_JSON_BYTES = 64 * 2**20


def sha256(data: bytes) -> str:
    """The SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    regular_size(path)  # a pipe would never end
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Forces a file's or a folder's content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON: the whole file appears at once, or the old one stays."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=True) + "\n").encode("ascii"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file: the whole of it appears at once, or the old one stays."""
    with new_file(path) as write:
        write(data)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Gives a function that writes a file, which appears whole and on disk, or after any error not at all.

    Raises:
        UserError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def write(data: bytes) -> None:
        with _writing(path):
            file.write(data)

    try:
        with _writing(path):
            file = open(temporary, "wb")  # noqa: SIM115
        with file:
            yield write
            with _writing(path):
                file.flush()
                os.fsync(file.fileno())
        with _writing(path):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # it is there only after an error
            temporary.unlink()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing, unreadable, too large or not JSON.
    """
    data = read_bytes(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON; the file is damaged ({type(error).__name__})") from error


def read_bytes(path: Path) -> bytes:
    """Reads a small file.

    Raises:
        UserError: the file is missing, unreadable, too large, or a pipe or device, which might never end.
    """
    try:
        size = regular_size(path)
        if size > MAX_JSON_BYTES:
            raise UserError(f"{path}: {size} bytes are more than such a file can have; it is damaged")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def regular_size(path: Path) -> int:
    """The size of a file in bytes.

    Raises:
        OSError: it is missing.
        UserError: it is a pipe or a device, which might never end.
    """
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # to open a folder is an error of its own
        raise UserError(f"{path}: is no regular file")
    return status.st_size


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a folder to fill that appears under its name whole, or, after any error, not at all.

    The folder is filled beside its final place, synced to disk and then renamed.

    Args:
        path: the final place.
        overwrite: put it in the place of an existing folder, which stays until then, and for good after an error.

    Yields:
        The temporary folder to write into.

    Raises:
        UserError: `path` exists and `overwrite` is false, or the disk refuses.
    """
    path = Path(path)
    _check_free(path, overwrite)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        # mkdtemp makes a private folder; what is shared by name follows the user's umask
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        yield temporary
        publish(temporary, path, overwrite=overwrite)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def publish(made: Path, path: Path, *, overwrite: bool) -> None:
    """Puts a folder that was made beside it under its name, once all of it is on disk.

    Args:
        made: the folder.
        path: the final place.
        overwrite: put it in the place of one that stands there.

    Raises:
        OSError: the disk refuses; what was there is there.
        UserError: `path` exists and `overwrite` is false.
    """
    for file in sorted(made.rglob("*")):
        sync(file)
    sync(made)
    _check_free(path, overwrite)  # again, for the folder may have been long in the making
    if os.path.lexists(path):
        _replace(path, made)
    else:
        os.rename(made, path)
    sync(path.parent)


def _check_free(path: Path, overwrite: bool) -> None:
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path}: exists already; choose another folder or pass --overwrite")


def cannot_write(path: Path, error: OSError) -> UserError:
    """What to tell where the disk refuses."""
    return UserError(f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder")


def lock(path: Path, to: str, *, wait: bool = False) -> int:
    """Opens and locks a file, which dies with the process, and says in it whose it is; returns its descriptor.

    Args:
        path: the file.
        to: what no two processes may do there at once, for a warning where a file system has no locks.
        wait: until the lock is free.

    Raises:
        BlockingIOError: it is another's; the message says whose.
        OSError: the file cannot be made.
    """
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # whoever unlocks removes the file; a lock on a removed one keeps nobody out
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
        except OSError as error:  # a file system without locks
            warn(f"{path.parent}: cannot be locked ({error.strerror}); let no other process {to} there")
        with contextlib.suppress(OSError):  # it is only for the message
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return descriptor


def unlock(path: Path, descriptor: int) -> None:
    """Ends what `lock` began, and removes the file."""
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)  # which unlocks


def _replace(path: Path, new: Path) -> None:
    """Puts the folder `new` in the place of the folder `path`; after an error the old one is back."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    old = aside / "folder"
    try:
        os.rename(path, old)
        os.rename(new, path)
    except BaseException:
        if os.path.lexists(old):
            os.rename(old, path)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
