"""Involution in one dimension: a kernel computed at every position from that position alone, shared within a group.

    w[t] = W_span relu(norm(W_reduce x[t]))                 K weights for each of G groups
    y[t, c] = sum_k w[t, group(c), k] x[t - (K - 1) + k, c]                      arXiv 2103.06255, section 3

The opposite of a convolution: the weights differ by position and are the same for the channels of a group. The paper
has it around the position, which is `causal=False`; causal, the K taps end at it. Its norm is a batch norm, whose
statistics run over positions and rows: it would let the future in and make a row depend on its neighbours, so that
the norm here is a LayerNorm, which each position has for itself. The weights are not normalised.

Shapes: B batch, T time, D model width, G groups of neighbouring channels, K kernel, R reduced width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import linear_flops
from seqmix.errors import InputError
from seqmix.kernels.norm import add_norm
from seqmix.mixers.band import BandMixer
from seqmix.mixers.sizes import check_sizes

USUAL_GROUP_WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class InvolutionConfig:
    """kernel: taps. groups: of channels that share their weights; None for widths near the paper's 16.

    reduction: by how much W_reduce narrows the width. norm_eps: added to the variance.
    """

    kernel: int = 7
    groups: int | None = None
    reduction: int = 4
    causal: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_sizes(self, "kernel", "groups", "reduction")
        if self.norm_eps <= 0:
            raise InputError(f"norm_eps is {self.norm_eps}: it must be greater than 0")


def usual_groups(dim: int) -> int:
    """The number of groups that divides dim with widths nearest to 16."""
    divisors = [groups for groups in range(1, dim + 1) if dim % groups == 0]
    return min(divisors, key=lambda groups: abs(dim // groups - USUAL_GROUP_WIDTH))


class Involution(BandMixer):
    """y = M x, with M's weights at t a small network of x[t]; there is no projection before or after.

    Raises:
        InputError: groups that do not divide dim, a reduction that leaves fewer than two channels.
    """

    config_class = InvolutionConfig

    def __init__(self, dim: int, config: InvolutionConfig | None = None) -> None:
        config = InvolutionConfig() if config is None else config
        groups = usual_groups(dim) if config.groups is None and dim >= 1 else config.groups
        if groups is not None and dim % groups:
            raise InputError(f"groups is {groups}, which does not divide dim {dim}: choose a divisor")
        super().__init__(dim, config, groups)
        reduced = dim // config.reduction
        if reduced < 2:
            raise InputError(
                f"reduction is {config.reduction}: of dim {dim} it leaves {reduced} channels, and a norm needs two; "
                "choose a smaller one"
            )
        self.reduce_proj = nn.Linear(dim, reduced, bias=False)
        self.norm = nn.LayerNorm(reduced, eps=config.norm_eps)
        self.span_proj = nn.Linear(reduced, self.heads * config.kernel)

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (16, {"kernel": 5, "groups": 4, "norm_eps": 1e-4}),
            (15, {"kernel": 4, "reduction": 2, "causal": False}),
        ]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.norm.reset_parameters()

    def _values(self, x: Tensor) -> Tensor:
        return x

    def _weights(self, values: Tensor) -> Tensor:
        norm = self.norm
        normed = add_norm(self.reduce_proj(values), None, norm.weight, norm.bias, eps=norm.eps, centred=True)[1]
        return self.span_proj(F.relu(normed)).unflatten(-1, (self.heads, -1))

    def _readout(self, mixed: Tensor) -> Tensor:
        return mixed

    def _position_cost(self) -> tuple[int, int]:
        reduced, taps = self.norm.normalized_shape[0], self.heads * self.config.kernel
        return linear_flops(1, self.dim, reduced) + linear_flops(1, reduced, taps), 8 * reduced + taps
