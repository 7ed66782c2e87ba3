"""How many links a pattern has over a sequence, without the matrix that holds them.

Shapes: T targets, C links of one target that are listed one by one.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from seqmix.cost import causal_links
from seqmix.mixers.links.parts import Global, Random, Window
from seqmix.mixers.links.pattern import Pattern

LISTED_AT_ONCE = 1 << 22
"""Listed links that are in memory together."""


@lru_cache(maxsize=256)
def count_links(pattern: Pattern, time: int, *, causal: bool) -> int:
    """Pairs of target and source over a document of `time` positions."""
    if not causal:
        # Every link both ways, but the one of a position to itself.
        return 2 * count_links(pattern, time, causal=True) - time
    only = pattern.single_window
    if pattern.is_full or (only is not None and only.dilation == 1):
        return causal_links(time, only.size if only is not None else None)
    unit = _unit(pattern)
    listed = sum(_num_listed(part) for part in pattern.parts)
    step = max(1, LISTED_AT_ONCE // max(listed, 1)) * unit
    # Counted for real, also while a model is laid out on the meta device.
    with torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
        return sum(
            int(links_of(pattern, torch.arange(first, min(first + step, time)), unit).sum())
            for first in range(0, time, step)
        )


def links_of(pattern: Pattern, targets: Tensor, unit: int = 1) -> Tensor:
    """(T,): how many positions at or before each of `targets` (T,) it sees.

    Args:
        unit: `targets` are consecutive and begin at a multiple of it, and those of one block of so many see the same
            before their window.
    """
    if pattern.is_full:
        return targets + 1
    first = targets
    spans: tuple[tuple[int, int], ...] = ()
    listed = []
    for part in pattern.parts:
        if isinstance(part, Window) and part.dilation == 1:
            begin = targets // part.block - part.size + 1
            first = first.minimum((begin * part.block).clamp(min=0))
        elif isinstance(part, Global):
            spans += part.spans
        elif isinstance(part, Window | Random):
            listed.append(_listed(part, targets[::unit]))
    counts = targets - first + 1
    begins = first[::unit]
    if listed:
        sources = torch.cat(listed, dim=1)
        sources = sources.masked_fill((sources >= begins[:, None]) | (sources < 0), -1)
        for a, b in spans:
            sources = sources.masked_fill((sources >= a) & (sources < b), -1)
        # Windows list theirs once; what is drawn may meet what another part lists.
        sources = sources.sort(dim=1).values if len(listed) > 1 else sources
        is_new = sources >= 0
        if len(listed) > 1:
            is_new[:, 1:] &= sources[:, 1:] != sources[:, :-1]
        counts = counts + is_new.sum(dim=1).repeat_interleave(unit)[: len(targets)]
    if spans:
        marked = torch.tensor(sorted({position for a, b in spans for position in range(a, b)}))
        counts = counts + torch.searchsorted(marked, first)
        counts = torch.where(torch.isin(targets, marked), targets + 1, counts)
    return counts


def _unit(pattern: Pattern) -> int:
    """The positions of a block where all windows and random links are of blocks of one size; else 1."""
    blocks = {part.block for part in pattern.parts if isinstance(part, Window | Random)}
    is_dilated = any(isinstance(part, Window) and part.dilation > 1 for part in pattern.parts)
    has_window = any(isinstance(part, Window) for part in pattern.parts)
    return blocks.pop() if len(blocks) == 1 and has_window and not is_dilated else 1


def _num_listed(part: object) -> int:
    if isinstance(part, Random):
        return part.count * part.block
    return part.size if isinstance(part, Window) and part.dilation > 1 else 1


def _listed(part: Window | Random, targets: Tensor) -> Tensor:
    """(T, C) positions, all different within a row but for negative ones, which mean nothing."""
    if isinstance(part, Window):
        return targets[:, None] - torch.arange(part.size) * part.dilation
    drawn = torch.stack(part.draws(targets // part.block), dim=1)
    positions = drawn[..., None] * part.block + torch.arange(part.block)
    return positions.masked_fill(drawn[..., None] < 0, -1).flatten(1)
