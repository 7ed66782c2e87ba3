"""ByteNet's residual block: a dilated convolution of half the width between two 1x1 convolutions.

    h = relu(norm_2(W_in relu(norm_1(x))))                       D -> d, d = D / 2
    c[t] = b + sum_k W_k h[t - (K - 1 - k) * dilation]           d -> d, every tap a matrix
    y = W_out relu(norm_3(c))                                    d -> D                 arXiv 1610.10099, figure 3

This is what the block adds: x + y is formed by whoever holds the mixer. The norms are LayerNorms, each position by
itself, as the paper has them. Where the holder norms x already (x + mixer(norm(x))), `input_norm=False` leaves norm_1
to it, and both together are the paper's block. Its decoder is causal, its encoder not; the dilations are 1, 2, 4, 8,
16 by layer, again and again.

As a matrix: that of the full convolution, one head a tap, on the values W_k h.

Shapes: B batch, T time, D model width, d inner width, K kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.norm import add_norm
from seqmix.mixer import Mixed, Mixer, Mixing, State, Traits
from seqmix.mixers.full_convolution import Conv, ConvConfig

NORM_FLOPS = 7
"""Mean, difference, square and its mean, division, weight and bias, for each number."""


@dataclass(frozen=True, kw_only=True)
class ByteNetConfig:
    """kernel: taps. dilation: positions between them. width: inner channels; None for half of the model's.

    input_norm: whether x is normed first; False where whoever holds the mixer has done so.
    norm_eps: added to the variance.
    """

    kernel: int = 3
    dilation: int = 1
    width: int | None = None
    input_norm: bool = True
    causal: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("kernel", "dilation", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1")
        if self.norm_eps <= 0:
            raise InputError(f"norm_eps is {self.norm_eps}: it must be greater than 0")


class ByteNet(Mixer):
    """y = W_out relu(norm(conv(relu(norm(W_in relu(norm(x)))))))."""

    config_class = ByteNetConfig
    config: ByteNetConfig

    def __init__(self, dim: int, config: ByteNetConfig | None = None) -> None:
        super().__init__(dim, config)
        config = self.config
        self.width = dim // 2 if config.width is None else config.width
        if self.width < 2:
            raise InputError(
                f"width is {self.width} of dim {dim}: a norm over fewer than two inner channels is constant; "
                "choose a larger one"
            )
        self.input_norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.input_norm else None
        self.in_proj = nn.Linear(dim, self.width)
        self.inner_norm = nn.LayerNorm(self.width, eps=config.norm_eps)
        self.conv = Conv(self.width, ConvConfig(kernel=config.kernel, dilation=config.dilation, causal=config.causal))
        self.output_norm = nn.LayerNorm(self.width, eps=config.norm_eps)
        self.out_proj = nn.Linear(self.width, dim)

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (12, {}),
            (9, {"kernel": 2, "dilation": 4, "width": 5, "input_norm": False, "norm_eps": 1e-4}),
            (12, {"dilation": 2, "causal": False}),
        ]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.conv.reset_parameters()
        for norm in self._norms:
            norm.reset_parameters()

    @property
    def _norms(self) -> list[nn.LayerNorm]:
        return [norm for norm in (self.input_norm, self.inner_norm, self.output_norm) if norm is not None]

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
        """h (..., width) from x (..., dim)."""
        normed = x if self.input_norm is None else _apply(self.input_norm, x)
        return F.relu(_apply(self.inner_norm, self.in_proj(F.relu(normed))))

    def _readout(self, convolved: Tensor) -> Tensor:
        return self.out_proj(F.relu(_apply(self.output_norm, convolved)))

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        convolved, after = self.conv(self._values(x), state, document_ids=document_ids)
        return Mixed(self._readout(convolved), after)

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
        return Mixed(self._readout(convolved), after)

    def mixing(self, x: Tensor) -> list[Mixing]:
        return self.conv.mixing(self._values(x))

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self._readout(self.conv.readout(mixed, x))

    def links(self, time: int) -> Tensor:
        return self.conv.links(time)

    def cost(self, batch: int, time: int) -> Cost:
        positions, size = batch * time, self.in_proj.weight.element_size()
        inner = self.conv.cost(batch, time)
        normed = sum(norm.normalized_shape[0] for norm in self._norms)
        return Cost(
            product_flops=inner.product_flops + linear_flops(positions, self.dim, 2 * self.width),
            other_flops=inner.other_flops
            + positions * (NORM_FLOPS * normed + 2 * (self.dim + self.width) + self.width),
            parameters=self.num_parameters,
            state_bytes=inner.state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + inner.state_bytes,
        )


def _apply(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return add_norm(x, None, norm.weight, norm.bias, eps=norm.eps, centred=True)[1]
