"""How far a run is: what is counted, kept in every checkpoint, and told to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from seqmix.training.stability import LossMonitor


class Reporter(Protocol):
    """Is told how training goes, a few times a second."""

    def __call__(self, *, step: int, tokens: int, seconds: float, loss: float, time_left: float) -> None:
        """loss: smoothed, nats per token. seconds, time_left: of training steps alone."""


@dataclass(kw_only=True)
class Progress:
    """The counters of a run.

    step: optimizer steps done. rows: rows of the stream read. seconds: spent in them. evaluations,
    gradient_records: how many were written. best: the lowest bits per byte of the evaluations on the way, of a task
    None. best_accuracy: of a task, the highest. is_solved: whether one of them reached the accuracy to stop at.
    peak_memory: bytes, the most of any process that worked on this run.
    """

    step: int = 0
    rows: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    gradient_records: int = 0
    best: float | None = None
    best_accuracy: float | None = None
    is_solved: bool = False
    peak_memory: int = 0
    monitor: LossMonitor = field(default_factory=LossMonitor)


class Stopwatch:
    """Adds up the time spent within `running`, from a start value."""

    def __init__(self, seconds: float) -> None:
        self._before = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """All time so far."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time of the block."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._before, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of the block out, within `running`."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.perf_counter()
