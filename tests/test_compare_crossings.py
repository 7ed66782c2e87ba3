"""Where lines cross."""

from __future__ import annotations

import pytest

from seqmix.compare.crossings import measured_crossings
from seqmix.models.crossings import Crossing, formula_crossings


def test_measured_lines_cross_where_their_power_laws_do() -> None:
    growing = {context: 0.01 * context for context in (128, 512, 2048)}
    flat = dict.fromkeys(growing, 10.0)
    (crossing,) = measured_crossings(growing, flat)
    assert crossing.at == pytest.approx(1000)
    assert crossing.first_is_lower_before
    (mirrored,) = measured_crossings(flat, growing)
    assert mirrored.at == pytest.approx(1000)
    assert not mirrored.first_is_lower_before


def test_noise_makes_no_crossing() -> None:
    assert measured_crossings({1: 1.0, 2: 1.02, 4: 1.0}, {1: 1.01, 2: 1.0, 4: 1.01}) == []


def test_points_that_are_nearly_equal_lie_inside_one_crossing() -> None:
    first = {1: 1.0, 2: 1.01, 4: 1.2}
    second = {1: 1.2, 2: 1.0, 4: 1.0}
    (crossing,) = measured_crossings(first, second)
    assert 1 < crossing.at < 2


def test_places_that_only_one_line_has_are_left_out() -> None:
    assert measured_crossings({1: 1.0, 2: 3.0}, {1: 2.0}) == []


def test_formulas_cross_at_the_first_whole_number() -> None:
    # 7 n > 1000 first holds at n = 143.
    assert formula_crossings(lambda n: 7 * n, lambda n: 1000) == [Crossing(at=143, first_is_lower_before=True)]


def test_a_tie_belongs_to_the_side_before() -> None:
    # 10 n equals 1000 at n = 100: a constant is smaller from 101 on.
    assert formula_crossings(lambda n: 10 * n, lambda n: 1000) == [Crossing(at=101, first_is_lower_before=True)]


def test_formulas_may_cross_twice() -> None:
    crossings = formula_crossings(lambda n: (n - 50) * (n - 5000), lambda n: 0, high=1 << 16)
    assert [(one.at, one.first_is_lower_before) for one in crossings] == [(51, False), (5001, True)]


def test_formulas_that_never_cross() -> None:
    assert formula_crossings(lambda n: n, lambda n: n + 1) == []
