"""The depthwise convolution through torch's grouped conv1d, with a backward of our own.

torch computes the gradient of the weights of a grouped convolution on a CPU much slower than the forward. That gradient
is itself a convolution, of the padded input with the output's gradient as its kernel and the dilation as its stride,
with one group for each row and channel. It pays from kernels of about 8 on (`benchmarks/depthwise_conv.py`).

Shapes: B batch, T time, D channels, K kernel, P padded time, T + (K - 1) * dilation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seqmix.kernels.depthwise_conv.channels import Group
from seqmix.kernels.documents import Placement


class _PaddedConv(torch.autograd.Function):
    """y[b, c, t] = sum_k weight[c, k] * padded[b, c, t + k * dilation]."""

    @staticmethod
    def forward(ctx: Any, padded_BDP: Tensor, weight_DK: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(padded_BDP, weight_DK)
        ctx.dilation = dilation
        return F.conv1d(padded_BDP, weight_DK[:, None], dilation=dilation, groups=weight_DK.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        padded_BDP, weight_DK = ctx.saved_tensors
        grad_BDT = grads[0]
        dim, kernel = weight_DK.shape
        grad_padded = grad_weight = None
        if ctx.needs_input_grad[0]:
            reach = (kernel - 1) * ctx.dilation
            spread = F.pad(grad_BDT, (reach, reach))
            # Under autocast the output's gradient is of lower precision than what was saved.
            flipped = weight_DK.flip(1)[:, None].to(grad_BDT.dtype)
            grad_padded = F.conv1d(spread, flipped, dilation=ctx.dilation, groups=dim)
        if ctx.needs_input_grad[1]:
            batch, time = grad_BDT.shape[0], grad_BDT.shape[2]
            sources = padded_BDP.reshape(1, batch * dim, -1).to(grad_BDT.dtype)
            targets = grad_BDT.reshape(batch * dim, 1, time)
            by_row = F.conv1d(sources, targets, stride=ctx.dilation, groups=batch * dim)
            grad_weight = by_row.reshape(batch, dim, kernel).to(weight_DK.dtype).sum(0)
        return grad_padded, grad_weight, None


def convolve(
    x_BTD: Tensor, weight_DK: Tensor, group: Group, past_BLD: Tensor | None, placement: Placement, causal: bool
) -> Tensor:
    """The convolution of the channels of one group, without bias; past in order of time, None before a first piece."""
    if placement.packed:
        return _convolve_packed(x_BTD, weight_DK, group, past_BLD, placement, causal)
    return _convolve_rows(x_BTD, weight_DK, group, past_BLD, causal)


def _convolve_rows(x_BTD: Tensor, weight_DK: Tensor, group: Group, past_BLD: Tensor | None, causal: bool) -> Tensor:
    x_BDT = x_BTD.transpose(1, 2)
    if past_BLD is not None:
        padded = torch.cat([past_BLD, x_BTD], dim=1).transpose(1, 2).contiguous()
    else:
        left = group.length if causal else group.length // 2
        padded = F.pad(x_BDT.contiguous(), (left, group.length - left))
    return _PaddedConv.apply(padded, weight_DK, group.dilation).transpose(1, 2)


def _convolve_packed(
    x_BTD: Tensor, weight_DK: Tensor, group: Group, past_BLD: Tensor | None, placement: Placement, causal: bool
) -> Tensor:
    """Gives every document of a row a row of its own, zero elsewhere, and adds the results up."""
    runs = placement.runs
    counts = runs[:, -1] - runs[:, 0] + 1
    row = torch.repeat_interleave(torch.arange(len(runs), device=runs.device), counts)
    first_of_row = counts.cumsum(0) - counts
    run = torch.arange(len(row), device=runs.device) - first_of_row[row] + runs[row, 0]
    inside = (runs[row] == run[:, None])[:, :, None].to(x_BTD.dtype)
    past = None if past_BLD is None else past_BLD[row] * (run == 0)[:, None, None].to(x_BTD.dtype)
    y = _convolve_rows(x_BTD[row] * inside, weight_DK, group, past, causal) * inside
    return torch.zeros_like(x_BTD).index_add(0, row, y)
