"""How workers prove to one another that they belong together: by a token that all of them know.

The token is the value of an environment variable or, without one, a file that the chief puts into the run folder, which
all workers share, until they have met. Without either, workers meet on one machine only, at a loopback address.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfcharrnn import portability
from tfcharrnn.errors import ConfigError, UserError, warn

# the environment variable of the token
TOKEN_VARIABLE = "TFCHARRNN_TOKEN"
# the file of the token in the run folder
_TOKEN_FILE = ".rendezvous"
_MAX_TOKEN_BYTES = 4096


def make_nonce() -> str:
    """Returns random text that is used once, so that an earlier proof proves nothing."""
    return secrets.token_hex(16)


def sign(token: bytes, *parts: str) -> str:
    """Returns the proof of having sent a message: the HMAC-SHA-256 of its parts, in hexadecimal."""
    return hmac.new(token, "\0".join(parts).encode(), hashlib.sha256).hexdigest()


def is_signed(proof: str, token: bytes, *parts: str) -> bool:
    """Whether a proof is that of a message from somebody who knows the token."""
    return hmac.compare_digest(proof.encode(), sign(token, *parts).encode())


@contextlib.contextmanager
def share_token(run_dir: Path | None) -> Iterator[bytes]:
    """Yields the token for the chief, which the other workers can read during the body; empty: there is none.

    Raises:
        UserError: the run folder cannot be written.
    """
    if run_dir is None or os.environ.get(TOKEN_VARIABLE):
        yield os.environ.get(TOKEN_VARIABLE, "").encode()
        return
    token, path = secrets.token_hex(32).encode(), run_dir / _TOKEN_FILE
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        temporary = run_dir / f"{_TOKEN_FILE}.{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        # for this user alone, and not through somebody's link
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(token)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written ({error.strerror}); choose another --run_dir") from None
    try:
        yield token
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
            run_dir.rmdir()  # a new run makes its folder when its settings have been checked


def read_token(run_dir: Path | None) -> bytes | None:
    """Returns the token for a worker other than the chief; empty: there is none; None: not shared yet."""
    if run_dir is None or os.environ.get(TOKEN_VARIABLE):
        return os.environ.get(TOKEN_VARIABLE, "").encode()
    try:
        descriptor = os.open(run_dir / _TOKEN_FILE, os.O_RDONLY | portability.O_NOFOLLOW | portability.O_NONBLOCK)
    except OSError:
        return None
    with contextlib.suppress(OSError), open(descriptor, "rb") as file:
        return file.read(_MAX_TOKEN_BYTES) or None
    return None


def parse_address(address: str) -> tuple[str, int]:
    """Returns the host and the port of a worker's address, `host:port`.

    Raises:
        ConfigError: it is malformed.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 2**16:
        raise ConfigError(
            f"TF_CONFIG: the address of a worker must be host:port, with a port up to 65535. Received: {address}"
        )
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether a numeric address can be reached only from this machine."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def warn_if_public(addresses: Sequence[str]) -> None:
    """Warns of the first worker at an address that can be reached from the whole internet, if there is one."""
    for index, address in enumerate(addresses):
        host, port = parse_address(address)
        with contextlib.suppress(OSError, UnicodeError):  # a name that is unknown here is no address
            for *_, resolved in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                if ipaddress.ip_address(str(resolved[0]).partition("%")[0]).is_global:
                    warn(
                        f"worker {index} at {address} has a public address, and whoever reaches it can run code in the "
                        "worker, since TensorFlow's ports have no password; use a private network, or a firewall"
                    )
                    return
