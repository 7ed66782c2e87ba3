"""The specification of the depthwise dilated convolution, a loop over the taps.

    causal:      y[t, c] = bias[c] + sum_k weight[c, k] * x[t - (K - 1 - k) * d_c, c]
    non-causal:  y[t, c] = bias[c] + sum_k weight[c, k] * x[t + k * d_c - floor((K - 1) * d_c / 2), c]

over the sources inside the document of t; positions before the piece come from the past.

Shapes: B batch, T time, D channels, K kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.depthwise_conv.channels import Group
from seqmix.kernels.documents import Placement


def convolve(
    x_BTD: Tensor, weight_DK: Tensor, group: Group, past_BLD: Tensor | None, placement: Placement, causal: bool
) -> Tensor:
    """The convolution of the channels of one group, without bias; past in order of time, None before a first piece."""
    time, kernel = x_BTD.shape[1], weight_DK.shape[1]
    left = group.length if causal else group.length // 2
    behind = x_BTD.new_zeros(x_BTD.shape[0], left, x_BTD.shape[2]) if past_BLD is None else past_BLD
    ahead = x_BTD.new_zeros(x_BTD.shape[0], group.length - left, x_BTD.shape[2])
    padded = torch.cat([behind, x_BTD, ahead], dim=1)
    last_BT = _last_positions(placement)
    y = torch.zeros_like(x_BTD)
    for tap in range(kernel):
        offset = tap * group.dilation - left
        source = placement.positions + offset
        inside = (source >= 0) & (source <= last_BT)
        shifted = padded[:, left + offset : left + offset + time]
        y = y + weight_DK[:, tap] * torch.where(inside[:, :, None], shifted, shifted.new_zeros(()))
    return y


def _last_positions(placement: Placement) -> Tensor:
    """(batch, time): the offset of the last position, within this piece, of the document each position is in."""
    time = placement.runs.shape[1]
    steps = torch.arange(time, device=placement.runs.device)
    is_last = torch.cat(
        [placement.runs[:, 1:] != placement.runs[:, :-1], torch.ones_like(placement.runs[:, :1]) > 0], 1
    )
    ends = torch.where(is_last, steps, time).flip(1).cummin(dim=1).values.flip(1)
    return placement.positions.gather(1, ends)
