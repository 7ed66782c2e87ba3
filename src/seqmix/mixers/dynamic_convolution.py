"""Lightweight and dynamic convolutions: a banded matrix whose rows are a softmax, shared by the channels of a head.

    v = GLU(W_in x);   M[t, t - (K - 1) + k] = w[k];   y = W_out (M v)                      arXiv 1901.10430
    light_conv:    w = softmax(u)               one kernel a head, the same at every position (section 3)
    dynamic_conv:  w = softmax(U v[t])          one kernel a head and position (section 4)

The softmax is over all K taps, as in the paper: taps before the document, or in another one, count as zero and the
rest is not scaled up. Not causal, the K taps stand around the position.

Shapes: B batch, T time, D model width, H heads of W neighbouring channels, K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import linear_flops
from seqmix.kernels.depthwise_conv import DepthwiseConvState, depthwise_conv, depthwise_conv_step
from seqmix.mixer import Traits
from seqmix.mixers.band import BandMixer
from seqmix.mixers.sizes import check_sizes

SOFTMAX_FLOPS = 4
"""Maximum, difference, exponential and division, for each tap."""


@dataclass(frozen=True, kw_only=True)
class LightConvConfig:
    """kernel: taps. heads: groups of channels that share a kernel; None for widths near 64. bias: of the projections.

    The paper's kernels grow by layer: 3, 7, 15, then 31.
    """

    kernel: int = 7
    heads: int | None = None
    causal: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        check_sizes(self, "kernel", "heads")


@dataclass(frozen=True, kw_only=True)
class DynamicConvConfig(LightConvConfig):
    """As LightConvConfig."""


class DynamicConv(BandMixer):
    """y = W_out (M v), v = GLU(W_in x), with M's weights at t the softmax over the taps of U v[t]."""

    config_class = DynamicConvConfig

    def __init__(self, dim: int, config: DynamicConvConfig | None = None) -> None:
        config = DynamicConvConfig() if config is None else config
        super().__init__(dim, config, config.heads)
        self.in_proj = nn.Linear(dim, 2 * dim, bias=config.bias)
        self.weight_proj = nn.Linear(dim, self.heads * config.kernel, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=config.bias)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (12, {"kernel": 5, "heads": 3}),
            (10, {"kernel": 4, "causal": False, "bias": False}),
            (5, {"kernel": 1}),
        ]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.xavier_uniform_(self.weight_proj.weight)

    def _values(self, x: Tensor) -> Tensor:
        return F.glu(self.in_proj(x), dim=-1)

    def _weights(self, values: Tensor) -> Tensor:
        return self.weight_proj(values).unflatten(-1, (self.heads, -1)).softmax(dim=-1)

    def _readout(self, mixed: Tensor) -> Tensor:
        return self.out_proj(mixed)

    def _position_cost(self) -> tuple[int, int]:
        taps = self.heads * self.config.kernel
        others = 5 * self.dim + SOFTMAX_FLOPS * taps + (3 * self.dim if self.config.bias else 0)
        return linear_flops(1, self.dim, 3 * self.dim + taps), others


class LightConv(BandMixer):
    """y = W_out (M v), v = GLU(W_in x), with M's weights the softmax over the taps of a learned (heads, kernel)."""

    config_class = LightConvConfig

    def __init__(self, dim: int, config: LightConvConfig | None = None) -> None:
        config = LightConvConfig() if config is None else config
        super().__init__(dim, config, config.heads)
        self.in_proj = nn.Linear(dim, 2 * dim, bias=config.bias)
        self.weight = nn.Parameter(torch.empty(self.heads, config.kernel))
        self.out_proj = nn.Linear(dim, dim, bias=config.bias)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (12, {"kernel": 5, "heads": 3}),
            (10, {"kernel": 4, "causal": False, "bias": False}),
        ]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        bound = math.sqrt(6 / (self.config.kernel * (1 + self.heads)))
        nn.init.uniform_(self.weight, -bound, bound)

    @property
    def traits(self) -> Traits:
        causal = self.config.causal
        return Traits(causal=causal, content_dependent=False, state_growth="constant" if causal else None)

    def no_decay(self) -> set[str]:
        """Decay of what a softmax reads would pull the kernel towards a plain mean."""
        return {"weight"}

    def _values(self, x: Tensor) -> Tensor:
        return F.glu(self.in_proj(x), dim=-1)

    def _weights(self, values: Tensor) -> Tensor:
        return self.weight.softmax(dim=-1)

    def _by_channel(self, values: Tensor) -> Tensor:
        """(dim, kernel): the kernel of each channel."""
        return self._weights(values).repeat_interleave(self.dim // self.heads, dim=0)

    def _mix(
        self, values: Tensor, state: DepthwiseConvState | None, document_ids: Tensor | None
    ) -> tuple[Tensor, DepthwiseConvState | None]:
        return depthwise_conv(
            values,
            self._by_channel(values),
            dilation=self.dilations,
            causal=self.config.causal,
            state=state,
            document_ids=document_ids,
        )

    def _mix_step(self, values: Tensor, state: DepthwiseConvState) -> tuple[Tensor, DepthwiseConvState]:
        return depthwise_conv_step(values, self._by_channel(values), dilation=self.dilations, state=state)

    def _readout(self, mixed: Tensor) -> Tensor:
        return self.out_proj(mixed)

    def _position_cost(self) -> tuple[int, int]:
        return linear_flops(1, self.dim, 3 * self.dim), (5 + 3 * self.config.bias) * self.dim
