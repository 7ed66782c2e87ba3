"""Where two lines cross: between measured points, and of formulas over whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

CLEAR = 0.05
"""Measured values closer than this share are called equal, so that noise does not make crossings."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Below `at` the first has the lower value where `first_is_lower_before`, above it the second."""

    at: float
    first_is_lower_before: bool


def measured_crossings(first: Mapping[int, float], second: Mapping[int, float]) -> list[Crossing]:
    """The crossings of two measured lines, interpolated linearly in the logarithms of both axes.

    Points where the two are closer than `CLEAR` decide nothing: a crossing lies between two clear points of
    opposite order.
    """
    places = sorted(place for place in set(first) & set(second) if first[place] > 0 and second[place] > 0)
    ratios = [(math.log(place), math.log(first[place] / second[place])) for place in places]
    clear = [index for index, (_, ratio) in enumerate(ratios) if abs(ratio) >= math.log1p(CLEAR)]
    crossings = []
    for before, after in pairwise(clear):
        if ratios[before][1] * ratios[after][1] > 0:
            continue
        crossings.append(
            Crossing(at=math.exp(_first_zero(ratios[before : after + 1])), first_is_lower_before=ratios[before][1] < 0)
        )
    return crossings


def _first_zero(points: list[tuple[float, float]]) -> float:
    """The first zero of a line through points (x, y) whose ends have opposite signs."""
    for (x, y), (next_x, next_y) in pairwise(points):
        if y == 0:
            return x
        if y * next_y < 0:
            return x + (next_x - x) * y / (y - next_y)
    return points[-1][0]


def formula_crossings(
    first: Callable[[int], float], second: Callable[[int], float], low: int = 1, high: int = 1 << 24
) -> list[Crossing]:
    """The whole numbers in low ... high from which on the order of two formulas is the other one.

    Looks at powers of two and narrows each change of order down by bisection; ties belong to the side before.
    """

    def order(place: int) -> int:
        a, b = first(place), second(place)
        return (a > b) - (a < b)

    crossings = []
    before, sign = low, order(low)
    place = low
    while place < high:
        place = min(place * 2, high)
        after_sign = order(place)
        if after_sign == 0 or after_sign == sign:
            before = place if after_sign == sign else before
            continue
        if sign != 0:
            after = place
            while after - before > 1:
                middle = (before + after) // 2
                if order(middle) == after_sign:
                    after = middle
                else:
                    before = middle
            crossings.append(Crossing(at=after, first_is_lower_before=sign < 0))
        before, sign = place, after_sign
    return crossings
