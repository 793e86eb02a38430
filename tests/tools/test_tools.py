"""The tools run on small workloads."""

import subprocess
import sys
import types

import cells
import notebook_loops
import numpy as np
import pytest
import readme
import reference_systems
from paths import TOOLS

from tfcharrnn.config import DataConfig, TrainingConfig
from tfcharrnn.verification import workloads as work


def tool(name, *arguments, cwd):
    return subprocess.run([sys.executable, TOOLS / name, *arguments], cwd=cwd, capture_output=True, timeout=300)


def test_the_arithmetic_of_a_step_is_counted_right():
    row = work.ALL["B"]  # LSTM, batch 100, time 100, 2 layers of 256, 65 symbols
    recurrent, between, output = 2 * 256 * 1024, 256 * 1024, 256 * 65
    assert row.flops == 3 * 2 * 100 * 100 * (recurrent + between + output)


def test_the_benchmark_prints_a_table(tmp_path):
    done = tool("bench.py", "--rows=H", "--peers=numpy_loop", "--rounds=1", "--nocommand", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    head, _, row = done.stdout.decode().splitlines()[-3:]
    assert head.startswith("| row | ours | by `train` | numpy_loop |")
    assert row.startswith("| H: RNN 1 x 8")
    assert tool("bench.py", "--rows=Z", cwd=tmp_path).returncode == 2


def test_cells_are_compared_at_equal_parameters(tmp_path):
    assert cells.choose_hidden_size({"cell": "gru"}, 400_000, 65) == 320
    text = tmp_path / "text.txt"
    text.write_text("all that is here. " * 2000)
    arguments = ["--cells=mingru", "--deep_cells=", "--steps=3", "--seconds=0.1", "--parameters=10000"]
    done = tool("cells.py", f"--input={text}", f"--output={tmp_path / 'runs'}", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    _, _, row = done.stdout.decode().splitlines()
    name, units, loss, *_ = row.strip("| ").split(" | ")
    assert (name, units) == ("mingru", "48") and float(loss) > 0.0


def test_the_benchmark_takes_another_cell(tmp_path):
    (tmp_path / "own.py").write_text(
        "import tensorflow as tf\nimport tfcharrnn\n\n\n@tfcharrnn.register_cell('own')\n"
        "class Own(tfcharrnn.Cell):\n    num_gates = 1\n\n    @classmethod\n"
        "    def forward(cls, p, q, state):\n        return (tf.nn.softsign(p + q),)\n"
    )
    arguments = ["--rows=H", "--rounds=1", "--nocommand", "--cell=own"]
    done = tool("bench.py", *arguments, "--cell_module=own.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    head, _, row = done.stdout.decode().splitlines()[-3:]
    assert head.startswith("| row | ours | by `train` | fastest peer / ours |") and row.startswith("| H: OWN 1 x 8")
    assert b"--cell='own': not one of" in tool("bench.py", *arguments, cwd=tmp_path).stderr


def test_a_block_of_the_readme_is_found_by_its_name():
    assert "tfcharrnn train" in readme.block("train")
    with pytest.raises(LookupError, match="nonsense"):
        readme.block("nonsense")


def test_published_figures_are_compared_at_the_same_place(monkeypatch, tmp_path):
    rows = [{"step": step, "epoch": step / 1000, "smooth_loss": 100.0 - step / 100} for step in range(100, 2100, 100)]
    run = types.SimpleNamespace(training=TrainingConfig(batch_size=1), data=DataConfig(layout="stream", seq_length=11))
    monkeypatch.setattr(reference_systems, "read_metrics", lambda path: rows)
    monkeypatch.setattr(reference_systems.run_lib, "load", lambda path: run)
    figures = {1.0: 100.0, 1.25: 50.0, 3.0: 1.0}
    for unit, places in (("epoch", figures), ("step", {1000 * place: loss for place, loss in figures.items()})):
        for is_same_text, per in ((True, 1.0), (False, 10.0)):
            system = reference_systems.System("smooth_loss", unit, places, 10.0, is_same_text)
            *_, first, second, third = reference_systems.format_table("x", system, {"seed 0": tmp_path}).splitlines()
            assert first.split(" | ")[1:] == [f"{100 / per:g}", f"{90 / per:g} (-10.0%) |"]
            assert second.split(" | ")[1:] == [f"{50 / per:g}", f"{87 / per:g} (+74.0%) |"]
            assert third.endswith(" |  |"), "the run did not get there"


def test_the_notebooks_weights_are_those_that_numpy_draws():
    notebook = notebook_loops.NOTEBOOKS["dinosaur_names"]
    arrays = notebook_loops.make_arrays(notebook, 27, seed=1)
    np.random.seed(1)
    w_ax, w_aa, w_ya = (np.random.randn(*shape) * 0.01 for shape in ((50, 27), (50, 50), (27, 50)))
    np.testing.assert_array_equal(arrays["cells/0/kernel"][2:], w_ax.T)
    np.testing.assert_array_equal(arrays["cells/0/recurrent_kernel"], w_aa.T)
    np.testing.assert_array_equal(arrays["output_kernel"][:, 2:], w_ya.T)
    assert not arrays["cells/0/kernel"][:2].any() and (arrays["output_bias"][:2] == -1e9).all()
