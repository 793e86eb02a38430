"""Importing and using the package prints nothing of TensorFlow's, and changes nothing for the rest of the process."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

import tfcharrnn
from tfcharrnn import startup

NOTICE = "oneDNN custom operations"
USE = """
import os, sys
before = dict(os.environ)
import tfcharrnn
assert not {"tensorflow", "absl", "numpy", "logging"} & set(sys.modules), "importing it is cheap"
tfcharrnn.train_model("run", text="some text " * 50, hidden_size=2, seq_length=9, batch_size=4, steps=1, quiet=QUIET)
print(tfcharrnn.load_model("run").generate("some", length=5))
assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == before.get("TF_CPP_MIN_LOG_LEVEL")
"""


def run(code, cwd, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cwd), "TF_ENABLE_ONEDNN_OPTS": "1"}
        | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_quiet_training_and_generation_print_nothing_but_the_text(tmp_path):
    done = run(USE.replace("QUIET", "True"), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) == len("some") + 5 + len("\n")


def test_training_prints_its_progress_alone(tmp_path):
    done = run(USE.replace("QUIET", "False"), tmp_path)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("device     ")
    assert last.strip().endswith("generate --run_dir=run")
    assert NOTICE not in done.stderr
    assert "0000 " not in done.stderr


@pytest.mark.parametrize(
    ("code", "environment", "is_shown"),
    [
        ("import tfcharrnn; tfcharrnn.CharRNN", {"TF_CPP_MIN_LOG_LEVEL": "3"}, False),
        ("import tfcharrnn; tfcharrnn.CharRNN", {"TF_CPP_MIN_LOG_LEVEL": "0"}, True),
        ("import tfcharrnn; tfcharrnn.set_verbosity('debug'); tfcharrnn.CharRNN", {}, True),
        ("import tensorflow, tfcharrnn; tfcharrnn.CharRNN", {}, True),
    ],
    ids=["held", "asked for by the environment", "asked for by a call", "TensorFlow is the caller's"],
)
def test_the_notices_come_out_where_they_are_asked_for(code, environment, is_shown, tmp_path):
    done = run(code, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    if not is_shown:
        assert done.stderr == ""
    elif NOTICE not in done.stderr:
        pytest.skip("this build of TensorFlow prints no notice about oneDNN")


def test_what_fails_or_is_no_notice_is_printed(capfd, monkeypatch):
    with pytest.raises(ZeroDivisionError), startup.hold_stderr():
        os.write(2, b"why\n")
        raise ZeroDivisionError
    assert capfd.readouterr().err == "why\n"
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    with startup.hold_stderr():
        os.write(2, b"something else\n")
    assert capfd.readouterr().err == "something else\n"


def test_levels_are_checked():
    with pytest.raises(tfcharrnn.ConfigError, match=r"^set_verbosity: .*'loud'$"):
        tfcharrnn.set_verbosity("loud")


def test_only_public_names_are_listed():
    assert {name for name in dir(tfcharrnn) if not name.startswith("__")} == set(tfcharrnn.__all__)
    assert all(hasattr(tfcharrnn, name) for name in tfcharrnn.__all__)
