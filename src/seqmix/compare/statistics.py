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

from seqmix.evaluation.student import t_quantile

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
