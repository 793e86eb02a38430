"""Calls of the operating system that some systems lack, such as Windows, and what is done there instead.

Without locks, a warning asks that only one process be at work in a folder, and what killed processes left stays.
Without descriptors of folders, a folder is found by its name and not flushed to disk by itself.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

# flags of `os.open`; one that the system lacks changes nothing
O_DIRECTORY: int = getattr(os, "O_DIRECTORY", 0)
O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
O_BINARY: int = getattr(os, "O_BINARY", 0)
# signals that ask a process to end
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def lock(descriptor: int, *, wait: bool) -> None:
    """Locks an open file or folder until its descriptor is closed.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is false.
        OSError: the system or the file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, "this system has no locks of files")
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def open_folder(path: Path) -> int | None:
    """Opens a folder and returns its descriptor, or None where folders have none.

    Raises:
        OSError: it cannot be opened.
    """
    return os.open(path, os.O_RDONLY | O_DIRECTORY) if O_DIRECTORY else None


def sync(path: Path) -> None:
    """Flushes a file or folder to disk; a folder only where the system can.

    Raises:
        OSError: it cannot be opened, or the file cannot be flushed.
    """
    is_folder = path.is_dir()
    if is_folder and not O_DIRECTORY:
        return
    # a file must be open for writing on systems without descriptors of folders
    descriptor = os.open(path, (os.O_RDONLY if O_DIRECTORY else os.O_RDWR) | O_BINARY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # of a file system that cannot
            raise
    finally:
        os.close(descriptor)


def has_timers() -> bool:
    """Tells whether a signal can interrupt a computation after a time."""
    return hasattr(signal, "setitimer")


def can_fork() -> bool:
    """Tells whether a process can make a copy of itself."""
    return hasattr(os, "fork")
