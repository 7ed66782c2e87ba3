"""One measurement from its first case to its document: progress, the time that is left, and a clean stop.

A document is a JSON value: bench (which one), complete (False after Ctrl-C), environment, busy (sentences about other
processes, before and during), settings, seconds, rows (what was measured), left_out (what was not, and why).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from seqmix.bench.timing import OtherProcesses, busy_warning, environment
from seqmix.compare.progress import Display

Row = dict[str, Any]


@dataclass
class Watch:
    """What a case is given: how long it may take, and where it tells how far it is and what it leaves out."""

    budget_seconds: float | None
    show: Callable[[float, str], None]
    left_out: list[dict[str, str]] = field(default_factory=list)

    def leave_out(self, what: str, reason: str) -> None:
        """Notes that something was not measured."""
        note = {"what": what, "reason": reason}
        if note not in self.left_out:
            self.left_out.append(note)

    def part(self, index: int, count: int, label: str) -> Watch:
        """The watch of one of several parts of a case, which share its time evenly."""
        budget = None if self.budget_seconds is None else self.budget_seconds / count
        return Watch(budget, lambda share, note: self.show((index + share) / count, note or label), self.left_out)

    def progress(self, label: str) -> Callable[[float], None]:
        """What `take_turns` is given to show how far it is."""
        return lambda share: self.show(share, label)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A part of a measurement. label: what is shown meanwhile. run: measures and returns rows. weight: its length."""

    label: str
    run: Callable[[Watch], list[Row]]
    weight: float = 1.0


def collect(
    bench: str,
    cases: Sequence[Case],
    display: Display,
    *,
    settings: dict[str, Any],
    budget_seconds: float | None = None,
    device: str = "cpu",
) -> Row:
    """Runs the cases one after another; Ctrl-C ends with what has been measured until then.

    Args:
        budget_seconds: about how long all may take; the cases that are left share what is left by their weights.
    """
    document: Row = {
        "bench": bench,
        "complete": False,
        "environment": environment(device),
        "busy": [],
        "settings": settings,
        "seconds": 0.0,
        "rows": [],
        "left_out": [],
    }
    begin = time.perf_counter()
    total = sum(case.weight for case in cases)
    others = OtherProcesses()
    try:
        _say(document, display, busy_warning())
        done = 0.0
        for case in cases:
            watch = _watch(case, done, total, begin, budget_seconds, display)
            document["left_out"] += watch.left_out
            watch.left_out = document["left_out"]
            watch.show(0.0, "")
            document["rows"] += case.run(watch)
            done += case.weight
        document["complete"] = True
    except KeyboardInterrupt:
        display.message(f"interrupted: this is what was measured in {len(document['rows'])} rows until then")
    document["seconds"] = time.perf_counter() - begin
    if not document["busy"]:
        _say(document, display, others.warning())
    return document


def _watch(
    case: Case, done: float, total: float, begin: float, budget_seconds: float | None, display: Display
) -> Watch:
    def show(share: float, note: str) -> None:
        reached = (done + case.weight * share) / total
        spent = time.perf_counter() - begin
        left = spent * (1 - reached) / reached if reached > 0.02 else None
        display.update(reached, note=note, time_left=left, label=case.label)

    budget = None
    if budget_seconds is not None:
        left = max(0.0, budget_seconds - (time.perf_counter() - begin))
        budget = left * case.weight / (total - done)
    return Watch(budget, show)


def _say(document: Row, display: Display, sentence: str | None) -> None:
    if sentence is not None:
        document["busy"].append(sentence)
        display.message(f"warning: {sentence}")
