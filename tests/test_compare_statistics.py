"""Intervals of differences, against values derived by hand."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from seqmix.compare.statistics import Noise, difference, run_noise
from seqmix.evaluation.student import t_cumulative, t_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        # One degree is Cauchy's distribution: tan(0.475 pi).
        (1, math.tan(0.475 * math.pi)),
        # Two degrees have the closed form (2p - 1) sqrt(2 / (4 p (1 - p))).
        (2, 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))),
        # From printed tables.
        (4, 2.776445),
        (30, 2.042272),
        (1e7, 1.959964),
    ],
)
def test_quantiles_of_student(degrees: float, expected: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(expected, rel=1e-6)
    assert t_quantile(0.025, degrees) == pytest.approx(-expected, rel=1e-6)


@pytest.mark.parametrize("degrees", [1.5, 3, 7.25])
def test_quantile_inverts_the_cumulative_distribution(degrees: float) -> None:
    for probability in (0.6, 0.9, 0.975, 0.9995):
        assert t_cumulative(t_quantile(probability, degrees), degrees) == pytest.approx(probability, rel=1e-9)


def test_two_models_give_the_paired_t_interval() -> None:
    # Differences -0.1 and -0.3: mean -0.2, standard error sqrt(0.02 / 2) = 0.1, t with one degree 12.7062.
    values = {"a": {0: 1.0, 1: 1.2}, "b": {0: 1.1, 1: 1.5}}
    found = difference(values["a"], values["b"], run_noise(values))
    assert found is not None
    assert found.mean == pytest.approx(-0.2)
    assert found.low == pytest.approx(-0.2 - 1.27062, abs=1e-5)
    assert found.high == pytest.approx(-0.2 + 1.27062, abs=1e-5)
    assert not found.separable


def test_noise_is_pooled_over_models() -> None:
    # Rows 1 2, 1 4, 1 3: row means 1.5 2.5 2, column means 1 3, grand mean 2. Residuals are
    # +-(0.5, 0.5, 0): sum of squares 4 * 0.25 = 1, over (3 - 1)(2 - 1) degrees.
    noise = run_noise({"a": {0: 1, 1: 2}, "b": {0: 1, 1: 4}, "c": {0: 1, 1: 3}})
    assert noise == Noise(variance=0.5, degrees=2)
    # Pooled variance 0.5: standard error sqrt(2 * 0.5 / 2), t with two degrees 4.302653.
    found = difference({0: 1, 1: 2}, {0: 1, 1: 4}, noise)
    assert found is not None
    assert found.low == pytest.approx(-1 - 4.302653 * math.sqrt(0.5), abs=1e-5)


def test_what_a_seed_does_to_all_models_cancels() -> None:
    values = {"a": {0: 1.0, 1: 5.0, 2: 9.0}, "b": {0: 1.1, 1: 5.1, 2: 9.1}}
    noise = run_noise(values)
    assert noise is not None
    assert noise.variance == pytest.approx(0, abs=1e-20)
    found = difference(values["a"], values["b"], noise)
    assert found is not None
    assert found.separable


def test_held_out_blocks_widen_the_interval() -> None:
    values = {"a": {0: 1.0, 1: 1.2}, "b": {0: 1.1, 1: 1.5}}
    a = {0: [1.0, 1.0], 1: [1.2, 1.2]}
    b = {0: [0.6, 1.6], 1: [1.0, 2.0]}
    found = difference(values["a"], values["b"], run_noise(values), a, b)
    assert found is not None
    # Differences by block, averaged over seeds: 0.3 and -0.7, variance 0.5, over two blocks 0.25. With the 0.01 of
    # the seeds the variance is 0.26 with 0.26^2 / (0.01^2 / 1 + 0.25^2 / 1) degrees.
    degrees = 0.26**2 / (0.01**2 + 0.25**2)
    half = t_quantile(0.975, degrees) * math.sqrt(0.26)
    assert found.high == pytest.approx(-0.2 + half)
    assert found.low == pytest.approx(-0.2 - half)


def test_one_seed_has_no_interval() -> None:
    values = {"a": {0: 1.0}, "b": {0: 1.1}}
    assert run_noise(values) is None
    found = difference(values["a"], values["b"], None)
    assert found is not None
    assert (found.low, found.high, found.separable) == (None, None, False)


def test_models_that_share_no_seed_are_not_compared() -> None:
    assert difference({0: 1.0}, {1: 1.0}, None) is None


def test_a_model_that_lacks_a_seed_is_left_out_of_the_noise_and_still_compared() -> None:
    values = {"a": {0: 1.0, 1: 1.2}, "b": {0: 1.1, 1: 1.5}, "c": {0: 1.3}}
    noise = run_noise(values)
    assert noise == run_noise({name: values[name] for name in ("a", "b")})
    found = difference(values["a"], values["c"], noise)
    assert found is not None
    assert (found.seeds, found.mean) == (1, pytest.approx(-0.3))


def test_intervals_cover_the_truth_nineteen_times_in_twenty() -> None:
    draw = random.Random(3)
    hits = 0
    repetitions = 300
    for _ in range(repetitions):
        shared = [draw.gauss(0, 0.5) for _ in range(3)]
        values = {
            name: {seed: mean + shared[seed] + draw.gauss(0, 0.1) for seed in range(3)}
            for name, mean in (("a", 1.0), ("b", 1.3), ("c", 0.4))
        }
        found = difference(values["a"], values["b"], run_noise(values))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= -0.3 <= found.high
    # The standard deviation of a share of 0.95 over 300 is 0.0126.
    assert fmean([hits / repetitions]) == pytest.approx(0.95, abs=4 * 0.0126)
