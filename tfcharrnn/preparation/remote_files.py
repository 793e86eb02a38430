"""Reads inputs that have a URL (https://, s3://, gs://, hf://, ...) piece by piece, through fsspec."""

from __future__ import annotations

import contextlib
import io
import re
import urllib.parse
from collections.abc import Iterator
from typing import IO, Any

from tfcharrnn.errors import ConfigError, UserError, first_line

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_INSTALL = "pip install 'tfcharrnn[remote]'"


def is_remote(name: str) -> bool:
    """Whether the name of an input is a URL."""
    return _URL.match(name) is not None


def describe_url(url: str) -> str:
    """Returns a URL without what may be secret: a user, a password, a query, a fragment."""
    scheme, _, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def get_name(url: str) -> str:
    """Returns the last part of the path of a URL, or its host if it has no path."""
    parts = [part for part in describe_url(url).partition("://")[2].split("/") if part]
    return urllib.parse.unquote(parts[-1]) if parts else url.partition("://")[0]


@contextlib.contextmanager
def open_url(url: str) -> Iterator[IO[bytes]]:
    """Opens a URL for one sequential read.

    No message of another library is shown but which package is missing, since it may have the URL with its secrets.

    Yields:
        The content, of which some megabytes are buffered.

    Raises:
        ConfigError: the URL has a password in it, which would be stored with the run.
        UserError: it cannot be opened or read, or a package for it is missing; or it ends early.
    """
    shown = describe_url(url)
    if "@" in url.partition("://")[2].partition("/")[0] and re.match(r"(https?|ftp|sftp|ssh)://", url):
        raise ConfigError(f"--input: {shown} has a user or a password in it; put them into the environment or ~/.netrc")
    try:
        import fsspec.core
    except ImportError:
        raise UserError(f"{shown}: reading a URL needs fsspec; {_INSTALL}") from None
    try:
        file_system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{shown}: a package is missing ({_find_package(url, error)})") from None
    except ValueError:
        raise UserError(f"{shown}: no such kind of URL; use https://, s3://, gs:// or hf://, or a file") from None
    except Exception as error:
        raise _make_error(shown, error) from None
    try:
        file = file_system.open(path, "rb")
    except Exception as error:  # each kind of file system has its own
        raise _make_error(shown, error) from None
    with contextlib.ExitStack() as stack:
        stack.callback(_close, file)
        yield io.BufferedReader(_Reader(file, shown))


def _find_package(url: str, error: ImportError) -> str:
    """Returns what to install for a URL, as fsspec knows it."""
    from fsspec.registry import known_implementations

    known = known_implementations.get(url.partition("://")[0].lower(), {})
    return known.get("err") or first_line(error)


def _make_error(shown: str, error: Exception) -> UserError:
    return UserError(
        f"{shown}: cannot be downloaded ({type(error).__name__}); check the URL, the network and your credentials, or "
        "download it by hand and pass --input=FILE"
    )


def _close(file: Any) -> None:
    with contextlib.suppress(Exception):  # it has been read
        file.close()


class _Reader(io.RawIOBase):
    """A raw reader of fsspec's file, with errors in one line.

    Args:
        file: the open file.
        shown: its URL for messages.
    """

    def __init__(self, file: Any, shown: str):
        self._file, self._shown = file, shown
        size = getattr(file, "size", None)
        self._left = size if isinstance(size, int) and not getattr(file, "compression", None) else None

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Reads the next bytes into a buffer; returns how many."""
        try:
            data = self._file.read(len(buffer))
        except Exception as error:
            raise _make_error(self._shown, error) from None
        buffer[: len(data)] = data
        if self._left is not None:
            self._left -= len(data)
            if not data and self._left > 0:
                raise UserError(f"{self._shown}: ended {self._left:,} bytes early; try again")
        return len(data)
