"""Which differences are separable: intervals for differences of bits per byte.

Model i trained with seed k reaches, on block j of the held-out text,

    y_ikj = m_i + s_k + h_j + e_ik + g_ij + rest

All models of a seed read the same stream and all are tested on the same blocks, so what a seed (s_k) or a block
(h_j) does to everyone cancels in a difference. Two sources remain: the luck of a run (e_ik) and the choice of
held-out text (g_ij). For the difference of two models over n shared seeds and m blocks

    variance = 2 s^2 / n + S^2 / m

s^2 is the residual mean square of the models x seeds layout (a randomized block design), pooled over all models,
with (models - 1)(seeds - 1) degrees of freedom; with two models it is exactly the paired t test. Pooling supposes
that runs of all models are about equally noisy; without it two seeds would leave one degree of freedom. S^2 is
the variance over blocks of the difference averaged over seeds; the rest is counted in both terms, which errs
towards "not separable". The degrees of freedom of the sum are Satterthwaite's, and the interval is Student's.
Each interval holds with 95 % on its own, not all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The pooled luck of a run: its variance and the degrees of freedom of that estimate."""

    variance: float
    degrees: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """mean of a - b over the shared seeds; low and high of its interval, None where one seed allows none."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def separable(self) -> bool:
        """The interval exists and leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def run_noise(values: Mapping[str, Mapping[int, float]]) -> Noise | None:
    """The residual mean square of a models x seeds layout; None with fewer than two models or seeds.

    Args:
        values: bits per byte by model and seed. Models that lack a seed others have are left out.
    """
    seeds = sorted({seed for by_seed in values.values() for seed in by_seed})
    rows = [[by_seed[seed] for seed in seeds] for by_seed in values.values() if len(by_seed) == len(seeds)]
    if len(rows) < 2 or len(seeds) < 2:
        return None
    row_means = [fmean(row) for row in rows]
    column_means = [fmean(column) for column in zip(*rows, strict=True)]
    grand = fmean(row_means)
    residual = sum(
        (value - row_mean - column_mean + grand) ** 2
        for row, row_mean in zip(rows, row_means, strict=True)
        for value, column_mean in zip(row, column_means, strict=True)
    )
    degrees = (len(rows) - 1) * (len(seeds) - 1)
    return Noise(variance=residual / degrees, degrees=degrees)


def difference(
    a: Mapping[int, float],
    b: Mapping[int, float],
    noise: Noise | None,
    a_blocks: Mapping[int, Sequence[float]] | None = None,
    b_blocks: Mapping[int, Sequence[float]] | None = None,
) -> Difference | None:
    """The difference a - b with its interval; None where the two share no seed.

    Args:
        a, b: bits per byte by seed.
        noise: of all models (`run_noise`); None leaves the interval out.
        a_blocks, b_blocks: bits per byte of each block of held-out text, by seed.
    """
    shared = sorted(set(a) & set(b))
    if not shared:
        return None
    mean = fmean(a[seed] - b[seed] for seed in shared)
    if noise is None:
        return Difference(mean=mean, low=None, high=None, seeds=len(shared))
    parts = [(2 * noise.variance / len(shared), noise.degrees)]
    by_block = _block_differences(shared, a_blocks or {}, b_blocks or {})
    if len(by_block) > 1:
        parts.append((variance(by_block) / len(by_block), len(by_block) - 1))
    total = sum(part for part, _ in parts)
    if total == 0:
        return Difference(mean=mean, low=mean, high=mean, seeds=len(shared))
    degrees = total**2 / sum(part**2 / degrees for part, degrees in parts)
    half = t_quantile((1 + CONFIDENCE) / 2, degrees) * math.sqrt(total)
    return Difference(mean=mean, low=mean - half, high=mean + half, seeds=len(shared))


def _block_differences(
    seeds: Sequence[int], a: Mapping[int, Sequence[float]], b: Mapping[int, Sequence[float]]
) -> list[float]:
    """a - b of each block, averaged over seeds; empty where the blocks are not known or not the same."""
    lengths = {len(blocks.get(seed, ())) for blocks in (a, b) for seed in seeds}
    if len(lengths) != 1:
        return []
    return [fmean(a[seed][block] - b[seed][block] for seed in seeds) for block in range(lengths.pop())]


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
