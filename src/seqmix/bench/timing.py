"""Sides that take turns, so that whatever changes the machine's speed changes it for all of them.

A ratio is formed in each round and then summarised: drift between rounds cancels, and the quartiles tell how far the
rounds agree.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from seqmix.errors import InputError
from seqmix.training.environment import describe_environment

BUSY_CORES = 0.15
"""Other processes that use more than this many cores are worth a warning."""

LEAST_ROUNDS = 3
"""Rounds that are measured also where the time for more has run out."""


@dataclass(frozen=True, kw_only=True)
class Quartiles:
    """A median between its lower and upper quartile."""

    median: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """The three as a JSON value."""
        return asdict(self)

    def map(self, function: Callable[[float], float]) -> Quartiles:
        """The quartiles of a monotonic function of the values, such as a rate of a time."""
        low, high = sorted((function(self.low), function(self.high)))
        return Quartiles(median=function(self.median), low=low, high=high)


def quartiles(values: Iterable[float]) -> Quartiles:
    """Median and quartiles, interpolated within the data; of one value all three are that value."""
    ordered = sorted(values)
    if not ordered:
        raise InputError("there are 0 values: quartiles need at least one")
    if len(ordered) == 1:
        return Quartiles(median=ordered[0], low=ordered[0], high=ordered[0])
    low, middle, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return Quartiles(median=middle, low=low, high=high)


def ratio(times: Mapping[str, Sequence[float]], over: str, under: str) -> Quartiles:
    """Quartiles of times[over] / times[under], formed round by round."""
    return quartiles(above / below for above, below in zip(times[over], times[under], strict=True))


@contextmanager
def without_collection() -> Iterator[None]:
    """Keeps Python's garbage collector from running inside; it runs once before."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def take_turns(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    warmup: int = 2,
    synchronize: Callable[[], None] | None = None,
    budget_seconds: float | None = None,
    show: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Runs every side once in each round, in an order that turns round from one round to the next.

    Args:
        sides: what is timed, by name.
        rounds: how many are counted.
        warmup: rounds before them that are not counted.
        synchronize: waits for work that a call only started, such as `torch.cuda.synchronize`.
        budget_seconds: no further round begins after this time, once `LEAST_ROUNDS` are counted.
        show: is told the share of the rounds that is done.
        clock: seconds.

    Returns:
        The seconds of each side, by round; the lists are equally long.
    """
    if not sides:
        raise InputError("there are 0 sides to time: give at least one")
    if rounds < 1 or warmup < 0:
        raise InputError(f"rounds is {rounds} and warmup {warmup}: at least 1 and 0 are needed")
    wait = synchronize or (lambda: None)
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    begin = clock()
    with without_collection():
        for number in range(-warmup, rounds):
            if budget_seconds is not None and number >= LEAST_ROUNDS and clock() - begin > budget_seconds:
                break
            for name in names if number % 2 == 0 else reversed(names):
                wait()
                start = clock()
                sides[name]()
                wait()
                spent = clock() - start
                if number >= 0:
                    times[name].append(spent)
            if show is not None:
                show((number + warmup + 1) / (rounds + warmup))
    return times


@contextmanager
def with_threads(count: int | None) -> Iterator[int]:
    """Runs torch with this many threads inside, None for as many as it has; yields the number.

    Everything of one process that computes through torch shares its threads, so the sides are alike. A library with
    threads of its own must be given the same number.
    """
    before = torch.get_num_threads()
    if count is not None and count < 1:
        raise InputError(f"threads is {count}: at least 1 is needed")
    torch.set_num_threads(before if count is None else count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def busy_warning(seconds: float = 0.3) -> str | None:
    """A sentence when other processes keep the processor busy, watched for some seconds; None on a quiet machine."""
    cores = os.cpu_count() or 1
    others = _cores_of_others(seconds)
    if others is None or others <= BUSY_CORES:
        return None
    return (
        f"the machine is busy: other processes use {others:.1f} of {cores} cores, so read the times with care "
        "and the ratios with their quartiles"
    )


def _cores_of_others(seconds: float) -> float | None:
    """How many cores other processes used while this one waited; None where the system does not tell."""
    before = _busy_seconds()
    if before is None:
        try:
            return max(0.0, os.getloadavg()[0] - 1)
        except (AttributeError, OSError):
            return None
    own, start = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    after = _busy_seconds()
    waited = time.perf_counter() - start
    return max(0.0, ((after or before) - before - (time.process_time() - own)) / waited)


def _busy_seconds() -> float | None:
    """The seconds that all cores together have worked for anyone since the start; stolen time counts."""
    try:
        import psutil
    except ImportError:
        return _busy_seconds_of_linux()
    times = psutil.cpu_times()._asdict()
    # Linux counts the guests' time in user and nice already.
    resting = {"idle", "iowait", "guest", "guest_nice"}
    return float(sum(value for name, value in times.items() if name not in resting))


def _busy_seconds_of_linux() -> float | None:
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _iowait, *interrupts_and_stolen = fields
        return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Commit, hardware, versions, threads, date and the convolution in use, as a JSON value."""
    from seqmix.kernels.depthwise_conv import IMPLEMENTATIONS

    return {**describe_environment(device), "convolutions": list(IMPLEMENTATIONS)}
