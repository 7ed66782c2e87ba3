"""The budget's shares and the learning rate that follows them."""

from __future__ import annotations

import math

import pytest

from seqmix.training.schedule import Budget, Schedule


def test_the_rate_rises_then_falls_as_half_a_cosine() -> None:
    schedule = Schedule(peak=1e-2, warmup_share=0.2, min_lr_share=0.1)
    assert schedule.learning_rate(0.1) == pytest.approx(0.5e-2)
    assert schedule.learning_rate(0.2) == pytest.approx(1e-2)
    assert schedule.learning_rate(0.6) == pytest.approx(1e-2 * (0.1 + 0.9 * 0.5))
    assert schedule.learning_rate(1.0) == pytest.approx(1e-3)
    assert schedule.learning_rate(1.3) == pytest.approx(1e-3)
    rates = [schedule.learning_rate(share / 100) for share in range(20, 101)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_no_warm_up_and_nothing_else(warmup: float) -> None:
    schedule = Schedule(peak=2.0, warmup_share=warmup, min_lr_share=0.0)
    assert all(math.isfinite(schedule.learning_rate(share / 10)) for share in range(11))
    assert schedule.learning_rate(0.0) == pytest.approx(0.02 if warmup else 2.0)


def test_token_budget_is_met_by_whole_steps() -> None:
    budget = Budget(tokens=1000, seconds=None, tokens_per_step=64)
    assert budget.steps == 16
    assert budget.share(15, 1e9) < 1
    assert budget.share(16, 0.0) == 1
    assert budget.share_of_next(15, 0.0) == 1
    assert budget.time_left(6, 3.0, 0.5) == 5.0


def test_second_budget_follows_the_clock() -> None:
    budget = Budget(tokens=None, seconds=20.0, tokens_per_step=64)
    assert budget.steps is None
    assert budget.share(1000, 5.0) == 0.25
    assert budget.share_of_next(4, 4.0) == pytest.approx(0.25)
    assert budget.share_of_next(0, 0.0) == 0.0
    assert budget.time_left(1000, 5.0, 1.0) == 15.0
