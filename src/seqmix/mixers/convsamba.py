"""ConvSamba: a wide dilated depthwise convolution times a SwiGLU gate of the same input.

    y = conv(x) * SwiGLU(x),   SwiGLU(x) = silu(W_1 x) * W_2 x                kernel 32, dilations by head

Shapes: D model width (one head of width 1 a channel in the matrix), K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import linear_flops
from seqmix.kernels.depthwise_conv import DepthwiseConvState, swiglu_depthwise_conv
from seqmix.mixers.convolution import DepthwiseMixer, check_kernel


@dataclass(frozen=True, kw_only=True)
class ConvSambaConfig:
    """kernel: taps. context: the dilations 1, 2, 4, ... go on while kernel * dilation stays within it.

    dilation: None for that rule, or a tuple that the heads cycle through. heads: None for one a dilation.
    """

    kernel: int = 32
    context: int = 8192
    heads: int | None = None
    dilation: tuple[int, ...] | None = None
    causal: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        check_kernel(self)

    @property
    def dilations(self) -> tuple[int, ...]:
        """The dilations in use."""
        if self.dilation is not None:
            return self.dilation
        count = max(1, int(math.log2(max(1, self.context // self.kernel))) + 1)
        return tuple(2**power for power in range(count))


class ConvSamba(DepthwiseMixer):
    """y = conv(x) * silu(W_1 x) * W_2 x: a wide dilated convolution times a SwiGLU gate of the same input."""

    config_class = ConvSambaConfig

    def __init__(self, dim: int, config: ConvSambaConfig | None = None) -> None:
        super().__init__(dim, config)
        self.gate = nn.Linear(dim, 2 * dim)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (7, {"kernel": 5, "context": 20}),
            (12, {"context": 128}),
            (6, {"kernel": 4, "dilation": (2,), "heads": 2}),
            (5, {"kernel": 3, "context": 9, "causal": False, "bias": False}),
        ]

    def _dilations(self) -> tuple[int, ...]:
        return self.config.dilations

    def _mix(self, x: Tensor, *weights: Any, **how: Any) -> tuple[Tensor, DepthwiseConvState | None]:
        return swiglu_depthwise_conv(x, self.gate(x), *weights, **how)

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        first, second = self.gate(x).chunk(2, dim=-1)
        return x, F.silu(first) * second

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        assert gate is not None
        return convolved * gate

    def _position_cost(self) -> tuple[int, int]:
        return linear_flops(1, self.dim, 2 * self.dim), 8 * self.dim
