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


def test_line_ends_can_be_written_in_a_flag():
    assert cli.decode_line_ends(r"ROMEO:\n\tO\\n \x") == "ROMEO:\n\tO\\n \\x"


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("a.txt,b.txt", ["a.txt", "b.txt"]),
        ("b, c.txt", ["b, c.txt"]),
        ('a.txt,"b, c.txt"', ["a.txt", "b, c.txt"]),
        ("b, d.txt", ["b", "d.txt"]),
        ("", []),
    ],
)
def test_a_name_with_a_comma_is_taken_whole_if_it_exists(argument, names, tmp_path, monkeypatch):
    (tmp_path / "b, c.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert cli.FilesParser().parse(argument) == names


def fail(command, *arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", f"tfcharrnn.{command}", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("command", "argument", "meant"),
    [
        ("train", "--lr=0.1", "there is no flag --lr; did you mean --learning_rate?"),
        ("train", "--batch-size=3", "there is no flag --batch-size; did you mean --batch_size?"),
        ("train", "--hiden_size=3", "there is no flag --hiden_size; did you mean --hidden_size?"),
        ("train", "--wholly_unknown=3", "there is no flag --wholly_unknown (see "),
        ("train", "a text.txt", "did you mean --input='a text.txt'?"),
        ("train", "gone.txt", "every setting is a flag, --NAME=VALUE"),
        ("generate", "a text.txt", "did you mean --run_dir='a text.txt'?"),
        ("generate", "--prompt=x", "there is no flag --prompt; did you mean --prime?"),
    ],
)
def test_what_is_meant_is_said(command, argument, meant, tmp_path):
    (tmp_path / "a text.txt").write_text("text")
    assert meant in fail(command, argument, cwd=tmp_path)


def test_a_prime_is_given_once(tmp_path):
    assert "--prime and --prime_file exclude each other" in fail(
        "generate", "--prime=a", "--prime_file=-", cwd=tmp_path
    )
