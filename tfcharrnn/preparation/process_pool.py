"""Runs calls in worker processes and shows their progress."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

from tfcharrnn import progress_bar
from tfcharrnn.errors import UserError

ResultT = TypeVar("ResultT")
Call = Callable[[], ResultT]

# Linux's prctl: the signal that a process gets when its parent ends
_PR_SET_PDEATHSIG = 1
# every worker computes on one core
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# seconds between progress lines where standard error is not a terminal
_LINE_INTERVAL = 10.0


class Pool:
    """A pool of worker processes, started when first needed.

    Results do not depend on the number of workers. A worker imports only the modules its calls need, which keeps its
    memory small.

    Attributes:
        jobs: number of workers; 0: one per core.
        quiet: show no progress.
    """

    def __init__(self, jobs: int = 0, *, quiet: bool = False):
        self.jobs = jobs
        self.quiet = quiet
        self._executor: Any = None
        self._num_workers = 0

    def run(self, calls: Sequence[Call[ResultT]], what: str = "", sizes: Sequence[int] = ()) -> Iterator[ResultT]:
        """Yields the results of calls, in order.

        Args:
            calls: the calls; with several workers, both functions and arguments must be picklable.
            what: a word for the work, shown with the progress.
            sizes: the amount of work of each call, in bytes.

        Raises:
            UserError: the first one, in the order of the calls, that a call raises.
        """
        show = _Progress(what, sum(sizes), self.quiet or not what)
        # closed explicitly: a traceback could keep the generator, and its busy workers, alive
        with contextlib.closing(self._results(calls)) as results, show as progress:
            for index, result in enumerate(results):
                if isinstance(result, UserError):
                    raise result
                if sizes:
                    progress.add(sizes[index])
                yield result

    def close(self, *, kill: bool = False) -> None:
        """Stops the workers: idle ones take memory and keep the folder in which they started in use.

        Args:
            kill: do not wait for the calls that they are at.
        """
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=kill)
            self._executor = None

    def _results(self, calls: Sequence[Call[ResultT]]) -> Generator[ResultT | UserError, None, None]:
        if self.jobs == 1 or len(calls) < 2:
            yield from map(_run_call, calls)
            return
        import joblib  # not needed for small texts
        from joblib.externals import loky

        jobs = min(self.jobs or joblib.cpu_count(), len(calls))  # cpu_count respects the limits of a container
        if jobs == 1:
            yield from map(_run_call, calls)
            return
        self._start_workers(jobs)
        try:
            futures = collections.deque(self._executor.submit(_run_call, call) for call in calls)
            while futures:
                yield futures.popleft().result()
        except BaseException as error:
            self.close(kill=True)
            if isinstance(error, loky.process_executor.TerminatedWorkerError):
                raise UserError(
                    "a worker process was killed, perhaps for lack of memory; run the command again, or with fewer "
                    "--jobs"
                ) from None
            raise

    def _start_workers(self, jobs: int) -> None:
        """Starts workers, unless there are enough of them."""
        from joblib.externals import loky

        if self._executor is not None and self._num_workers >= jobs:
            return
        self.close()
        self._num_workers = jobs
        self._executor = loky.ProcessPoolExecutor(
            jobs, initializer=_start_worker, initargs=(os.getpid(),), env=dict.fromkeys(_THREAD_SETTINGS, "1")
        )


def _run_call(call: Call[ResultT]) -> ResultT | UserError:
    """Returns the result or the `UserError` of a call, so that the first error in order can be raised."""
    try:
        return call()
    except UserError as error:
        return error


def _start_worker(parent: int) -> None:
    """Prepares a worker, before its first call, to end with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and stops the workers
    try:
        is_set = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) == 0
    except (OSError, AttributeError, TypeError):
        is_set = False
    if not is_set:  # not Linux
        threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    elif os.getppid() != parent:
        os._exit(1)


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # the parent was killed, and the same command may soon run again


class _Progress:
    """A progress bar where standard error is a terminal, else a line now and then."""

    def __init__(self, what: str, total: int, quiet: bool):
        self._what, self._total, self._done, self._quiet = what, total, 0, quiet
        self._last = time.perf_counter()
        self._bar: Any | None = None
        if not quiet:
            self._bar = progress_bar.make_bar(desc=what, total=total, unit="B", unit_scale=True, leave=False)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()

    def add(self, size: int) -> None:
        """Shows that another `size` bytes are done."""
        self._done += size
        with contextlib.suppress(OSError):  # standard error may be closed
            if self._bar is not None:
                self._bar.update(size)
            elif not self._quiet and time.perf_counter() - self._last >= _LINE_INTERVAL:
                self._last = time.perf_counter()
                done = f"{self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB"
                print(f"{self._what:<10} {done}", file=sys.stderr, flush=True)
