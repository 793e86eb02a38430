"""The errors that a user can mend, each told in one line."""

import sys


class UserError(Exception):
    """A job that could not be done; the message says what, where and how to mend it.

    The commands print the message alone, without a traceback, and exit with code 1.
    """


def first_line(error: BaseException) -> str:
    """What an error from elsewhere says, in one line: its first, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class ConfigError(UserError):
    """A setting whose value is not allowed; the message begins with the flag's name.

    The commands exit with code 2 when it comes from the command line.
    """


def warn(message: str) -> None:
    """Tells the person at the terminal, in one line on standard error, of something that does not stop the work."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
