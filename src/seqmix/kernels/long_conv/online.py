"""The long convolution one position at a time, exactly, without reading the whole past at each.

A block of P positions begins with the sums that everything before it sends into it, one transform. Inside a block,
what stands in the last `NEAR` positions is added directly; after every `NEAR` positions the latest 2^k of them send to
the 2^k that follow, with 2^k the largest power of two that divides how many the block has read. So every pair of a
source and a target meets once (arXiv 2410.12982's tiles within arXiv 2410.03766's epochs). With P a share of the n
positions read, a position costs O(log^2 n) on average, where a sum over the past costs O(n).

Shapes: B batch, S sources, D channels, U positions of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.long_conv.fft import smooth_length, targets, transform_flops

NEAR = 32
"""Positions whose sum is formed directly: a power of two."""

SHARE = 4
"""Slots for each position of a block: more of them keep the state small, fewer the work."""


def block_length(slots: int) -> int:
    """P for a state that has room for so many inputs: the largest power of two within a quarter, at least 1."""
    return 0 if slots < 1 else 1 << max(0, (slots // SHARE).bit_length() - 1)


def tile_length(read: int) -> int:
    """The positions of the tile that is due when a block has read so many; 0 for none."""
    return read & -read if read % NEAR == 0 else 0


def ahead(past_BSD: Tensor, taps_DK: Tensor, count: int) -> Tensor:
    """(batch, count, dim): what the sources, in order of time, send to the `count` positions that follow."""
    return targets(past_BSD, taps_DK, past_BSD.shape[1], count)


def recent_sum(past_BSD: Tensor, taps_DK: Tensor) -> Tensor:
    """(batch, dim): what the sources, in order of time, send to the next position; taps from lag 0 on."""
    lags = taps_DK[:, 1 : past_BSD.shape[1] + 1].flip(1)
    wide = torch.promote_types(past_BSD.dtype, lags.dtype)
    return (past_BSD[:, past_BSD.shape[1] - lags.shape[1] :].to(wide) * lags.T.to(wide)).sum(dim=1)


def step_flops(slots: int) -> int:
    """FLOPs of one channel and position on average: the block's beginning, its tiles and the direct sums."""
    block = block_length(slots)
    if not block:
        return 2
    total = 3 * transform_flops(smooth_length(slots + block)) / block + 2 * (1 + min(block, NEAR) / 2)
    length = NEAR
    while length < block:
        total += 3 * transform_flops(2 * length) / (2 * length)
        length *= 2
    return int(total)


def online_taps(slots: int) -> int:
    """The taps that one step needs on average, formed anew each time."""
    block = block_length(slots)
    if not block:
        return 1
    total = min(block, NEAR) + (slots + block) / block
    length = NEAR
    while length < block:
        total += 1
        length *= 2
    return int(total)
