"""A cell of one's own, from an empty folder to a SavedModel, as a user of the commands writes it."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time

import commands
import pytest
from paths import ROOT, TESTS

# the module that docs/cells.md shows, with the minimal gated unit
(MY_CELLS,) = re.findall(
    r"<!-- my_cells -->\n```python\n(.*?)```", (ROOT / "docs" / "cells.md").read_text(encoding="utf-8"), re.DOTALL
)
TEXT = "the cat sat on the mat; the dog sat on the log.\n" * 60
SMALL = ["--input=text.txt", "--cell=mgu", "--hidden_size=16", "--seq_length=21", "--batch_size=8"]
QUIET = ["--eval_every=0", "--sample_every=0", "--sample_length=20"]
OWN = "--cell_module=my_cells.py"


def environment(folder, *paths):
    path = os.pathsep.join([*map(str, paths), str(ROOT)])
    return {**os.environ, "XDG_CACHE_HOME": f"{folder}-cache", "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


def run(folder, command, *arguments, paths=()):
    if not paths:
        return commands.run(command, *arguments, cwd=folder, env=environment(folder), text=True)
    return subprocess.run(
        [sys.executable, "-m", f"tfcharrnn.{command}", *arguments],
        cwd=folder, env=environment(folder, *paths), capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def succeed(*arguments, **options):
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


def fail(folder, command, *arguments, code=1, **options):
    """Runs a command that must fail; returns its one line."""
    done = run(folder, command, *arguments, **options)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def home(tmp_path):
    """A folder with a text and a module with a cell."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "my_cells.py").write_text(MY_CELLS, encoding="utf-8")
    assert len(MY_CELLS.splitlines()) <= 15
    return folder


def last_weights(run_dir):
    return (sorted((run_dir / "checkpoints").iterdir())[-1] / "ckpt.data-00000-of-00001").read_bytes()


def test_a_cell_of_15_lines_is_checked_trained_killed_resumed_sampled_and_exported(home):
    checked = succeed(home, "gradcheck", OWN, "--num_layers=1", "--embedding_size=0").stdout
    cells, implementations = checked.splitlines()[:2]
    assert cells.split() == ["layers", "embedding", "texts", "mgu"] and implementations.split() == ["custom"]

    settings = [*SMALL, "--steps=300", "--checkpoint_every=10", "--eval_every=10", "--sample_every=10"]
    done = succeed(home, "train", OWN, *settings, "--run_dir=whole")
    assert done.stderr.splitlines()[-1].endswith("generate --run_dir=whole --cell_module=my_cells.py")
    assert "module" not in (home / "whole" / "config.json").read_text()

    arguments = [sys.executable, "-m", "tfcharrnn.train", OWN, *settings, "--run_dir=killed"]
    with subprocess.Popen(arguments, cwd=home, env=environment(home), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while len(list(home.glob("killed/checkpoints/step-*"))) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert "--cell_module=FILE.py" in fail(home, "train", "--resume", "--run_dir=killed")
    succeed(home, "train", "--resume", "--run_dir=killed", OWN)
    assert last_weights(home / "killed") == last_weights(home / "whole")
    assert (home / "killed" / "samples.txt").read_bytes() == (home / "whole" / "samples.txt").read_bytes()

    line = fail(home, "generate", "--run_dir=whole")
    assert line.startswith("generate: whole/config.json: --cell='mgu': ") and "--cell_module=FILE.py" in line
    text = succeed(home, "generate", "--run_dir=whole", OWN, "--length=200", "--seed=3").stdout
    assert "the" in text

    path = succeed(home, "export", "--run_dir=whole", OWN).stdout.strip()
    (home / "my_cells.py").unlink()
    inputs = {"prime": [""], "length": 200, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 3}
    request = json.dumps([str(home / path), {"signature_name": "generate", "inputs": inputs}])
    served = subprocess.run(
        [sys.executable, "-I", str(TESTS / "bare_server.py")], input=f"{request}\n", cwd="/", capture_output=True,
        text=True, timeout=300, check=True,
    )  # fmt: skip
    assert json.loads(served.stdout) == {"outputs": [text.removesuffix("\n")]}


@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker"])
def test_several_devices_train_it(home, strategy):
    settings = [OWN, *SMALL, *QUIET, "--steps=4", "--run_dir=run", f"--strategy={strategy}"]
    if strategy == "mirrored":
        done = succeed(home, "train", *settings, "--num_replicas=2")
    else:
        done = succeed(home, "launch_local", "--workers=2", "--", sys.executable, "-m", "tfcharrnn.train", *settings)
    assert "done       step 4" in done.stderr and "--cell_module=my_cells.py" in done.stderr


def test_an_installed_package_declares_a_cell(home, tmp_path):
    for module in ("pip", "setuptools"):  # importing setuptools would replace distutils in this process
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    package, site = tmp_path / "package", tmp_path / "site"
    (package / "tiny_cells").mkdir(parents=True)
    (package / "tiny_cells" / "__init__.py").write_text("")
    (package / "tiny_cells" / "gated.py").write_text(MY_CELLS)
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "tiny-cells"\nversion = "1.0"\n'
        '[project.entry-points."tfcharrnn.cells"]\nmgu = "tiny_cells.gated"\nlost = "tiny_cells.gated"\n'
        '[tool.setuptools]\npackages = ["tiny_cells"]\n'
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--target", str(site), str(package)],
        check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    settings = [*SMALL, *QUIET, "--steps=2"]
    done = succeed(home, "train", *settings, "--run_dir=run", paths=[site])
    assert done.stderr.splitlines()[-1].endswith("generate --run_dir=run --cell_module=tiny_cells.gated")
    line = fail(home, "generate", "--run_dir=run", paths=[site])
    assert line.endswith("the installed module tiny_cells.gated has it: add --cell_module=tiny_cells.gated")
    succeed(home, "generate", "--run_dir=run", "--cell_module=tiny_cells.gated", "--length=5", paths=[site])
    line = fail(home, "train", "--cell=lost", "--input=text.txt", paths=[site])
    assert line == "train: --cell='lost': an installed package declares it, but tiny_cells.gated does not register it"
    code = (
        "import sys, tfcharrnn\n"
        "try:\n    tfcharrnn.load_model('run')\nexcept tfcharrnn.UserError as error:\n    print(error)\n"
        "print('tiny_cells' in sys.modules)\n"
        "tfcharrnn.train_model('again', cell='mgu', input=['text.txt'], steps=1, hidden_size=4, quiet=True)\n"
        "print(tfcharrnn.load_model('again').run.model.cell)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home, env=environment(home, site), capture_output=True, text=True, timeout=300
    )
    refused, *rest = done.stdout.splitlines()
    assert refused.startswith("run/config.json: --cell='mgu': ") and rest == ["False", "mgu"], done.stderr


TYPED = """\
from collections.abc import Callable

import tensorflow as tf

import tfcharrnn


@tfcharrnn.register_cell("mixed")
class Mixed(tfcharrnn.Cell):
    num_gates = 1
    extra_weights = {"gain": tfcharrnn.ExtraWeight((1,), 1.0), "mix": tfcharrnn.ExtraWeight((1, 1))}

    @classmethod
    def forward(
        cls,
        p: tf.Tensor,
        q: tf.Tensor,
        state: tuple[tf.Tensor, ...],
        gain: tf.Tensor,
        mix: Callable[[tf.Tensor], tf.Tensor],
    ) -> tuple[tf.Tensor, ...]:
        return (tf.tanh(gain * tfcharrnn.normalise_layer(p + q) + mix(state[0])),)


@tfcharrnn.register_cell("leaky")
class Leaky(tfcharrnn.LinearCell):
    num_gates = 2

    @classmethod
    def coefficients(cls, p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        a, b = tf.split(p, 2, axis=-1)
        return tf.sigmoid(a), b
"""


def test_a_typed_module_of_cells_is_typed_right(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n[mypy-tensorflow.*]\nignore_missing_imports = True\nfollow_imports = skip\n"
        "[mypy-tfcharrnn.*]\nfollow_imports = silent\n"
    )
    (tmp_path / "typed.py").write_text(TYPED)
    (tmp_path / "mistaken.py").write_text('import tfcharrnn\n\ntfcharrnn.register_cell("x")(int)\ntfcharrnn.Sell\n')
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=mypy.ini", "--no-color-output", "typed.py", "mistaken.py"],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    *errors, _ = done.stdout.splitlines()
    assert [line.partition(": error")[0] for line in errors] == ["mistaken.py:3", "mistaken.py:4"], done.stdout


# Errors

WRONG = """\
import tensorflow as tf
import tfcharrnn


@tfcharrnn.register_cell("wrong")
class Wrong(tfcharrnn.Cell):
    num_gates = 1

    @classmethod
    def forward(cls, p, q, state):
        return {result}
"""


def test_a_wrong_cell_is_one_line_and_leaves_no_run(home):
    arguments = ["--cell_module=wrong.py", "--input=text.txt", "--hidden_size=6", "--run_dir=run"]
    (home / "wrong.py").write_text(WRONG.format(result="(tf.reduce_sum(p + q, -1),)"))
    assert fail(home, "train", "--cell=wrong", *arguments) == (
        "train: Wrong.forward must return a tuple of 1 tensor (2, 6) float32, a state, as num_state_tensors says. "
        "Received: (2,) float32"
    )
    (home / "wrong.py").write_text(WRONG.format(result="(p + q @ state[1],)"))
    assert fail(home, "train", "--cell=wrong", *arguments) == (
        "train: Wrong.forward (wrong.py, line 11): IndexError: tuple index out of range"
    )
    done = run(home, "train", "--cell=wrong", *arguments, "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr and "q @ state[1]" in done.stderr
    (home / "wrong.py").write_text("import tfcharrnn\n\nnum_gates = gates\n")
    assert fail(home, "train", "--cell=wrong", *arguments) == (
        "train: --cell_module=wrong.py: cannot be imported: wrong.py, line 3: NameError: name 'gates' is not defined"
    )
    assert not (home / "run").exists()


# Run folders from somebody else

TRAP = "from pathlib import Path\nPath(__file__).with_name('imported.txt').write_text(__name__)\n"
NAMES = [
    "trap", "trap.py", "./trap.py", "trap:Cell", "trap.Cell", "hostile.trap", "hostile/trap.py", "declared",
    "../home/trap.py", "{trap}", "", "rnn;import trap", "runs/../trap", "os", "tensorflow",
]  # fmt: skip
# runs each command in a process of its own, of a process that has imported TensorFlow for all
ATTACK = """
import contextlib, io, json, os, runpy, sys
from pathlib import Path
import tensorflow
import tfcharrnn.training.setup, tfcharrnn.serving.export_formats, tfcharrnn.analysis.html_report

names, commands = json.load(sys.stdin)
settings = json.loads(Path("hostile/config.json").read_text())

def attempt(command, arguments):
    if command == "load_model":
        try:
            tfcharrnn.load_model("hostile")
        except tfcharrnn.UserError as error:
            print(error, file=sys.stderr)
            return 1
    sys.argv = [command, *arguments]
    try:
        runpy.run_module(f"tfcharrnn.{command}", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code

for name in names:
    settings["model"]["cell"] = name
    Path("hostile/config.json").write_text(json.dumps(settings))
    for command, *arguments in commands:
        read, write = os.pipe()
        if not os.fork():
            sys.stderr = io.StringIO()
            code = attempt(command, arguments)
            os.write(write, json.dumps([name, command, code, sys.stderr.getvalue()]).encode())
            os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:
            print(pipe.read().decode(), flush=True)
        os.wait()
"""
COMMANDS = [
    ["generate", "--run_dir=hostile"], ["generate", "--run_dir=hostile", "--checkpoint=list"],
    ["evaluate", "--run_dir=hostile"], ["evaluate", "--run_dir=hostile", "--input=text.txt"],
    ["report", "--run_dir=hostile"], ["export", "--run_dir=hostile"], ["export", "--run_dir=hostile", "--format=npz"],
    ["novelty", "--run_dir=hostile", "--generated=text.txt"],
    ["train", "--run_dir=hostile"], ["train", "--run_dir=hostile", "--resume"],
    ["train", "--init_from=hostile", "--input=text.txt", "--run_dir=next"], ["load_model"],
]  # fmt: skip


def test_a_run_folder_from_somebody_else_makes_nothing_be_imported(home, tmp_path):
    site = tmp_path / "site"
    (site / "trap_package-1.0.dist-info").mkdir(parents=True)
    (site / "trap_package-1.0.dist-info" / "METADATA").write_text("Name: trap-package\nVersion: 1.0\n")
    (site / "trap_package-1.0.dist-info" / "entry_points.txt").write_text(
        "[tfcharrnn.cells]\ndeclared = trap_package\nbroken = ] [\n"
    )
    succeed(home, "train", *SMALL, *QUIET, "--cell=rnn", "--steps=1", "--run_dir=hostile")
    (site / "trap_package.py").write_text(TRAP)
    traps = [home, home / "hostile", site]
    for folder in traps:
        (folder / "trap.py").write_text(TRAP)
    done = subprocess.run(
        [sys.executable, "-c", ATTACK], input=json.dumps([[*NAMES, "broken", 7, None, ["trap"]], COMMANDS]), text=True,
        cwd=home, env=environment(home, site), capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = list(map(json.loads, done.stdout.splitlines()))
    assert len(results) == (len(NAMES) + 4) * len(COMMANDS)
    for name, command, code, message in results:
        assert code in (1, 2), (name, command, message)
        assert message.count("\n") == 1, (name, command, message)
        assert "hostile" in message, (name, command, message)
    assert [folder for folder in traps if list(folder.glob("**/imported.txt"))] == []
    assert not (home / "next").exists()

    # the traps do close on who names them
    assert "registers no cell" in fail(home, "generate", "--run_dir=hostile", "--cell_module=trap.py")
    assert (home / "imported.txt").read_text() == "trap"
    assert "registers no cell" in fail(home, "train", "--cell=declared", "--run_dir=next", paths=[site])
    assert (site / "imported.txt").read_text() == "trap_package"
