"""Commands whose standard streams were closed by whoever started them."""

import subprocess
import sys

import pytest

from tfcharrnn import cli

# a command that says what it reads and opens a file, which must not become one of the standard streams
CODE = """
import sys, tempfile
from tfcharrnn import cli

def main():
    cli.print_status(f"read {sys.stdin.read()!r}")
    with tempfile.TemporaryFile() as file:
        print(file.fileno() > 2)

cli.run_command(lambda: None, main)
"""


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_input_and_error_are_empty(closed):
    script = f'exec "$0" -c "$1" {closed}'
    done = subprocess.run(["bash", "-c", script, sys.executable, CODE], input=b"x", capture_output=True, timeout=60)
    said = "" if "2>&-" in closed else "read ''\n" if "<&-" in closed else "read 'x'\n"
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "True\n", said)


def test_closed_output_is_an_error():
    script = 'exec "$0" -c "$1" >&-'
    done = subprocess.run(["bash", "-c", script, sys.executable, CODE], input=b"x", capture_output=True, timeout=60)
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 1 and "standard output is closed" in line


def test_code_points_stand_for_characters_that_a_flagfile_cannot_show():
    assert cli.decode_escapes(r"\ufeff$\u00E9\\u12 \U0041") == "\ufeff$é\\\\u12 \\U0041"
