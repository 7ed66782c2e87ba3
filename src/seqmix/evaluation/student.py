"""Student's t distribution: how wide an interval is that a mean of few values gives."""

from __future__ import annotations

import math
from functools import cache


@cache
def t_quantile(probability: float, degrees: float) -> float:
    """The quantile of Student's t; `degrees` of freedom need not be whole."""
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while t_cumulative(high, degrees) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if t_cumulative(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_cumulative(t: float, degrees: float) -> float:
    """P(T <= t) of Student's t, through the incomplete beta function I_x(degrees / 2, 1 / 2)."""
    tail = _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5) / 2
    return 1 - tail if t >= 0 else tail


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Abramowitz and Stegun 26.5.8)."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    # Evaluated from the innermost term outwards; 300 terms are far beyond what doubles resolve here.
    fraction = 1.0
    for term in range(300, 0, -1):
        half = term // 2
        if term % 2:
            factor = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            factor = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        fraction = 1 + factor / fraction
    return front / fraction
