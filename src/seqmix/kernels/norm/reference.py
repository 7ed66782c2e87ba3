"""The specification of the norms, over the last dimension.

    rms:    normed = value / sqrt(mean(value^2) + eps) * weight                          arXiv 1910.07467
    layer:  normed = (value - mean) / sqrt(mean((value - mean)^2) + eps) * weight + bias  arXiv 1607.06450

with statistics in float32 or wider.

Shapes: D width, E inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def normed(value: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float, centred: bool) -> Tensor:
    """The norm of value (..., D), in its precision."""
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    if centred:
        wide = wide - wide.mean(-1, keepdim=True)
    result = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight_D
    return (result if bias_D is None else result + bias_D).to(value.dtype)


def gated(x: Tensor, gate: Tensor, weight_E: Tensor, eps: float, groups: int) -> Tensor:
    """weight * rms norm of x * silu(gate), each group of channels normed on its own, in the gate's precision."""
    wide = torch.promote_types(x.dtype, torch.float32)
    value = (x.to(wide) * F.silu(gate.to(wide))).unflatten(-1, (groups, -1))
    result = value * torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)
    return result.flatten(-2).to(gate.dtype) * weight_E
