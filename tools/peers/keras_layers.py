"""Keras 3 layers in the same loop, run by TensorFlow without XLA, which is Keras's quicker way on a CPU."""

from __future__ import annotations

from collections.abc import Callable

from peers import ours
from peers.work import Training, Work


def make(work: Work) -> tuple[Callable[[], object], int] | None:
    """A function that does the work, or None where this peer has no way of its own to do it."""
    return ours.make(work, "keras") if isinstance(work, Training) else None
