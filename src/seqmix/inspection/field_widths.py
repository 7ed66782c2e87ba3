"""Curves over the distance back from an output, and how few positions hold most of one.

Shapes: H curves, N targets, T time, S source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Widths:
    """The fewest positions, counted back from the output, that hold half, 90 % and 99 % of a curve; 0 if it is zero."""

    half: int
    ninety: int
    ninety_nine: int


def widths(curve: Tensor) -> Widths:
    """The widths of a curve (T,) of shares by distance."""
    return widths_of_each(curve[None])[0]


def widths_of_each(curves: Tensor) -> list[Widths]:
    """The widths of each of the curves (H, T)."""
    held = curves.double().cumsum(dim=1)
    # A sum of T terms is off by as many roundings of its last digit.
    slack = curves.shape[1] * torch.finfo(torch.float64).eps
    found = [
        torch.where(held[:, -1] > 0, (held < (share - slack) * held[:, -1:]).sum(dim=1) + 1, 0).tolist()
        for share in (0.5, 0.9, 0.99)
    ]
    return [Widths(*row) for row in zip(*found, strict=True)]


def by_distance(sizes: Tensor, targets: Sequence[int]) -> Tensor:
    """(H, T): the shares of sizes (H, N, S) by distance back from their targets (N,), the mean over targets."""
    time = sizes.shape[2]
    sources = torch.tensor(targets)[:, None] - torch.arange(time)
    back = sizes.gather(2, sources.clamp(min=0).expand(len(sizes), -1, -1)) * (sources >= 0)
    shares = back / back.sum(dim=2, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
    mean = shares.mean(dim=1)
    return mean / mean.sum(dim=1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
