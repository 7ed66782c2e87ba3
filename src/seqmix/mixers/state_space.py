"""Mamba-2: a state space with a scalar decay per head, whose B, C and step sizes depend on the input.

    z, x, B, C, dt = W_in u                     arXiv 2405.21060; parameters laid out as mamba_ssm's Mamba2
    x, B, C = silu(conv(x, B, C))               a short depthwise convolution
    dt = softplus(dt + dt_bias);  A = -exp(A_log)
    h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] (outer) B[t];   s[t] = h[t] · C[t] + D x[t]
    y = W_out RMSNorm(s * silu(z))

As a matrix: values are x after its convolution, M[t, s] = C[t] · B[s] * dt[s] * exp(A sum(dt[s+1 ... t])), plus D
on the diagonal; the norm, the gate and W_out are the readout.

Shapes: B batch, T time, D model width, E inner width, expand * D, H heads, P head width, G groups, N state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.depthwise_conv import (
    DepthwiseConvState,
    depthwise_conv,
    depthwise_conv_step,
    empty_state,
    group_channels,
)
from seqmix.kernels.state_space import decayed_weights, scan_flops, state_space_scan, state_space_step, step_flops
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers.norms import GatedRMSNorm


@dataclass
class Mamba2State(State):
    """past: (batch, (conv_kernel - 1) * channels), the ring of the short convolution's inputs.

    hidden: (batch, heads, head width, state size), the recurrent state h, in float32 or wider.
    """

    past: Tensor
    hidden: Tensor


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """The sizes and the initialisation of Mamba-2.

    state_size: N. expand: inner width over model width. groups: heads / groups heads share B and C.
    head_dim: P; None takes the largest divisor of the inner width up to 64 that leaves the groups whole.
    conv_kernel: taps of the short convolution. chunk: positions the scan handles at once; it changes the speed
        and nothing else (64 is the fastest on a CPU).
    bias: of the two projections. conv_bias: of the short convolution. norm_eps: of the gated norm.
    A_range: where A is drawn from, uniformly. dt_range: where the initial step sizes are drawn from, uniformly in
        their logarithm, and at least dt_floor. dt_limit: what step sizes are clamped to; None leaves them.
    """

    state_size: int = 128
    head_dim: int | None = None
    expand: int = 2
    groups: int = 1
    conv_kernel: int = 4
    chunk: int = 64
    bias: bool = False
    conv_bias: bool = True
    norm_eps: float = 1e-5
    A_range: tuple[float, float] = (1.0, 16.0)
    dt_range: tuple[float, float] = (1e-3, 0.1)
    dt_floor: float = 1e-4
    dt_limit: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("A_range", "dt_range", "dt_limit"):
            limits = getattr(self, name)
            if isinstance(limits, list):
                object.__setattr__(self, name, tuple(limits))
            if limits is not None and (len(limits) != 2 or not 0 <= limits[0] <= limits[1]):
                raise InputError(f"{name} is {limits}: give two numbers (low, high) that are not negative")
        if self.A_range[0] <= 0 or self.dt_range[0] <= 0:
            raise InputError(f"A_range {self.A_range} and dt_range {self.dt_range} must begin above 0")
        for name in ("state_size", "head_dim", "expand", "groups", "conv_kernel", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1")

    def head_width(self, dim: int) -> int:
        """P for a model width; an InputError where heads, groups and the inner width do not fit."""
        inner = self.expand * dim
        if inner % self.groups:
            raise InputError(f"groups is {self.groups}: it must divide expand * dim = {inner}")
        in_group = inner // self.groups
        if self.head_dim is None:
            return next(width for width in range(min(64, in_group), 0, -1) if in_group % width == 0)
        if in_group % self.head_dim:
            raise InputError(
                f"head_dim is {self.head_dim}: it must divide expand * dim / groups = {in_group}, or be None"
            )
        return self.head_dim


class _Projected(NamedTuple):
    """Parts of W_in u: gate (..., E), channels (..., E + 2 G N) before the convolution, dt (..., H) as a step size."""

    gate: Tensor
    channels: Tensor
    dt: Tensor


class Mamba2(Mixer):
    """y = W_out RMSNorm((scan(silu(conv(x, B, C)), dt) + D x) * silu(z)) with z, x, B, C, dt = W_in u."""

    config_class = Mamba2Config
    config: Mamba2Config

    def __init__(self, dim: int, config: Mamba2Config | None = None) -> None:
        super().__init__(dim, config)
        config = self.config
        self.head_dim = config.head_width(dim)
        self.inner = config.expand * dim
        self.num_heads = self.inner // self.head_dim
        self.channels = self.inner + 2 * config.groups * config.state_size
        self.dilations = group_channels(1, self.channels, config.conv_kernel)
        self.in_proj = nn.Linear(dim, self.inner + self.channels + self.num_heads, bias=config.bias)
        self.conv_weight = nn.Parameter(torch.empty(self.channels, config.conv_kernel))
        self.conv_bias = nn.Parameter(torch.empty(self.channels)) if config.conv_bias else None
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.D = nn.Parameter(torch.empty(self.num_heads))
        self.norm = GatedRMSNorm(self.inner, config.groups, config.norm_eps)
        self.out_proj = nn.Linear(self.inner, dim, bias=config.bias)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (12, {"state_size": 8, "chunk": 16}),
            (6, {"state_size": 3, "head_dim": 4, "expand": 4, "groups": 2, "conv_kernel": 3, "chunk": 5}),
            (7, {"state_size": 5, "bias": True, "conv_bias": False, "dt_limit": (0.01, 0.05), "norm_eps": 1e-3}),
            (8, {"state_size": 4, "conv_kernel": 1, "A_range": (2.0, 3.0), "dt_range": (0.1, 0.5), "dt_floor": 0.2}),
        ]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        config = self.config
        bound = 1 / math.sqrt(config.conv_kernel)
        nn.init.uniform_(self.conv_weight, -bound, bound)
        if self.conv_bias is not None:
            nn.init.uniform_(self.conv_bias, -bound, bound)
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm.weight)
        with torch.no_grad():
            self.A_log.uniform_(*config.A_range).log_()
            low, high = (math.log(limit) for limit in config.dt_range)
            dt = self.dt_bias.uniform_(low, high).exp_().clamp_(min=config.dt_floor)
            # The inverse of softplus, exact for small dt.
            dt.copy_(dt + torch.log(-torch.expm1(-dt)))

    def no_decay(self) -> set[str]:
        return {"A_log", "dt_bias", "D"}

    @property
    def traits(self) -> Traits:
        return Traits(causal=True, content_dependent=True, state_growth="constant", reach=self.config.conv_kernel)

    @property
    def receptive_field(self) -> None:
        return None

    def _project(self, u: Tensor) -> _Projected:
        gate, channels, dt = self.in_proj(u).split([self.inner, self.channels, self.num_heads], dim=-1)
        wide = torch.promote_types(dt.dtype, torch.float32)
        dt = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
        if self.config.dt_limit is not None:
            dt = dt.clamp(*self.config.dt_limit)
        return _Projected(gate, channels, dt)

    def _split(self, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., H, P), B and C (..., G, N) from what the convolution gives."""
        shared = self.config.groups * self.config.state_size
        # The convolution gives its channels before time in memory, and so does the gradient when split like this.
        x, B, C = F.silu(channels.movedim(-1, 1)).split([self.inner, shared, shared], dim=1)
        heads, groups = (self.num_heads, self.head_dim), (self.config.groups, self.config.state_size)
        parts = ((x, heads), (B, groups), (C, groups))
        x, B, C = (part.unflatten(1, sizes).movedim((1, 2), (-2, -1)) for part, sizes in parts)
        return x, B, C

    def _A(self) -> Tensor:
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        before = cast(Mamba2State | None, state)
        gate, channels, dt = self._project(x)
        convolved, after = depthwise_conv(
            channels,
            self.conv_weight,
            self.conv_bias,
            dilation=self.dilations,
            state=None if before is None else _conv_state(before),
            document_ids=document_ids,
        )
        assert after is not None
        values, B, C = self._split(convolved)
        mixed, hidden = state_space_scan(
            values,
            dt,
            self._A(),
            B,
            C,
            self.D,
            state=None if before is None else before.hidden,
            runs=None if document_ids is None else place(x, state, document_ids).runs,
            chunk=self.config.chunk,
        )
        y = self.out_proj(self.norm(mixed.flatten(-2), gate))
        return Mixed(y, Mamba2State(after.position, after.document, after.past, hidden))

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        device = self.D.device if device is None else device
        dtype = dtype or self.D.dtype
        conv = empty_state(self.dilations, batch, device, dtype)
        sizes = (batch, self.num_heads, self.head_dim, self.config.state_size)
        hidden = torch.zeros(sizes, device=device, dtype=torch.promote_types(dtype, torch.float32))
        return Mamba2State(conv.position, conv.document, conv.past, hidden)

    def step(self, x: Tensor, state: State) -> Mixed:
        before = cast(Mamba2State, state)
        gate, channels, dt = self._project(x)
        convolved, after = depthwise_conv_step(
            channels, self.conv_weight, self.conv_bias, dilation=self.dilations, state=_conv_state(before)
        )
        values, B, C = self._split(convolved)
        mixed, hidden = state_space_step(values, dt, self._A(), B, C, self.D, before.hidden)
        y = self.out_proj(self.norm(mixed.flatten(-2), gate))
        return Mixed(y, Mamba2State(after.position, after.document, after.past, hidden))

    def mixing(self, x: Tensor) -> list[Mixing]:
        _, channels, dt = self._project(x)
        channels, _ = depthwise_conv(channels, self.conv_weight, self.conv_bias, dilation=self.dilations)
        values, B, C = self._split(channels)
        skip = torch.diag_embed(self.D[:, None].expand(-1, x.shape[1]))
        matrix = decayed_weights(dt, self._A(), B.to(dt.dtype), C.to(dt.dtype)) + skip
        return [Mixing(matrix.to(x.dtype), values.transpose(1, 2))]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        gate = self._project(x).gate
        return self.out_proj(self.norm(mixed[0].transpose(1, 2).flatten(-2), gate))

    def links(self, time: int) -> Tensor:
        return causal_mask(time, device=self.D.device)

    def _other_flops(self, positions: int) -> int:
        """Activations of the convolved channels and the gate, the norm, decays and the skip, a position."""
        return positions * (9 * self.channels + 12 * self.inner + 8 * self.num_heads)

    def _linear_flops(self, positions: int) -> int:
        return linear_flops(positions, self.dim, self.in_proj.out_features) + linear_flops(
            positions, self.inner, self.dim
        )

    def _state_bytes(self, batch: int) -> int:
        size = self.D.element_size()
        hidden = self.inner * self.config.state_size * max(4, size)
        return batch * (self.dilations.past_size * size + hidden + BOOKKEEPING_BYTES)

    def _bytes_moved(self, batch: int, time: int) -> int:
        return self.D.element_size() * (self.num_parameters + 2 * batch * time * self.dim) + self._state_bytes(batch)

    def cost(self, batch: int, time: int) -> Cost:
        positions = batch * time
        config = self.config
        scan = scan_flops(time, self.num_heads, self.head_dim, config.groups, config.state_size, config.chunk)
        carries = -(-time // config.chunk) * 2 * self.inner * config.state_size
        return Cost(
            product_flops=self._linear_flops(positions)
            + 2 * positions * self.channels * config.conv_kernel
            + batch * scan,
            other_flops=self._other_flops(positions) + batch * carries,
            parameters=self.num_parameters,
            state_bytes=self._state_bytes(batch),
            bytes_moved=self._bytes_moved(batch, time),
        )

    def step_cost(self, batch: int, position: int) -> Cost:
        config = self.config
        update = 3 * self.inner * config.state_size
        return Cost(
            product_flops=self._linear_flops(batch)
            + 2 * batch * self.channels * config.conv_kernel
            + batch * step_flops(self.num_heads, self.head_dim, config.state_size),
            other_flops=self._other_flops(batch) + batch * update,
            parameters=self.num_parameters,
            state_bytes=self._state_bytes(batch),
            bytes_moved=self._bytes_moved(batch, 1),
        )


def _conv_state(state: Mamba2State) -> DepthwiseConvState:
    return DepthwiseConvState(state.past, state.position, state.document)
