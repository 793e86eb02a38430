"""Worker processes."""

import subprocess
import sys

from folders import contents
from large_texts import write_texts

_POOL = """
import multiprocessing, os, pathlib, sys
from tfcharrnn.preparation import data_folder, staging, text_blocks
from tfcharrnn.config import DataConfig
text_blocks.BLOCK_BYTES, staging.SMALL_BYTES = 500, 0
for folder in sys.argv[1:]:
    os.chdir(folder)
    data_folder.prepare_data(DataConfig(input=("text0.txt",), seq_length=11, num_shards=3), "data", jobs=2)
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    running = [pathlib.Path(f"/proc/{child}/cmdline").read_text() for child in children]
    assert not [command for command in running if "popen_loky" in command], running
"""


def test_processes_end_with_the_work(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_texts(tmp_path / name, b"Some text. " * 5000)
    command = [sys.executable, "-W", "error", "-c", _POOL, str(tmp_path / "a"), str(tmp_path / "b")]
    subprocess.run(command, check=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_preparing_a_small_text_needs_no_joblib(tmp_path):
    code = "import sys, tfcharrnn as t; t.prepare_data(t.DataConfig(), sys.argv[1]); sys.exit('joblib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], check=True)
