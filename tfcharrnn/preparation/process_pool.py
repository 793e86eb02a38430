"""Work on all cores, in processes of their own, and what a person sees of it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import tqdm

from tfcharrnn.errors import UserError

ResultT = TypeVar("ResultT")
Call = Callable[[], ResultT]

# where there is no terminal to draw a bar on, a line at most this often, in seconds
_LINE_EVERY = 10.0


class Pool:
    """Processes that make calls.

    What they give does not depend on their number. They know none of this process's modules but those they need, so
    that each takes little memory.
    """

    def __init__(self, jobs: int = 0, *, quiet: bool = False):
        """Starts none yet.

        Args:
            jobs: how many; 0: one for each core.
            quiet: show no progress.
        """
        self.jobs = jobs
        self.quiet = quiet
        self._started = False

    def run(self, calls: Sequence[Call[ResultT]], what: str = "", sizes: Sequence[int] = ()) -> Iterator[ResultT]:
        """The results of calls, in order.

        Args:
            calls: what to do; with more than one process, functions and arguments that can be sent there.
            what: the work in a word, to show progress.
            sizes: how much of it each call is, in bytes.

        Raises:
            UserError: the first that a call raises, in their order.
        """
        show = _Progress(what, sum(sizes), self.quiet or not what)
        # closed here, for a traceback would keep it, and the processes at work, for as long as it is kept
        with contextlib.closing(self._results(calls)) as results, show as progress:
            for index, result in enumerate(results):
                if isinstance(result, UserError):
                    raise result
                if sizes:
                    progress.add(sizes[index])
                yield result

    def close(self) -> None:
        """Ends the processes: idle they take memory, and they stay in the folder in which they were started."""
        if self._started:
            from joblib.externals import loky

            loky.get_reusable_executor().shutdown(wait=True)
            self._started = False

    def _results(self, calls: Sequence[Call[ResultT]]) -> Generator[ResultT | UserError, None, None]:
        if self.jobs == 1 or len(calls) < 2:
            yield from map(_called, calls)
            return
        import joblib  # here, for small texts do without
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        jobs = min(self.jobs or joblib.cpu_count(), len(calls))  # which knows of a container's limit, too
        if jobs == 1:
            yield from map(_called, calls)
            return
        self._started = True
        parallel = joblib.Parallel(n_jobs=jobs, backend="loky", return_as="generator", batch_size=1, max_nbytes=None)
        results = parallel(joblib.delayed(_called_for)(os.getpid(), call) for call in calls)
        try:
            for result in results:  # noqa: UP028 - `yield from` would close them without what is below
                yield result
        except TerminatedWorkerError:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; run the command again, or with fewer --jobs"
            ) from None
        finally:
            with warnings.catch_warnings():  # after an error nobody wants the results that are left
                warnings.simplefilter("ignore")
                results.close()


def _called(call: Call[ResultT]) -> ResultT | UserError:
    """What a call gives or raises, so that of several errors the first in order is told."""
    try:
        return call()
    except UserError as error:
        return error


def _called_for(parent: int, call: Call[ResultT]) -> ResultT | UserError:
    """The same in a process of the pool, which ends with its parent."""
    if not any(thread.name == _watch.__name__ for thread in threading.enumerate()):
        with contextlib.suppress(ValueError):  # Ctrl-C is the parent's, who ends the others
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_watch, args=(parent,), name=_watch.__name__, daemon=True).start()
    return _called(call)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # whoever began the work was killed, and may be about to begin it again


class _Progress:
    """A bar where standard error is a terminal, else a line now and then."""

    def __init__(self, what: str, total: int, quiet: bool):
        self._what, self._total, self._done, self._quiet = what, total, 0, quiet
        self._last = time.perf_counter()
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm.tqdm(desc=what, total=total, unit="B", unit_scale=True, file=sys.stderr, leave=False)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()

    def add(self, size: int) -> None:
        """Shows that so many bytes more are done."""
        self._done += size
        with contextlib.suppress(OSError):  # nobody may be there to read it any more
            if self._bar is not None:
                self._bar.update(size)
            elif not self._quiet and time.perf_counter() - self._last >= _LINE_EVERY:
                self._last = time.perf_counter()
                done = f"{self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB"
                print(f"{self._what:<10} {done}", file=sys.stderr, flush=True)
