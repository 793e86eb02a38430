"""Worker processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

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


_KILLED = """
import functools, os, pathlib, re, signal
from tfcharrnn.preparation.process_pool import Pool
pool = Pool(4)
calls = [os.getpid] * 3 + [functools.partial(re.match, "(a+)+$", "a" * 99 + "b")]
if __name__ == "__main__":
    results = pool.run(calls)
    for _ in range(3):
        next(results)
    # now one worker is at work for ever, with Python's lock, and the others, which may start later, have had no call
    print(pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text())
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_parent_that_is_killed():
    killed = subprocess.Popen([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, start_new_session=True)
    children = killed.stdout.readline().split()  # not to the end of the pipe, which the workers have open, too
    assert killed.wait() == -signal.SIGKILL and len(children) >= 4
    try:
        deadline = time.monotonic() + 20
        while left := [child for child in children if pathlib.Path("/proc", child.decode(), "exe").exists()]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
    finally:
        killed.stdout.close()
        if left:
            os.killpg(killed.pid, signal.SIGKILL)
