"""Damages every kind of file that is read back, in many ways, and checks how the readers respond.

python tools/fuzz.py --reader=all --count=10000

For each damaged file a reader must either raise a `UserError` in one line that names the file, or return correct data;
what is correct is said at each reader in `fuzzing`. Its memory and time are limited. A case depends only on the seed,
the reader's name and the case's number. The tool exits with 1 at the first failure and keeps the files of that case.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags
from fuzzing.damage import Files, Special, put_file
from fuzzing.foreign_formats import FOREIGN_READERS
from fuzzing.own_formats import OWN_READERS, Reader
from fuzzing.working_files import WORKING_READERS

from tfcharrnn import cli
from tfcharrnn.errors import ConfigError, UserError

_FLAGS = flags.FLAGS
# limits of a reader: bytes beyond what a valid file takes, and seconds
_MEMORY = 2**29
_SECONDS = 20
READERS = OWN_READERS | WORKING_READERS | FOREIGN_READERS


@dataclass
class Tally:
    """Results of some cases; `failure` is the number of a failed case and the reason."""

    errors: int = 0
    correct: int = 0
    seconds: float = 0.0
    memory: int = 0
    failure: tuple[int, str] | None = None


class ReaderTimeout(BaseException):
    """A reader took too long; derived from BaseException so that no reader can catch it as an error of its own."""


def try_reading(reader: Reader, folder: Path, damaged: Files, whole: Any) -> bool:
    """Reads damaged files; returns whether the reader accepted them.

    Raises:
        AssertionError: the data or the error message is wrong.
    """
    try:
        value = reader.read(folder)
    except UserError as error:
        message = str(error)
        named = [str(folder), "--encoding=", *(Path(file).name for file in damaged)]
        assert any(name in message for name in named), f"its message does not name the file: {message[:300]}"
        control = re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", message)
        assert not control, f"its message has control characters: {message[:300]!r}"
        is_flag = isinstance(error, ConfigError) and "--encoding" not in message
        assert not is_flag, f"it blames a flag: {message[:300]}"
        return False
    reader.check(value, damaged, whole)
    return True


def run_cases(name: str, seed: int, cases: range, folder: Path, bound: int, progress: Any = None) -> Tally:
    """Tests a reader on some cases, in this process.

    Args:
        name: the reader.
        seed: seed of the damage.
        cases: numbers of the cases.
        folder: an empty folder; after a failure the damaged files stay there.
        bound: bytes of memory that the reader may use beyond what a valid file takes; 0: unlimited.
        progress: shared value that receives the number of the current case.
    """
    reader, tally = READERS[name], Tally()
    warnings.simplefilter("ignore")
    reader.make(folder)
    originals = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    whole = reader.read(folder)
    reader.check(whole, originals, whole)
    if bound:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + bound
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def stop(*_: object) -> None:
        raise ReaderTimeout(f"took longer than {_SECONDS} seconds")

    signal.signal(signal.SIGALRM, stop)
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for case in cases:
        rng = random.Random(f"{seed}/{name}/{case}")
        damaged = reader.damage(rng, originals)
        for file, data in damaged.items():
            put_file(folder / file, data)
        if progress is not None:
            progress.value = case
        signal.setitimer(signal.ITIMER_REAL, _SECONDS)
        try:
            if try_reading(reader, folder, damaged, whole):
                tally.correct += 1
            else:
                tally.errors += 1
        except (Exception, ReaderTimeout) as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            lines = str(error).strip().splitlines() or [""]
            tally.failure = case, f"{type(error).__name__}: {lines[0][:400]}"
            break
        signal.setitimer(signal.ITIMER_REAL, 0)
        for file in damaged:
            put_file(folder / file, originals[file])
    tally.seconds = time.perf_counter() - start
    tally.memory = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    return tally


def run_and_report(name: str, seed: int, cases: range, folder: Path, bound: int, progress: Any, queue: Any) -> None:
    """Runs cases in a child process and puts the result into a queue."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # hide what TensorFlow logs about each damaged file
    queue.put(run_cases(name, seed, cases, folder, bound, progress))


def run_watched(name: str, seed: int, cases: range, folder: Path, bound: int) -> Tally:
    """Runs cases in a child process, which may crash or hang."""
    context = multiprocessing.get_context("fork")
    progress, queue = context.Value("q", cases.start), context.Queue()
    process = context.Process(target=run_and_report, args=(name, seed, cases, folder, bound, progress, queue))
    process.start()
    seen, since = -1, time.monotonic()
    while process.is_alive() or not queue.empty():
        try:
            tally: Tally = queue.get(timeout=1)
        except Exception:  # queue.Empty
            if progress.value != seen:
                seen, since = progress.value, time.monotonic()
            elif time.monotonic() - since > 6 * _SECONDS:
                process.kill()
                process.join()
                return Tally(failure=(seen, "hangs in native code"))
            continue
        process.join()
        return tally
    return Tally(failure=(progress.value, f"the process ended with code {process.exitcode}"))


def copy_any(source: str, target: str) -> None:
    """Copies a file, or a pipe."""
    Special.copy(Path(source), Path(target))


def fuzz(names: list[str], count: int, seed: int, jobs: int, first: int = 0) -> dict[str, Tally]:
    """Tests readers on `count` cases each; prints a row for each and stops at the first failure.

    Raises:
        UserError: a reader failed; the message names the case and the folder of its files.
    """
    import concurrent.futures

    table = "{:14} {:>9} {:>9} {:>9} {:>8} {:>9}".format
    print(table("reader", "tried", "errors", "correct", "seconds", "memory"), flush=True)
    results = {}
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as temporary:
        for name in names:
            size = max(1, -(-count // jobs))
            parts = [range(start, min(start + size, first + count)) for start in range(first, first + count, size)]
            folders = [Path(temporary) / f"{name}-{part.start}" for part in parts]
            for folder in folders:
                folder.mkdir()
            began = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                work = [
                    pool.submit(run_watched, name, seed, part, folder, _MEMORY)
                    for part, folder in zip(parts, folders, strict=True)
                ]
                tallies = [part.result() for part in work]
            for tally, folder in zip(tallies, folders, strict=True):
                if tally.failure:
                    case, why = tally.failure
                    kept = Path(tempfile.gettempdir()) / f"fuzz-{name}-{seed}-{case}"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(folder, kept, symlinks=True, copy_function=copy_any)
                    raise UserError(
                        f"{name}: case {case} of seed {seed}: {why}; its files are kept in {kept}; "
                        f"again: python tools/fuzz.py --reader={name} --seed={seed} --first={case} --count=1"
                    )
            errors, correct = sum(t.errors for t in tallies), sum(t.correct for t in tallies)
            total = Tally(errors, correct, time.perf_counter() - began, max(t.memory for t in tallies))
            row = (name, errors + correct, errors, correct, f"{total.seconds:.1f}", f"{total.memory / 2**20:.1f} MiB")
            print(table(*row), flush=True)
            results[name] = total
            for folder in folders:
                shutil.rmtree(folder)
    return results


def main() -> None:
    """Reads the flags and tests the readers."""
    # reading HDF5 starts a process per file and can loop for seconds: only when asked for by name
    quick = [name for name in READERS if not name.startswith("keras")]
    names = quick if _FLAGS.reader == "all" else [_FLAGS.reader]
    if sys.platform != "linux":
        raise UserError("tools/fuzz.py: needs Linux to limit memory; run it there")
    fuzz(names, _FLAGS.count, _FLAGS.seed, _FLAGS.jobs, _FLAGS.first)


def define_flags() -> None:
    """Defines the tool's flags."""
    flags.DEFINE_enum("reader", "all", ["all", *READERS], "Reader to test; all: every reader except keras-*.")
    flags.DEFINE_integer("count", 10_000, "Number of damaged files per reader.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the damage.", lower_bound=0)
    flags.DEFINE_integer("jobs", os.cpu_count() or 1, "Number of processes.", lower_bound=1)
    flags.DEFINE_integer("first", 0, "Number of the first case, to repeat a failure.", lower_bound=0)


if __name__ == "__main__":
    cli.run_command(define_flags, main)
