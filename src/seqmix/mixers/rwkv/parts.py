"""What RWKV-6, RWKV-7 and their channel mixes share: layers, sizes and starting values, as in RWKV-LM.

Shapes: D model width, H heads, N head width, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Where the layer stands in its model; RWKV starts the parameters of each layer differently.

    layer: its place, counted from 0. layers: how many the model has.
    """

    layer: int = 0
    layers: int = 1

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise InputError(f"layers is {self.layers}: a model has at least 1")
        if not 0 <= self.layer < self.layers:
            raise InputError(f"layer is {self.layer}: it must be between 0 and layers - 1 = {self.layers - 1}")

    @property
    def rising(self) -> float:
        """0 in the first layer, 1 in the last."""
        return self.layer / max(1, self.layers - 1)

    @property
    def falling(self) -> float:
        """1 in the first layer, 1 / layers in the last."""
        return 1 - self.layer / self.layers

    @property
    def norm_scale(self) -> float:
        """What the weight of the norm of the heads starts at."""
        return ((1 + self.layer) / self.layers) ** 0.7


class LowRank(nn.Module):
    """base + activation(x down) up; no base where `has_base` is off."""

    def __init__(
        self, dim: int, rank: int, activation: Callable[[Tensor], Tensor] | None = None, *, has_base: bool = True
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(dim, rank))
        self.up = nn.Parameter(torch.empty(rank, dim))
        self.base = nn.Parameter(torch.empty(dim)) if has_base else None
        self.activation = activation

    @property
    def rank(self) -> int:
        return self.up.shape[0]

    @torch.no_grad()
    def start(self, base: Tensor | None = None) -> None:
        """At first the product is zero: base alone."""
        nn.init.zeros_(self.down)
        orthogonal_(self.up, 0.1 * math.sqrt(max(1.0, self.rank / self.up.shape[1])))
        if self.base is not None and base is not None:
            self.base.copy_(base)

    def forward(self, x: Tensor) -> Tensor:
        inner = x @ self.down
        outer = (inner if self.activation is None else self.activation(inner)) @ self.up
        return outer if self.base is None else outer + self.base


def head_width(dim: int, head_dim: int | None) -> int:
    """The width of a head; None takes the largest divisor of dim up to 64.

    Raises:
        InputError: it does not divide dim, or is 1: a normalised head of one channel would be zero.
    """
    if head_dim is None:
        width = next(width for width in range(min(64, dim), 0, -1) if dim % width == 0)
        if width == 1:
            raise InputError(f"dim is {dim}: it needs a divisor between 2 and 64 as the width of its heads")
        return width
    if head_dim < 2:
        raise InputError(f"head_dim is {head_dim}: it must be at least 2, because each head is normalised")
    if dim % head_dim:
        raise InputError(f"head_dim is {head_dim}: it must divide dim = {dim}, or be None")
    return head_dim


def norm_heads(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A GroupNorm of x (..., H, N), each head of each position by itself, as (..., D) in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    normed = F.layer_norm(x.to(wide), x.shape[-1:], eps=norm.eps).flatten(-2)
    return torch.addcmul(norm.bias.to(wide), normed, norm.weight.to(wide))


def ramp(dim: int) -> Tensor:
    """0, 1 / dim, ... below 1, in float64: the channels' places."""
    return torch.arange(dim, dtype=torch.float64) / dim


def line(dim: int) -> Tensor:
    """0 ... 1 in equal steps, in float64."""
    return torch.arange(dim, dtype=torch.float64) / max(1, dim - 1)


@torch.no_grad()
def orthogonal_(parameter: Tensor, gain: float) -> None:
    """Orthogonal rows or columns times a gain, drawn in float32 or wider whatever the parameter's type is."""
    drawn = parameter.new_empty(parameter.shape, dtype=torch.promote_types(parameter.dtype, torch.float32))
    parameter.copy_(nn.init.orthogonal_(drawn, gain=gain))


def default_rank(dim: int, factor: float) -> int:
    """RWKV-7's rule: factor * sqrt(dim) to the nearest multiple of 32, at least 32."""
    return max(32, 32 * round(factor * math.sqrt(dim) / 32))
