"""JAX, as in `jax_scan`, with each half of the batch in loops of its own, as this library does it."""

from __future__ import annotations

from collections.abc import Callable

from peers import jax_scan
from tfcharrnn.verification.workloads import Work


def make(work: Work) -> tuple[Callable[[], object], int] | None:
    """Returns a function that does the work, and the number of steps per call; only for batches."""
    return jax_scan.make(work, parts=2)
