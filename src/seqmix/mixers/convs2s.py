"""The convolutional block of ConvS2S: a full convolution to twice the width, gated by its own second half.

    f(x)[t] = a * sigmoid(b),  [a, b] = bias + sum_k W_k x[t - (K - 1 - k)]         W = g v / |v|, weight norm
    block(x) = sqrt(1/2) (f(x) + x)                                arXiv 1705.03122, section 3; W as arXiv 1602.07868

A mixer returns y, and whoever holds it forms x + y, which has no sqrt(1/2). So y = block(x) - x: added to the x that
the mixer was given, it makes the paper's block exactly. Where another x is added (x + mixer(norm(x))) that means
nothing, and `residual_scale=False` gives the plain y = f(x).

Weights begin as normal numbers of variance 4 (1 - p) / (K D), p the dropout on the block's input while training: the
gate then passes a quarter of the variance, and the output's is the input's.

As a matrix: that of the full convolution, one head a tap, on the values W_k x.

Shapes: B batch, T time, D model width, K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost
from seqmix.errors import InputError
from seqmix.mixer import Mixed, Mixer, Mixing, State, Traits
from seqmix.mixers.full_convolution import Conv, ConvConfig

GLU_FLOPS = 5
"""A sigmoid and the product with it, for each number that comes out."""


@dataclass(frozen=True, kw_only=True)
class ConvS2SConfig:
    """kernel: taps. residual_scale: whether x + y is the paper's sqrt(1/2) (f(x) + x), or x + f(x).

    dropout: the share of the input's numbers that training leaves out.
    """

    kernel: int = 3
    residual_scale: bool = True
    dropout: float = 0.0
    causal: bool = True

    def __post_init__(self) -> None:
        if self.kernel < 1:
            raise InputError(f"kernel is {self.kernel}: it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}: it must be at least 0 and below 1")


class ConvS2S(Mixer):
    """y = sqrt(1/2) (GLU(conv(x)) + x) - x, so that x + y is the paper's block; or y = GLU(conv(x))."""

    config_class = ConvS2SConfig
    config: ConvS2SConfig

    def __init__(self, dim: int, config: ConvS2SConfig | None = None) -> None:
        super().__init__(dim, config)
        options = ConvConfig(kernel=self.config.kernel, causal=self.config.causal)
        self.conv = Conv(dim, options, outputs=2 * dim, weight_norm=True)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (6, {}),
            (5, {"kernel": 4, "residual_scale": False, "dropout": 0.2}),
            (5, {"kernel": 4, "causal": False}),
        ]

    def reset_parameters(self) -> None:
        variance = 4 * (1 - self.config.dropout) / (self.config.kernel * self.dim)
        nn.init.normal_(self.conv.weight, std=math.sqrt(variance))
        self.conv.measure_scale()
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    @property
    def traits(self) -> Traits:
        return self.conv.traits

    @property
    def receptive_field(self) -> int:
        return self.conv.receptive_field

    @property
    def lags(self) -> Sequence[int]:
        return self.conv.lags

    @property
    def head_spans(self) -> Sequence[int | None]:
        return self.conv.head_spans

    def _values(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x

    def _readout(self, convolved: Tensor, x: Tensor) -> Tensor:
        gated = F.glu(convolved, dim=-1)
        return math.sqrt(0.5) * (gated + x) - x if self.config.residual_scale else gated

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        convolved, after = self.conv(self._values(x), state, document_ids=document_ids)
        return Mixed(self._readout(convolved, x), after)

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        return self.conv.init_state(batch, device=device, dtype=dtype)

    def step(self, x: Tensor, state: State) -> Mixed:
        convolved, after = self.conv.step(self._values(x), state)
        return Mixed(self._readout(convolved, x), after)

    def mixing(self, x: Tensor) -> list[Mixing]:
        return self.conv.mixing(self._values(x))

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self._readout(self.conv.readout(mixed, x), x)

    def links(self, time: int) -> Tensor:
        return self.conv.links(time)

    def cost(self, batch: int, time: int) -> Cost:
        positions, size = batch * time, self.conv.weight.element_size()
        inner = self.conv.cost(batch, time)
        a_number = GLU_FLOPS + (3 if self.config.residual_scale else 0)
        return Cost(
            product_flops=inner.product_flops,
            other_flops=inner.other_flops + positions * self.dim * a_number,
            parameters=self.num_parameters,
            state_bytes=inner.state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + inner.state_bytes,
        )
