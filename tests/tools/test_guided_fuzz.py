"""Damage that is guided by the code it reaches, for a moment, and what the tool says of a reader that fails."""

import json
import subprocess
import sys

import guided_fuzz
import pytest
from paths import TOOLS

BROKEN = """
import dataclasses, sys
from pathlib import Path
from fuzzing import guided

good, calls = guided.fuzz.READERS["npy"], []

def read(folder):
    calls.append(folder)
    if len(calls) == 5:
        raise ZeroDivisionError("the fifth input")
    return good.read(folder)

guided.fuzz.READERS["npy"] = dataclasses.replace(good, read=read)
guided.main("npy", 100, 0, Path(sys.argv[1]))
"""


def test_without_atheris_the_reason_is_told(monkeypatch, capsys):
    monkeypatch.setattr(guided_fuzz.importlib.util, "find_spec", lambda name: None)
    guided_fuzz.main()
    assert capsys.readouterr().err.startswith("skipped: atheris is not installed")


def test_a_reader_is_tried_on_as_many_inputs_as_asked():
    pytest.importorskip("atheris", reason="atheris is not installed")
    done = subprocess.run(
        [sys.executable, TOOLS / "guided_fuzz.py", "--reader=vocab.json", "--count=300"],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    name, tried, errors, correct, edges, kept, _ = done.stdout.decode().splitlines()[1].split()
    assert (name, tried) == ("vocab.json", "300") and int(errors) + int(correct) == 300
    assert int(errors) > 100 and int(edges) > 20 and int(kept) > 3


def test_an_input_that_fails_is_kept(tmp_path):
    pytest.importorskip("atheris", reason="atheris is not installed")
    done = subprocess.run([sys.executable, "-c", BROKEN, tmp_path], cwd=TOOLS, capture_output=True, timeout=120)
    assert done.returncode == 1, done.stderr.decode()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {"tried": 4, "errors": result["errors"], "failure": "ZeroDivisionError: the fifth input"}
    assert (tmp_path / "files" / "array.npy").exists()
