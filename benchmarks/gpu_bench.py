"""What the sections of gpu.py share: the device, the sizes, the time that is left, and how work on it is timed."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from seqmix.bench.timing import quartiles, take_turns

SAMPLE_SECONDS = 2e-3
"""Short work is repeated until a sample takes about this long, so that waiting for the device does not count."""

MOST_REPEATS = 100


class Bench:
    """The machine at hand; `notes` holds what the present section has found so far."""

    def __init__(self, *, is_rehearsal: bool) -> None:
        self.is_rehearsal = is_rehearsal
        self.device = torch.device("cpu" if is_rehearsal else "cuda")
        self.notes: dict[str, Any] = {}
        self._end = 0.0
        # What is compared is what was asked for: no product of float32 in fewer bits.
        torch.backends.cudnn.allow_tf32 = False

    def begin(self, seconds: float) -> None:
        """A new section begins."""
        torch.manual_seed(0)
        self.notes = {}
        self._end = time.perf_counter() + seconds

    @property
    def seconds_left(self) -> float:
        """Of the present section."""
        return self._end - time.perf_counter()

    def size(self, real: Any, rehearsed: Any) -> Any:
        """The one that is for this run."""
        return rehearsed if self.is_rehearsal else real

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def tidy(self) -> None:
        """Gives memory back between sections."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def allocated(self) -> int:
        """Bytes on the device; 0 on a CPU, where nothing counts them."""
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0

    def peak(self) -> int:
        """The most bytes on the device since the last `reset_peak`."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    def reset_peak(self) -> None:
        """Begins to watch for the most memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def seconds_of(self, sides: Mapping[str, Callable[[], object]], rounds: int = 9) -> dict[str, list[float]]:
        """Seconds of one call of each side, round by round; the sides take turns."""
        repeats = {}
        for name, side in sides.items():
            side()
            self.wait()
            begin = time.perf_counter()
            side()
            self.wait()
            taken = time.perf_counter() - begin
            repeats[name] = self.size(max(1, min(MOST_REPEATS, math.ceil(SAMPLE_SECONDS / max(taken, 1e-7)))), 1)

        def repeated(side: Callable[[], object], count: int) -> Callable[[], None]:
            def run() -> None:
                for _ in range(count):
                    side()

            return run

        times = take_turns(
            {name: repeated(side, repeats[name]) for name, side in sides.items()},
            rounds=self.size(rounds, 1),
            warmup=self.size(1, 0),
            synchronize=self.wait,
            budget_seconds=max(1.0, self.seconds_left / 2),
        )
        return {name: [seconds / repeats[name] for seconds in values] for name, values in times.items()}


def milliseconds(times: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and quartiles of each side."""
    return {name: quartiles(1e3 * seconds for seconds in values).to_dict() for name, values in times.items()}
