"""Hyena: long convolutions with implicit filters, and gates between them.

    x_0, ..., x_{N-1}, v = short_conv(W_in u)                       arXiv 2302.10866; N is the order
    z = v;   for i = N - 1, ..., 1:  z = h_i * (x_i z)              * a convolution, its skip D z inside h_i
    y = W_out (x_0 z)

This is the recurrence of safari, the authors' code, whose results are the published ones: N gates and N - 1 long
convolutions, each behind a gate. The paper's equation has N long convolutions, the first of them on the ungated v
(safari, issue 9). So order 2 is one long convolution between two gates.

As a matrix, for every channel: values are x_{N-1} v after the short convolution, M = S_1 diag(x_1) S_2 ...
diag(x_{N-2}) S_{N-1} with S_i the Toeplitz matrix of h_i, and x_0 and W_out are the readout. Order 2 has M = S_1, the
same for every input.

Shapes: B batch, T time, D model width (one head of width 1 a channel in the matrix), K length of the filters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.depthwise_conv import (
    DepthwiseConvState,
    depthwise_conv,
    depthwise_conv_step,
    empty_state,
    group_channels,
)
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers.long_convolution.implicit_filter import ImplicitFilter
from seqmix.mixers.long_convolution.long_filter import LongFilter, Pass


@dataclass
class HyenaState(State):
    """past: (batch, (short_kernel - 1) * channels), the ring of the short convolution's inputs.

    long: the state of the long convolutions.
    """

    past: Tensor
    long: State


@dataclass(frozen=True, kw_only=True)
class HyenaConfig:
    """order: gates; one long convolution fewer. length: taps of the long filters, the positions each looks back on.

    short_kernel: taps of the short convolution. bias: of the projections and the short convolution.
    filter_features, filter_width, filter_layers, frequency, fast_decay, slow_decay: of the ImplicitFilter.
    """

    order: int = 2
    length: int = 1024
    short_kernel: int = 3
    bias: bool = True
    filter_features: int = 3
    filter_width: int = 64
    filter_layers: int = 2
    frequency: float = 10.0
    fast_decay: float = 0.3
    slow_decay: float = 1.5

    def __post_init__(self) -> None:
        check_hyena(self)
        for name, least in (("length", 1), ("filter_width", 1), ("filter_layers", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.filter_features < 3 or self.filter_features % 2 == 0:
            raise InputError(f"filter_features is {self.filter_features}: it must be odd and at least 3")
        for name in ("frequency", "fast_decay", "slow_decay"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be greater than 0")


def check_hyena(config: Any) -> None:
    """Refuses an order or a short kernel that is no Hyena."""
    if config.order < 2:
        raise InputError(f"order is {config.order}: a Hyena needs at least 2, an input and an output gate")
    if config.short_kernel < 1:
        raise InputError(f"short_kernel is {config.short_kernel}: it must be at least 1")


class _Projected(NamedTuple):
    """value: x_{N-1} v; gates: x_{N-2} ... x_1, in the order they are used; gate_out: x_0."""

    value: Tensor
    gates: Sequence[Tensor]
    gate_out: Tensor


class HyenaMixer(Mixer):
    """The operator around any long filters; a subclass makes them."""

    filter: LongFilter

    def __init__(self, dim: int, config: Any = None) -> None:
        super().__init__(dim, config)
        config = self.config
        self.channels = (config.order + 1) * dim
        self.dilations = group_channels(1, self.channels, config.short_kernel)
        self.in_proj = nn.Linear(dim, self.channels, bias=config.bias)
        self.conv_weight = nn.Parameter(torch.empty(self.channels, config.short_kernel))
        self.conv_bias = nn.Parameter(torch.empty(self.channels)) if config.bias else None
        self.out_proj = nn.Linear(dim, dim, bias=config.bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.filter.reset_parameters()
        bound = 1 / math.sqrt(self.config.short_kernel)
        nn.init.uniform_(self.conv_weight, -bound, bound)
        if self.conv_bias is not None:
            nn.init.uniform_(self.conv_bias, -bound, bound)

    def no_decay(self) -> set[str]:
        return {f"filter.{name}" for name in self.filter.no_decay()}

    @property
    def traits(self) -> Traits:
        return Traits(
            causal=True,
            content_dependent=self.config.order > 2,
            state_growth=self.filter.growth,
            reach=self.config.short_kernel,
        )

    def _span(self) -> int | None:
        """The positions that the matrix looks back on."""
        return None if self.filter.length is None else (self.config.order - 1) * (self.filter.length - 1) + 1

    @property
    def receptive_field(self) -> int | None:
        span = self._span()
        return None if span is None else span + self.config.short_kernel - 1

    def _parts(self, convolved: Tensor) -> _Projected:
        gate_out, *gates, value = convolved.chunk(self.config.order + 1, dim=-1)
        *between, first = gates
        return _Projected(first * value, between[::-1], gate_out)

    def _short(self, x: Tensor) -> _Projected:
        convolved, _ = depthwise_conv(
            self.in_proj(x), self.conv_weight, self.conv_bias, dilation=self.dilations, keep_state=False
        )
        return self._parts(convolved)

    def _long(self, parts: _Projected, convolving: Pass) -> Tensor:
        z = convolving.convolve(parts.value)
        for gate in parts.gates:
            z = convolving.convolve(gate * z)
        return self.out_proj(parts.gate_out * z)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        before = cast(HyenaState | None, state)
        convolved, after = depthwise_conv(
            self.in_proj(x),
            self.conv_weight,
            self.conv_bias,
            dilation=self.dilations,
            state=None if before is None else _conv_state(before),
            document_ids=document_ids,
        )
        assert after is not None
        long = None if before is None else before.long
        convolving = self.filter.begin(long, place(x, state, document_ids), capacity)
        y = self._long(self._parts(convolved), convolving)
        return Mixed(y, HyenaState(after.position, after.document, after.past, convolving.finish()))

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        weight = self.conv_weight
        conv = empty_state(self.dilations, batch, weight.device if device is None else device, dtype or weight.dtype)
        long = self.filter.init_state(batch, capacity, device, dtype)
        return HyenaState(conv.position, conv.document, conv.past, long)

    def step(self, x: Tensor, state: State) -> Mixed:
        before = cast(HyenaState, state)
        # Before anything is written: this is where a full capacity is refused.
        convolving = self.filter.begin_step(before.long, x)
        convolved, after = depthwise_conv_step(
            self.in_proj(x), self.conv_weight, self.conv_bias, dilation=self.dilations, state=_conv_state(before)
        )
        y = self._long(self._parts(convolved), convolving)
        return Mixed(y, HyenaState(after.position, after.document, after.past, convolving.finish()))

    def mixing(self, x: Tensor) -> list[Mixing]:
        parts = self._short(x)
        matrix, *others = self.filter.matrices(x.shape[1])
        matrix = matrix[None]
        for toeplitz, gate in zip(others, parts.gates, strict=True):
            matrix = toeplitz @ (gate.transpose(1, 2)[..., None] * matrix)
        return [Mixing(matrix.to(x.dtype), parts.value.transpose(1, 2)[..., None])]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self.out_proj(self._short(x).gate_out * mixed[0][..., 0].transpose(1, 2))

    def links(self, time: int) -> Tensor:
        return causal_mask(time, self._span(), self.conv_weight.device)

    def _cost(self, batch: int, time: int, flops: tuple[int, int], read: int) -> Cost:
        """The cost of `time` positions a row, with product and other FLOPs of the filter, after `read` in all."""
        positions, size, config = batch * time, self.conv_weight.element_size(), self.config
        products = linear_flops(positions, self.dim, self.channels + self.dim)
        biases = 2 * self.channels + self.dim if config.bias else 0
        past = batch * (self.dilations.past_size * size + BOOKKEEPING_BYTES)
        state_bytes = past + self.filter.state_bytes(batch, read, size)
        return Cost(
            product_flops=products + 2 * positions * self.channels * config.short_kernel + flops[0],
            other_flops=positions * (config.order * self.dim + biases) + flops[1],
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )

    def cost(self, batch: int, time: int) -> Cost:
        return self._cost(batch, time, self.filter.flops(batch, time), time)

    def step_cost(self, batch: int, position: int) -> Cost:
        return self._cost(batch, 1, self.filter.step_flops(batch, position), position + 1)


class Hyena(HyenaMixer):
    """y = W_out (x_0 (h_1 * (x_1 ... (h_{N-1} * (x_{N-1} v))))), order - 1 long convolutions with implicit filters.

    Each sees the last `length` positions. A step is exact and takes O(log^2 n) on average for n positions read, see
    `kernels.long_conv.online`; it forms the taps that it needs anew.
    """

    config_class = HyenaConfig

    def __init__(self, dim: int, config: HyenaConfig | None = None) -> None:
        super().__init__(dim, config)
        options = self.config
        self.filter = ImplicitFilter(
            dim,
            options.order - 1,
            options.length,
            features=options.filter_features,
            width=options.filter_width,
            layers=options.filter_layers,
            frequency=options.frequency,
            fast_decay=options.fast_decay,
            slow_decay=options.slow_decay,
        )
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (6, {"length": 128, "filter_width": 16}),
            (5, {"order": 3, "length": 20, "filter_width": 8, "filter_features": 5, "filter_layers": 1}),
            (
                4,
                {
                    "order": 4,
                    "length": 11,
                    "short_kernel": 2,
                    "bias": False,
                    "filter_width": 8,
                    "frequency": 3.0,
                    "fast_decay": 0.5,
                    "slow_decay": 2.0,
                },
            ),
        ]


def _conv_state(state: HyenaState) -> DepthwiseConvState:
    return DepthwiseConvState(state.past, state.position, state.document)
