"""Damages every kind of file that is read back, guided by the code that the damage reaches (atheris, libFuzzer).

python tools/guided_fuzz.py --reader=all --count=10000

The readers, and what is asked of them, are those of `tools/fuzz.py`, whose damage is random. The tool exits with 1 at
the first failure and keeps the files of that case. Needs pip install 'tfcharrnn[fuzz]'; without it, nothing is tested.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags
from fuzzing.foreign_formats import FOREIGN_READERS
from fuzzing.own_formats import OWN_READERS

from tfcharrnn import cli
from tfcharrnn.errors import UserError

_FLAGS = flags.FLAGS
READERS = [*OWN_READERS, *(name for name in FOREIGN_READERS if not name.startswith("keras"))]


def run_reader(name: str, count: int, seed: int, work: Path) -> dict[str, Any]:
    """Tests a reader in a process of its own, and returns how that went.

    Args:
        name: the reader.
        count: number of inputs to try.
        seed: seed of the damage.
        work: an empty folder.

    Returns:
        Numbers of inputs `tried` and of `errors`, of `edges` of code reached, and of `inputs` that reached new ones.

    Raises:
        UserError: the reader failed.
    """
    command = [sys.executable, "-m", "fuzzing.guided", name, str(count), str(seed), str(work)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    log = work / "log"
    with open(log, "wb") as output:
        code = subprocess.run(command, stdout=output, stderr=output, env=environment).returncode
    said = log.read_text("utf-8", "replace")
    result = work / "result.json"
    outcome: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    if code or not outcome or outcome["failure"]:
        kept = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
        shutil.copytree(work, kept, dirs_exist_ok=True)
        why = outcome.get("failure") or f"the process ended with code {code}: {said.strip()[-300:]}"
        raise UserError(f"{name}: {why}; its files are kept in {kept}")
    reached = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)
    return outcome | {"edges": int(reached[-1][0]) if reached else 0, "inputs": int(reached[-1][2]) if reached else 0}


def main() -> None:
    """Reads the flags and tests the readers; prints a row for each."""
    if importlib.util.find_spec("atheris") is None:
        cli.print_status("skipped: atheris is not installed; pip install 'tfcharrnn[fuzz]', where it has a wheel")
        return
    table = "{:14} {:>9} {:>9} {:>9} {:>7} {:>7} {:>8}".format
    print(table("reader", "tried", "errors", "correct", "edges", "kept", "seconds"), flush=True)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

    def make_row(name: str) -> str:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as work:
            outcome = run_reader(name, _FLAGS.count, _FLAGS.seed, Path(work))
        tried, errors = outcome["tried"], outcome["errors"]
        seconds = f"{time.perf_counter() - began:.1f}"
        return table(name, tried, errors, tried - errors, outcome["edges"], outcome["inputs"], seconds)

    with concurrent.futures.ThreadPoolExecutor(_FLAGS.jobs) as pool:
        for row in pool.map(make_row, READERS if _FLAGS.reader == "all" else [_FLAGS.reader]):
            print(row, flush=True)


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_enum("reader", "all", ["all", *READERS], "Reader to test.")
    flags.DEFINE_integer("count", 10_000, "Number of damaged files per reader.", lower_bound=1)
    flags.DEFINE_integer("jobs", os.cpu_count() or 1, "Number of readers tested at once.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the damage.", lower_bound=0)


if __name__ == "__main__":
    cli.run_command(define_flags, main)
