"""How far a whole comparison is and how long it will take, learned from what has been trained so far."""

from __future__ import annotations

import time
from statistics import fmean
from typing import Any, Protocol

from seqmix.compare.opening import TRIAL_SHARE
from seqmix.compare.results import Results

SPEED_SHARE = 0.4
"""The time to measure one model's speed, as a share of a training: a first guess for the bar."""


class Display(Protocol):
    """Shows how far a comparison is."""

    def update(self, share: float, note: str = "", time_left: float | None = None, label: str | None = None) -> None:
        """share: the part done. label: what is going on. note: details. time_left: seconds, of everything."""

    def message(self, text: str) -> None:
        """Shows a sentence that stays."""


class Pace:
    """Shares and times of the parts of a comparison.

    A whole training counts 1, a trial its share of the budget. The time of a model is that of its last training,
    else the mean of the other models'.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        self._seconds: dict[str, float] = {}
        for contender in results["contenders"]:
            if contender["train_seconds"]:
                self._seconds[contender["model"]] = 1.2 * contender["train_seconds"]
        self._model = ""
        self._size = 0.0
        self._started = 0.0
        self._left: float | None = None

    def begin(self, model: str, size: float) -> None:
        """A training of a model begins; size is 1, or less for a trial."""
        self._model, self._size = model, size
        self._started, self._left = time.monotonic(), None

    def end(self) -> None:
        """That training is over."""
        self._seconds[self._model] = (time.monotonic() - self._started) / self._size
        self._size, self._left = 0.0, None

    def show(self, display: Display, label: str, report: dict[str, Any]) -> None:
        """Shows a report of the training that is going on; {} only moves the clock."""
        note = ""
        if "time_left" in report:
            self._left = report["time_left"]
            note = f"loss {report['loss']:.3f}"
        elif not report:
            return
        elapsed = time.monotonic() - self._started
        present = elapsed / max(elapsed + (self._left or 0.0), 1e-9) if self._left is not None else 0.0
        done, total = self._sizes()
        share = (done + self._size * present) / total
        display.update(share, note=note, time_left=self._time_left(elapsed), label=label)

    def show_speed(self, display: Display, report: dict[str, Any]) -> None:
        """Shows how far the measurement of speeds is: report holds its share."""
        if report:
            rest = SPEED_SHARE * len(self._results["plans"]) / self._sizes()[1]
            display.update(1 - rest * (1 - report["share"]), note=report.get("note", ""))

    @property
    def share(self) -> float:
        """The part that is done, between two trainings."""
        done, total = self._sizes()
        return done / total

    @property
    def speed_seconds(self) -> float | None:
        """A guess of the seconds that measuring all speeds takes."""
        if not self._seconds:
            return None
        return SPEED_SHARE * len(self._results["plans"]) * fmean(self._seconds.values())

    def _sizes(self) -> tuple[float, float]:
        """What is done and what there is in all, in trainings."""
        parts = [(trial["status"], TRIAL_SHARE) for trial in self._results["tuning"]]
        parts += [(contender["status"], 1.0) for contender in self._results["contenders"]]
        done = sum(size for status, size in parts if status in ("finished", "failed"))
        total = sum(size for _, size in parts) + SPEED_SHARE * len(self._results["plans"])
        return done, total

    def _time_left(self, elapsed: float) -> float | None:
        """Seconds until everything is done."""
        present = self._left
        if present is None:
            return None
        known = {**self._seconds, self._model: (elapsed + present) / self._size}
        other = fmean(known.values())
        open_trials = [t["model"] for t in self._results["tuning"] if t["status"] in ("pending", "interrupted")]
        open_runs = [c["model"] for c in self._results["contenders"] if c["status"] in ("pending", "interrupted")]
        left = sum(known.get(model, other) for model in open_runs)
        left += TRIAL_SHARE * sum(known.get(model, other) for model in open_trials)
        return present + left + SPEED_SHARE * len(self._results["plans"]) * other
