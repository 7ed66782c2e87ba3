"""torch's norms over the last dimension, through our kernels: with a residual, and in any mixture of precisions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqmix.kernels.norm import add_norm, gated_rms_norm


class RMSNorm(nn.RMSNorm):
    """torch's, through our kernels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.with_residual(x, None)[1]

    def with_residual(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x + y, or x without y; its norm)."""
        assert self.eps is not None
        return add_norm(x, y, self.weight, eps=self.eps)


class LayerNorm(nn.LayerNorm):
    """torch's, through our kernels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.with_residual(x, None)[1]

    def with_residual(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x + y, or x without y; its norm)."""
        return add_norm(x, y, self.weight, self.bias, eps=self.eps, centred=True)


class GatedRMSNorm(nn.Module):
    """weight * RMSNorm(x * silu(gate)), each group of channels normalised on its own, in float32 or wider."""

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.groups = groups
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return gated_rms_norm(x, gate, self.weight, eps=self.eps, groups=self.groups)
