"""The gated linear recurrence in plain torch: all chunks of time side by side, then their borders one by one.

Inside a chunk a loop runs from a state of zero and multiplies the factors up; what a chunk hands on is then found in a
loop over the chunks. That takes about twice the square root of the time in steps, divides by nothing and takes no
logarithm, so that factors may be zero or negative. The gradient is the same recurrence from the last position on.

Shapes: B batch, T time, D channels, J chunks, Q positions of a chunk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seqmix.kernels.linear_recurrence.reference import without_borders


def scan(a_BTD: Tensor, b_BTD: Tensor, state_BD: Tensor, runs_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """As the reference: h (batch, time, channels) and the last of it."""
    h_BTD = _Recurrence.apply(without_borders(a_BTD, runs_BT), b_BTD, state_BD)
    return h_BTD, h_BTD[:, -1] if h_BTD.shape[1] else state_BD


class _Recurrence(torch.autograd.Function):
    """h[t] = a[t] h[t - 1] + b[t]."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, state: Tensor) -> Tensor:
        h = _run(a, b, state)
        ctx.save_for_backward(a, state, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, state, h = ctx.saved_tensors
        if h.shape[1] == 0:
            return torch.zeros_like(a), torch.zeros_like(h), torch.zeros_like(state)
        later = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], dim=1)
        total = _run(later.flip(1), grads[0].flip(1), torch.zeros_like(state)).flip(1)
        before = torch.cat([state[:, None], h[:, :-1]], dim=1)
        return total * before, total, total[:, 0] * a[:, 0]


def _run(a_BTD: Tensor, b_BTD: Tensor, state_BD: Tensor) -> Tensor:
    batch, time, dim = b_BTD.shape
    if time == 0:
        return torch.zeros_like(b_BTD)
    length = math.isqrt(time - 1) + 1
    count = -(-time // length)
    fill = (0, 0, 0, count * length - time)
    a_BJQD = F.pad(a_BTD, fill).view(batch, count, length, dim)
    h_BJQD = F.pad(b_BTD, fill).view(batch, count, length, dim)
    factors_BJQD = a_BJQD.clone()
    for q in range(1, length):
        h_BJQD[:, :, q].addcmul_(a_BJQD[:, :, q], h_BJQD[:, :, q - 1])
        factors_BJQD[:, :, q].mul_(factors_BJQD[:, :, q - 1])
    before = []
    for j in range(count):
        before.append(state_BD)
        state_BD = torch.addcmul(h_BJQD[:, j, -1], factors_BJQD[:, j, -1], state_BD)
    before_BJD = torch.stack(before, dim=1)
    return h_BJQD.addcmul_(factors_BJQD, before_BJD[:, :, None]).view(batch, count * length, dim)[:, :time]
