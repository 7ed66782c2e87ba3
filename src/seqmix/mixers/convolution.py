"""Depthwise convolutions: a banded Toeplitz matrix for each channel, the same for every input.

    depthwise_conv:  y[t] = sum_k w_k * x[t - (K - 1 - k) * d] + b                           element-wise products
    gated_conv:      B, C, u = W_in x;  y = W_out (C * conv(B * u))      LFM2's short convolution, arXiv 2511.23404

Every channel has a kernel of its own; heads are neighbouring channels that share a dilation.

Shapes: B batch, T time, D model width (one head of width 1 a channel in the matrix), K kernel.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.depthwise_conv import (
    DepthwiseConvState,
    depthwise_conv,
    depthwise_conv_step,
    empty_state,
    gated_depthwise_conv,
    group_channels,
)
from seqmix.kernels.recompute import offer
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits


@dataclass
class ConvState(State):
    """past: (batch, total), the rings of the recent inputs, one for each dilation, as long as that needs."""

    past: Tensor


@dataclass(frozen=True, kw_only=True)
class DepthwiseConvConfig:
    """kernel: taps. heads: groups of channels. dilation: one for all, or a tuple that the heads cycle through."""

    kernel: int = 4
    heads: int = 1
    dilation: int | tuple[int, ...] = 1
    causal: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        check_kernel(self)


@dataclass(frozen=True, kw_only=True)
class GatedConvConfig:
    """As DepthwiseConvConfig; kernel 3 as in LFM2, and no bias."""

    kernel: int = 3
    heads: int = 1
    dilation: int | tuple[int, ...] = 1
    causal: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        check_kernel(self)


def check_kernel(config: Any) -> None:
    """Refuses sizes below 1 and turns the list that JSON makes of a tuple back into one."""
    if isinstance(config.dilation, list):
        object.__setattr__(config, "dilation", tuple(config.dilation))
    dilations = config.dilation if isinstance(config.dilation, tuple) else (config.dilation,)
    for name, value in (("kernel", config.kernel), ("heads", config.heads), *(("dilation", d) for d in dilations)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")
    if not dilations:
        raise InputError("dilation is an empty tuple: give at least one")


def spread_over_heads(dim: int, heads: int, values: Sequence[int]) -> tuple[int, ...]:
    """The value of each channel when heads, as equal in width as can be, take the values in turn.

    Heads of one value stand beside each other, which changes nothing but the order of channels.
    """
    turns = sorted(head % len(values) for head in range(heads))
    widths = [dim // heads + (head < dim % heads) for head in range(heads)]
    return tuple(values[turn] for turn, width in zip(turns, widths, strict=True) for _ in range(width))


class DepthwiseMixer(Mixer):
    """What these mixers and ConvSamba share: readout(conv(values(x))), with values and readout position by position."""

    def __init__(self, dim: int, config: Any = None) -> None:
        super().__init__(dim, config)
        dilation = self._dilations()
        per_channel = spread_over_heads(dim, min(dim, self.config.heads or len(dilation)), dilation)
        self.dilations = group_channels(per_channel, dim, self.config.kernel)
        self.weight = nn.Parameter(torch.empty(dim, self.config.kernel))
        self.bias = nn.Parameter(torch.empty(dim)) if self.config.bias else None

    def _dilations(self) -> tuple[int, ...]:
        dilation = self.config.dilation
        return dilation if isinstance(dilation, tuple) else (dilation,)

    @abstractmethod
    def _values(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is convolved and what gates the result, both (..., dim), from x (..., dim)."""

    @abstractmethod
    def _mix(self, x: Tensor, *weights: Any, **how: Any) -> tuple[Tensor, DepthwiseConvState | None]:
        """readout(conv(values(x))) with the gates in the convolution; arguments as of `depthwise_conv`."""

    @abstractmethod
    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        """y (..., dim) from the convolution with its bias and the gate, both (..., dim)."""

    @abstractmethod
    def _position_cost(self) -> tuple[int, int]:
        """Product and other FLOPs of values and readout for one position."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        bound = 1 / math.sqrt(self.config.kernel)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def traits(self) -> Traits:
        causal = self.config.causal
        return Traits(causal=causal, content_dependent=False, state_growth="constant" if causal else None)

    @property
    def receptive_field(self) -> int:
        return self.dilations.span + 1

    @property
    def lags(self) -> list[int]:
        return sorted(
            {
                (group.length if self.config.causal else group.length // 2) - tap * group.dilation
                for group in self.dilations.groups
                for tap in range(self.config.kernel)
            }
        )

    @property
    def head_spans(self) -> list[int | None]:
        return [group.length + 1 for group in self.dilations.groups for _ in range(group.width)]

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        if state is not None and not self.config.causal:
            raise InputError("a non-causal convolution takes no state: give the whole sequence at once")
        y, after = self._mix(
            x,
            self.weight,
            self.bias,
            dilation=self.dilations,
            causal=self.config.causal,
            state=None if state is None else _kernel_state(state),
            document_ids=document_ids,
        )
        return Mixed(y, None if after is None else ConvState(*_fields(after)))

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        if not self.config.causal:
            return super().init_state(batch, capacity, device=device, dtype=dtype)
        device = self.weight.device if device is None else device
        return ConvState(*_fields(empty_state(self.dilations, batch, device, dtype or self.weight.dtype)))

    def step(self, x: Tensor, state: State) -> Mixed:
        if not self.config.causal:
            return super().step(x, state)
        values, gate = self._values(x)
        convolved, after = depthwise_conv_step(
            values, self.weight, self.bias, dilation=self.dilations, state=_kernel_state(state)
        )
        return Mixed(self._readout(convolved, gate), ConvState(*_fields(after)))

    def mixing(self, x: Tensor) -> list[Mixing]:
        time = x.shape[1]
        matrix = self.weight.new_zeros(self.dim, time, time)
        for group in self.dilations.groups:
            left = group.length if self.config.causal else group.length // 2
            channels = slice(group.first, group.last)
            for tap in range(self.config.kernel):
                ahead = tap * group.dilation - left
                if abs(ahead) < time:
                    diagonal = matrix[channels].diagonal(ahead, dim1=1, dim2=2)
                    diagonal += self.weight[channels, tap, None]
        return [Mixing(matrix[None], self._values(x)[0].transpose(1, 2)[..., None])]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        convolved = mixed[0][..., 0].transpose(1, 2)
        return self._readout(convolved if self.bias is None else convolved + self.bias, self._values(x)[1])

    def links(self, time: int) -> Tensor:
        steps = torch.arange(time)
        return torch.isin(steps[:, None] - steps[None, :], torch.tensor(self.lags))

    def cost(self, batch: int, time: int) -> Cost:
        positions = batch * time
        products, others = self._position_cost()
        size = self.weight.element_size()
        state_bytes = 0
        if self.config.causal:
            state_bytes = batch * (self.dilations.past_size * size + BOOKKEEPING_BYTES)
        return Cost(
            product_flops=positions * (products + 2 * self.dim * self.config.kernel),
            other_flops=positions * (others + (self.dim if self.config.bias else 0)),
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )


def _kernel_state(state: State) -> DepthwiseConvState:
    assert isinstance(state, ConvState)
    return DepthwiseConvState(state.past, state.position, state.document)


def _fields(state: DepthwiseConvState) -> tuple[Tensor, Tensor, Tensor]:
    return state.position, state.document, state.past


class DepthwiseConv(DepthwiseMixer):
    """y = conv(x): values and readout are the identity (and the bias)."""

    config_class = DepthwiseConvConfig

    def __init__(self, dim: int, config: DepthwiseConvConfig | None = None) -> None:
        super().__init__(dim, config)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (12, {}),
            (10, {"kernel": 5, "heads": 3, "dilation": (1, 2, 4), "bias": False}),
            (6, {"kernel": 3, "heads": 4, "dilation": (3, 1)}),
            (7, {"kernel": 4, "dilation": 2, "causal": False}),
            (5, {"kernel": 1}),
        ]

    def _mix(self, x: Tensor, *weights: Any, **how: Any) -> tuple[Tensor, DepthwiseConvState | None]:
        return depthwise_conv(x, *weights, **how)

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x, None

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        return convolved

    def _position_cost(self) -> tuple[int, int]:
        return 0, 0


class GatedConv(DepthwiseMixer):
    """y = W_out (C * conv(B * u)) with B, C, u = W_in x: an input gate, the convolution, an output gate."""

    config_class = GatedConvConfig

    def __init__(self, dim: int, config: GatedConvConfig | None = None) -> None:
        super().__init__(dim, config)
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(12, {}), (7, {"kernel": 4, "heads": 2, "dilation": (1, 3), "bias": True}), (6, {"causal": False})]

    def _mix(self, x: Tensor, *weights: Any, **how: Any) -> tuple[Tensor, DepthwiseConvState | None]:
        projected = self.in_proj(x)
        y, after = gated_depthwise_conv(projected, *weights, **how)
        offer(y, lambda: gated_depthwise_conv(projected.detach(), *weights, **how)[0])
        return self.out_proj(y), after

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        gate_in, gate_out, value = self.in_proj(x).chunk(3, dim=-1)
        return gate_in * value, gate_out

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        assert gate is not None
        return self.out_proj(gate * convolved)

    def _position_cost(self) -> tuple[int, int]:
        return linear_flops(1, self.dim, 4 * self.dim), 2 * self.dim
