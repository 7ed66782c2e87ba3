"""How the time of one mixer's forward grows with the length, beside what its cost says."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seqmix.bench.exponent import Exponent, exponent, fit
from seqmix.bench.timing import take_turns, without_collection
from seqmix.mixer import Mixer


@dataclass(frozen=True, kw_only=True)
class TimeExponent:
    """seconds: medians by length. measured: their exponent. claimed: that of the declared FLOPs, over the same ones."""

    seconds: Mapping[int, float]
    measured: Exponent
    claimed: float

    def to_dict(self) -> dict[str, Any]:
        """As a JSON value."""
        return {"seconds": dict(self.seconds), "measured": self.measured.to_dict(), "claimed": self.claimed}


@torch.inference_mode()
def time_exponent(
    make: Callable[[int], Mixer],
    lengths: Sequence[int],
    *,
    rounds: int = 7,
    budget_seconds: float | None = None,
    show: Callable[[float], None] | None = None,
) -> TimeExponent:
    """Times forward of one row at every length, in turns, in float32.

    Args:
        make: the mixer that takes a sequence of a length.
        lengths: positions; at least two.
        rounds, budget_seconds, show: as of `take_turns`.
    """
    mixers = {length: make(length).eval() for length in lengths}
    inputs = {length: torch.randn(1, length, mixer.dim) for length, mixer in mixers.items()}
    sides = {str(length): lambda length=length: mixers[length](inputs[length]) for length in lengths}
    with without_collection():
        times = take_turns(sides, rounds=rounds, warmup=1, budget_seconds=budget_seconds, show=show)
    seconds = {length: statistics.median(times[str(length)]) for length in lengths}
    measured = exponent(seconds)
    fitted = [length for length in lengths if measured.first <= length <= measured.last]
    claimed, _ = fit({length: float(mixers[length].cost(1, length).flops) for length in fitted})
    return TimeExponent(seconds=seconds, measured=measured, claimed=claimed)
