"""Where two measured lines cross."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

from seqmix.models.crossings import Crossing

CLEAR = 0.05
"""Measured values closer than this share are called equal, so that noise does not make crossings."""


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
