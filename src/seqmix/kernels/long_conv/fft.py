"""The long convolution by Fourier transforms, in memory linear in the time.

A sequence is one transform. Packed documents are cut in two again and again: at each middle only the document that
spans it sends from its left part to its right part, so that masks on both sides keep every border exact, and all
middles of one level are one batch of transforms.

Shapes: B batch, S sources, T targets, D channels, K taps, N nodes of one level.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

NUMBERS_AT_ONCE = 1 << 23
"""Numbers of one transform: more channels than these allow are taken one group after another."""


def smooth_length(least: int) -> int:
    """The smallest even number from `least` on that has no prime factor above 5, which transforms are fast for."""
    best = 1 << max(1, (least - 1).bit_length())
    five = 1
    while five < best:
        odd = five
        while odd < best:
            rest = -(-least // odd)
            best = min(best, odd << max(1, (rest - 1).bit_length()))
            odd *= 3
        five *= 5
    return best


def transform_flops(length: int) -> int:
    """The usual count for one real transform: 5/2 n log2 n."""
    return int(2.5 * length * math.log2(max(2, length)))


def convolve(u_BTD: Tensor, taps_DK: Tensor, past_BPD: Tensor | None, runs_BT: Tensor | None) -> Tensor:
    """As the reference; in float32 or wider inside."""
    time = u_BTD.shape[1]
    before = 0 if past_BPD is None else past_BPD.shape[1]
    full = u_BTD if past_BPD is None else torch.cat([past_BPD.to(u_BTD.dtype), u_BTD], dim=1)
    if runs_BT is None:
        return targets(full, taps_DK, before, time)
    runs = torch.cat([runs_BT.new_zeros(len(runs_BT), before), runs_BT], dim=1)
    return _packed(full, taps_DK, runs)[:, before:]


def targets(u_BSD: Tensor, taps_DK: Tensor, first: int, count: int) -> Tensor:
    """y (batch, count, dim) at positions first ... first + count - 1, which may be beyond the sources."""
    y = _Convolution.apply(u_BSD, taps_DK[:, : first + count], first, count)
    assert isinstance(y, Tensor)
    return y


def _packed(u_BTD: Tensor, taps_DK: Tensor, runs_BT: Tensor) -> Tensor:
    time, kernel = u_BTD.shape[1], taps_DK.shape[1]
    y = u_BTD * taps_DK[:, 0].to(u_BTD.dtype)
    if time == 1 or kernel == 1:
        return y
    levels = (time - 1).bit_length()
    fill = (1 << levels) - time
    u, runs = F.pad(u_BTD, (0, 0, 0, fill)), F.pad(runs_BT, (0, fill), value=-1)
    y = F.pad(y, (0, 0, 0, fill))
    for level in range(levels):
        half = 1 << level
        # A source farther from the middle than the filter is long reaches nothing beyond it.
        near = min(half, kernel - 1)
        nodes, node_runs = u.unflatten(1, (-1, 2 * half)), runs.unflatten(1, (-1, 2 * half))
        left, right = slice(half - near, half), slice(half, half + near)
        spanning = node_runs[:, :, half - 1 : half]
        sends, hears = node_runs[:, :, left] == spanning, node_runs[:, :, right] == spanning
        sources = torch.where(sends[..., None], nodes[:, :, left], nodes.new_zeros(()))
        sums = targets(sources.flatten(0, 1), taps_DK, near, near).unflatten(0, sources.shape[:2])
        sums = torch.where(hears[..., None], sums, sums.new_zeros(()))
        y = y + F.pad(sums, (0, 0, half, half - near)).flatten(1, 2)
    return y[:, :time]


class _Convolution(torch.autograd.Function):
    """y[t] = sum over s of taps[t - s] u[s] for targets first ... first + count - 1."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, taps: Tensor, first: int, count: int) -> Tensor:
        ctx.save_for_backward(u, taps)
        ctx.first, ctx.count = first, count
        length = _length(u, taps, first, count)
        parts = []
        for channels in _groups(u, length):
            product = _spectrum(u[:, :, channels], length) * _filter_spectrum(taps[channels], length)
            sums = torch.fft.irfft(product, length)[:, :, first : first + count]
            parts.append(sums.transpose(1, 2).to(u.dtype))
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        u, taps = ctx.saved_tensors
        first, count = ctx.first, ctx.count
        wants_u, wants_taps = ctx.needs_input_grad[:2]
        length = _length(u, taps, first, count)
        of_u, of_taps = [], []
        for channels in _groups(u, length):
            # The target at `first` stands at 0 here, so what meets it is shifted by as much.
            grad = _spectrum(grads[0][:, :, channels], length)
            if wants_u:
                found = torch.fft.irfft(grad * _filter_spectrum(taps[channels], length).conj(), length)
                found = found.roll(first, dims=2)[:, :, : u.shape[1]]
                of_u.append(found.transpose(1, 2).to(u.dtype))
            if wants_taps:
                product = (grad * _spectrum(u[:, :, channels], length).conj()).sum(dim=0)
                of_taps.append(torch.fft.irfft(product, length).roll(first, dims=1)[:, : taps.shape[1]].to(taps.dtype))
        return (
            torch.cat(of_u, dim=2) if of_u else None,
            torch.cat(of_taps) if of_taps else None,
            None,
            None,
        )


def _length(u: Tensor, taps: Tensor, first: int, count: int) -> int:
    """A transform so long that nothing wraps around onto a target: what lies beyond the targets may."""
    sources, kernel = u.shape[1], taps.shape[1]
    return smooth_length(max(sources, kernel, first + count, sources + kernel - 1 - first))


def _groups(u: Tensor, length: int) -> list[slice]:
    size = max(1, NUMBERS_AT_ONCE // (max(1, u.shape[0]) * length))
    return [slice(channel, channel + size) for channel in range(0, u.shape[2], size)]


def _spectrum(u_BTD: Tensor, length: int) -> Tensor:
    """(batch, dim, frequencies)."""
    wide = torch.promote_types(u_BTD.dtype, torch.float32)
    return torch.fft.rfft(u_BTD.transpose(1, 2).to(wide).contiguous(), length)


def _filter_spectrum(taps_DK: Tensor, length: int) -> Tensor:
    return torch.fft.rfft(taps_DK.to(torch.promote_types(taps_DK.dtype, torch.float32)), length)
