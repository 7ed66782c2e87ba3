"""Turns, quartiles and ratios, with a clock that the test winds itself."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import pytest
import torch

from seqmix.bench import timing
from seqmix.bench.floors import Floor, best, product_gflops, rates, read_gigabytes_per_second
from seqmix.bench.timing import (
    LEAST_ROUNDS,
    OtherProcesses,
    Quartiles,
    busy_warning,
    environment,
    quartiles,
    ratio,
    take_turns,
    with_threads,
)
from seqmix.errors import InputError


class Bench:
    """A clock, and sides that move it on and write down that they ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def side(self, name: str, seconds: float, slower_by: float = 0.0) -> Callable[[], None]:
        """Takes `seconds` at first and `slower_by` more each time."""
        calls = 0

        def run() -> None:
            nonlocal calls
            self.log.append(name)
            self.now += seconds + slower_by * calls
            calls += 1

        return run


def test_the_order_alternates_and_warm_up_is_not_counted() -> None:
    bench = Bench()
    sides = {"a": bench.side("a", 1.0, slower_by=1.0), "b": bench.side("b", 10.0)}
    times = take_turns(sides, rounds=3, warmup=2, clock=bench.clock)
    assert "".join(bench.log) == "ab" + "ba" + "ab" + "ba" + "ab"
    # The first two turns of a took 1 and 2 seconds.
    assert times == {"a": [3.0, 4.0, 5.0], "b": [10.0, 10.0, 10.0]}


def test_every_side_is_waited_for_before_and_after() -> None:
    bench = Bench()
    started = bench.side("work", 0.0)

    def wait() -> None:
        bench.log.append("wait")
        bench.now += 2.0

    times = take_turns({"a": started}, rounds=1, warmup=0, synchronize=wait, clock=bench.clock)
    assert bench.log == ["wait", "work", "wait"]
    # The wait before belongs to what ran earlier, the one after to the side.
    assert times == {"a": [2.0]}


def test_preparation_is_not_timed() -> None:
    bench = Bench()
    times = take_turns(
        {"a": bench.side("a", 1.0), "b": bench.side("b", 1.0)},
        rounds=2,
        warmup=0,
        prepare={"b": bench.side("make", 100.0)},
        clock=bench.clock,
    )
    assert times == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert bench.log == ["a", "make", "b", "make", "b", "a"]


def test_a_budget_ends_the_rounds_but_not_before_the_least() -> None:
    bench = Bench()
    times = take_turns({"a": bench.side("a", 5.0)}, rounds=100, warmup=1, budget_seconds=1.0, clock=bench.clock)
    assert len(times["a"]) == LEAST_ROUNDS
    bench = Bench()
    # The warm-up and 9 rounds take 50 seconds, which is not yet more than the budget.
    times = take_turns({"a": bench.side("a", 5.0)}, rounds=100, warmup=1, budget_seconds=50.0, clock=bench.clock)
    assert len(times["a"]) == 10


def test_progress_ends_at_one() -> None:
    shares: list[float] = []
    take_turns({"a": lambda: None}, rounds=3, warmup=1, show=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_the_collector_rests_while_sides_run_and_comes_back() -> None:
    seen: list[bool] = []
    assert gc.isenabled()
    take_turns({"a": lambda: seen.append(gc.isenabled())}, rounds=1, warmup=0)
    assert seen == [False]
    assert gc.isenabled()

    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        take_turns({"a": fail}, rounds=1)
    assert gc.isenabled()


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(InputError, match="0 sides"):
        take_turns({})
    with pytest.raises(InputError, match="rounds is 0"):
        take_turns({"a": lambda: None}, rounds=0)


def test_quartiles_lie_within_the_data() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == Quartiles(median=3.0, low=2.0, high=4.0)
    assert quartiles([7.0]) == Quartiles(median=7.0, low=7.0, high=7.0)
    assert quartiles([1.0, 2.0]) == Quartiles(median=1.5, low=1.25, high=1.75)
    with pytest.raises(InputError, match="0 values"):
        quartiles([])


def test_drift_that_all_sides_share_leaves_the_ratio_alone() -> None:
    speeds = [1.0, 3.0, 0.5, 7.0]
    times = {"slow": [6.0 * speed for speed in speeds], "fast": [2.0 * speed for speed in speeds]}
    assert ratio(times, over="slow", under="fast") == Quartiles(median=3.0, low=3.0, high=3.0)


def test_a_falling_function_turns_quartiles_round() -> None:
    assert Quartiles(median=2.0, low=1.0, high=4.0).map(lambda seconds: 1 / seconds) == Quartiles(
        median=0.5, low=0.25, high=1.0
    )


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with with_threads(before + 1) as used:
        assert used == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with with_threads(None) as used:
        assert used == before
    with pytest.raises(InputError, match="threads is 0"), with_threads(0):
        pass
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("others", "warns"), [(0.0, False), (timing.BUSY_CORES, False), (1.5, True)])
def test_other_processes_are_warned_of(monkeypatch: pytest.MonkeyPatch, others: float, warns: bool) -> None:
    bench = Bench()

    def sleep(seconds: float) -> None:
        bench.now += seconds

    monkeypatch.setattr(timing.time, "perf_counter", bench.clock)
    monkeypatch.setattr(timing.time, "sleep", sleep)
    # This process works all the time, others use what the case says of one core.
    monkeypatch.setattr(timing, "_own_seconds", lambda: bench.now)
    monkeypatch.setattr(timing, "_busy_seconds", lambda: (1 + others) * bench.now)
    sentence = busy_warning(2.0)
    assert (sentence is not None) == warns
    assert sentence is None or "other processes use 1.5 of" in sentence


def test_own_work_is_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    own = timing._own_seconds()
    deadline = time.perf_counter() + 0.05
    while time.perf_counter() < deadline:
        pass
    assert timing._own_seconds() >= own
    monkeypatch.setattr(timing, "_busy_seconds", lambda: None)
    monkeypatch.setattr(timing.os, "getloadavg", lambda: (0.5, 0.0, 0.0))
    assert OtherProcesses().cores() == 0.0


def test_both_ways_of_reading_the_processor_agree() -> None:
    pytest.importorskip("psutil")
    ours = timing._busy_seconds_of_linux()
    if ours is None:
        pytest.skip("this system has no /proc/stat")
    theirs = timing._busy_seconds()
    assert theirs is not None
    # Between the two readings all cores may have worked for a moment.
    assert ours == pytest.approx(theirs, abs=2.0 * (timing.os.cpu_count() or 1))


def test_the_best_floor_is_the_fastest_at_its_size() -> None:
    floors = {"small": Floor(run=lambda: None, amount=1e9), "large": Floor(run=lambda: None, amount=8e9)}
    times = {"small": [1.0, 1.0, 1.0], "large": [4.0, 2.0, 4.0]}
    assert best(floors, times) == "large"
    assert rates(floors, times) == [2.0, 4.0, 2.0]


def test_floors_of_this_machine_are_positive() -> None:
    assert product_gflops(threads=1, rounds=1) > 0
    assert read_gigabytes_per_second(threads=1, rounds=1) > 0


def test_the_environment_names_commit_machine_and_kernels() -> None:
    found = environment()
    assert {"commit", "versions", "hardware", "threads", "date", "native"} <= found.keys()
    native = found["native"]
    assert (native["reason"] is None) == native["in_use"]
    assert (native["instruction_set"] is None) != native["in_use"]
