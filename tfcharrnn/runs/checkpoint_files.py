"""Opens the files of a checkpoint, which then stay readable when a trainer removes it."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tfcharrnn import files, portability
from tfcharrnn.errors import UserError

DESCRIPTION = "checkpoint.json"
# what TensorFlow's files begin with
PREFIX = "ckpt"
_WEIGHTS = re.compile(rf"{PREFIX}\.(index|data-\d{{5}}-of-\d{{5}})")


class CheckpointRemovedError(UserError):
    """The checkpoint was removed or replaced while it was opened; another one has probably taken its place."""


class CheckpointFiles:
    """The files of a checkpoint, open until `close` or until nobody refers to them any more.

    Args:
        path: the folder of the checkpoint.

    Attributes:
        path: the folder.
        names: the names in it that begin like those of TensorFlow's files.

    Raises:
        CheckpointRemovedError: there is no such folder, or it was removed meanwhile.
        UserError: it cannot be read, or a file is a folder, a pipe or a device.
    """

    def __init__(self, path: Path):
        self.path = path
        self._files: dict[str, IO[bytes]] = {}
        stack = contextlib.ExitStack()
        self.close = weakref.finalize(self, stack.close)
        try:
            self._folder = _open_folder(path)
            if self._folder is not None:
                stack.callback(os.close, self._folder)
            with self.report_removal():
                with files.report_read_errors(path):
                    listed = os.listdir(path if self._folder is None else self._folder)
                    self.names = {name for name in listed if name.startswith(f"{PREFIX}.")}
                for name in (DESCRIPTION, *filter(_WEIGHTS.fullmatch, self.names)):
                    with files.report_read_errors(path / name):
                        self._files[name] = stack.enter_context(files.open_regular(path / name, folder=self._folder))
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether the files are open."""
        return self.close.alive

    @contextlib.contextmanager
    def report_removal(self) -> Iterator[None]:
        """Turns a `UserError` of the body into `CheckpointRemovedError` if the folder is no longer in its place."""
        try:
            yield
        except UserError as error:
            with contextlib.suppress(OSError):
                status = os.stat(self.path)
                if self._folder is None or os.path.samestat(os.fstat(self._folder), status):
                    raise
            raise CheckpointRemovedError(str(error)) from None

    def read_description(self) -> Any:
        """Reads `checkpoint.json`.

        Raises:
            UserError: it is unreadable, too large or not JSON.
        """
        path = self.path / DESCRIPTION
        with files.report_read_errors(path):
            return files.parse_json(self._files[DESCRIPTION], path)

    def is_intact(self, name: str, sha256: Any, limit: int) -> bool:
        """Whether a file is among the open ones, has at most `limit` bytes, and this SHA-256 in hexadecimal.

        Raises:
            UserError: it cannot be read.
        """
        if name not in self._files:
            return False
        with files.report_read_errors(self.path / name):
            size = os.fstat(self._files[name].fileno()).st_size
            return size <= limit and files.open_file_sha256(self._files[name]) == sha256

    @contextlib.contextmanager
    def link(self) -> Iterator[str]:
        """Yields a prefix under which TensorFlow finds the open files, wherever they are now.

        TensorFlow opens files by name. The names are links to the descriptors of this process, in a folder of their
        own, so that its path is one that TensorFlow can convert, whatever that of the checkpoint is.
        """
        with contextlib.ExitStack() as stack:
            prefix = self.path / PREFIX
            with contextlib.suppress(OSError):  # no /proc, or nowhere to write: by name, as long as they are there
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tfcharrnn-")))
                for name in self._files:
                    target = Path(f"/proc/self/fd/{self._files[name].fileno()}")
                    os.stat(target)
                    (folder / name).symlink_to(target)
                prefix = folder / PREFIX
            yield str(prefix)


def _open_folder(path: Path) -> int | None:
    """Opens a folder and returns its descriptor, or None where folders have none."""
    with files.report_read_errors(path):
        try:
            return portability.open_folder(path)
        except FileNotFoundError:
            raise CheckpointRemovedError(f"{path}: no such folder") from None
