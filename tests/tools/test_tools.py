"""The tools run on small workloads."""

import subprocess
import sys

import pytest
import readme
from paths import TOOLS
from peers import work


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


def test_a_block_of_the_readme_is_found_by_its_name():
    assert "tfcharrnn train" in readme.block("train")
    with pytest.raises(LookupError, match="nonsense"):
        readme.block("nonsense")
