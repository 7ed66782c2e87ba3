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

from seqmix.bench.peers import PEERS
from seqmix.errors import InputError
from seqmix.kernels.library import instruction_set, library, why_missing
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
    prepare: Mapping[str, Callable[[], object]] | None = None,
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
        prepare: what is done before a side each time and not timed, by the side's name.
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
    before = prepare or {}
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    begin = clock()
    with without_collection():
        for number in range(-warmup, rounds):
            if budget_seconds is not None and number >= LEAST_ROUNDS and clock() - begin > budget_seconds:
                break
            for name in names if number % 2 == 0 else reversed(names):
                if name in before:
                    before[name]()
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
    watch = OtherProcesses()
    time.sleep(seconds)
    return watch.warning()


class OtherProcesses:
    """Watches how much of the processor other processes use from the moment when it is made."""

    def __init__(self) -> None:
        self._start, self._busy, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def cores(self) -> float | None:
        """How many cores they used so far, on average; None where the system does not tell."""
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            try:
                return max(0.0, os.getloadavg()[0] - 1)
            except (AttributeError, OSError):
                return None
        waited = max(time.perf_counter() - self._start, 1e-3)
        return max(0.0, (busy - self._busy - (_own_seconds() - self._own)) / waited)

    def warning(self) -> str | None:
        """A sentence when that is more than `BUSY_CORES`."""
        others = self.cores()
        if others is None or others <= BUSY_CORES:
            return None
        return (
            f"the machine is busy: other processes use {others:.1f} of {os.cpu_count() or 1} cores, so read the times "
            "with care and the ratios with their quartiles"
        )


def _own_seconds() -> float:
    """The processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


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
    """Commit, hardware, versions, threads, date and the compiled kernels in use, as a JSON value.

    native: whether the compiled CPU kernels are in use, their instruction set, and if they are not, the reason.
    peers: the versions of the packages that are measured beside seqmix, None for those that are not installed.
    """
    native = library() is not None
    return {
        **describe_environment(device),
        "native": {
            "in_use": native,
            "instruction_set": instruction_set() if native else None,
            "reason": why_missing(),
        },
        "peers": {peer.package: peer.version for peer in PEERS},
    }
