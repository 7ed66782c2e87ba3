"""Global convolutions: for every channel a filter with a tap of its own for each of the last `length` positions.

    global_conv:        y[t] = sum over k < length of w_k * x[t - k] + b                    element-wise products
    gated_global_conv:  B, C, u = W_in x;  y = W_out (C * conv(B * u))       the gates of LFM2 (arXiv 2511.23404) around
                        it; with one convolution, as BaseConv of arXiv 2312.04927 and H3 of arXiv 2212.14052 have it

Long filters learned tap by tap: arXiv 2302.06646. M is a lower triangle, constant along its diagonals, the same for
every input; a position sees the last `length` positions, itself included, and none before them.

Shapes: B batch, T time, D model width (one head of width 1 a channel in the matrix), K length.
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
from seqmix.mixer import Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers.long_convolution.long_filter import LongFilter
from seqmix.mixers.long_convolution.online_convolution import TapFilter


@dataclass(frozen=True, kw_only=True)
class GlobalConvConfig:
    """length: taps of every channel, the positions seen. bias: added to what is convolved."""

    length: int = 1024
    bias: bool = True

    def __post_init__(self) -> None:
        _check_length(self.length)


@dataclass(frozen=True, kw_only=True)
class GatedGlobalConvConfig:
    """As GlobalConvConfig, without a bias unless asked for."""

    length: int = 1024
    bias: bool = False

    def __post_init__(self) -> None:
        _check_length(self.length)


def _check_length(length: int) -> None:
    if length < 1:
        raise InputError(f"length is {length}: give the number of positions to see, at least 1")


class ExplicitFilter(TapFilter):
    """A learned tap for every lag: weight (dim, length), `weight[:, k]` for the source k positions back."""

    def __init__(self, dim: int, length: int) -> None:
        super().__init__(dim, 1, length)
        self.weight = nn.Parameter(torch.empty(dim, length))

    def taps(self, count: int) -> Tensor:
        return self.weight[None, :, :count]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Noise of unit energy in each channel that fades with time constants from 1 to `length`, evenly in the log."""
        device = self.weight.device
        reach = torch.logspace(0, math.log10(self.length), self.dim, device=device, dtype=torch.float64)
        fading = torch.exp(-torch.arange(self.length, device=device) / reach.flip(0)[:, None])
        self.weight.normal_().mul_(fading / fading.square().sum(dim=1, keepdim=True).sqrt())


class LongMixer(Mixer):
    """One long convolution: readout(conv(values(x)) + bias), with values and readout position by position."""

    filter: LongFilter

    def __init__(self, dim: int, config: Any = None) -> None:
        super().__init__(dim, config)
        self.filter = self._make_filter()
        self.bias = nn.Parameter(torch.empty(dim)) if self.config.bias else None

    @abstractmethod
    def _make_filter(self) -> LongFilter:
        """The filter, whose parameters are yet to be drawn."""

    @abstractmethod
    def _values(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is convolved and what gates the result, both (..., dim), from x (..., dim)."""

    @abstractmethod
    def _gated(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        """y (..., dim) from the convolution with its bias and the gate, both (..., dim)."""

    @abstractmethod
    def _position_cost(self) -> tuple[int, int]:
        """Product and other FLOPs of values and readout for one position."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.filter.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def no_decay(self) -> set[str]:
        return {f"filter.{name}" for name in self.filter.no_decay()}

    @property
    def traits(self) -> Traits:
        return Traits(causal=True, content_dependent=False, state_growth=self.filter.growth)

    @property
    def receptive_field(self) -> int | None:
        return self.filter.length

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        return self._gated(convolved if self.bias is None else convolved + self.bias, gate)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        """As `Mixer.forward`; where the filter has an end, a state with a capacity of at least its length is never
        full."""
        values, gate = self._values(x)
        convolving = self.filter.begin(state, place(x, state, document_ids), capacity)
        convolved = convolving.convolve(values)
        return Mixed(self._readout(convolved, gate), convolving.finish())

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        return self.filter.init_state(batch, capacity, device, dtype)

    def step(self, x: Tensor, state: State) -> Mixed:
        values, gate = self._values(x)
        convolving = self.filter.begin_step(state, x)
        convolved = convolving.convolve(values)
        return Mixed(self._readout(convolved, gate), convolving.finish())

    def mixing(self, x: Tensor) -> list[Mixing]:
        return [Mixing(self.filter.matrices(x.shape[1]), self._values(x)[0].transpose(1, 2)[..., None])]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self._readout(mixed[0][..., 0].transpose(1, 2), self._values(x)[1])

    def links(self, time: int) -> Tensor:
        return causal_mask(time, self.filter.length, next(self.parameters()).device)

    def _cost(self, batch: int, time: int, flops: tuple[int, int], read: int) -> Cost:
        """The cost of `time` positions a row, with product and other FLOPs of the filter, after `read` in all."""
        positions, size = batch * time, next(self.parameters()).element_size()
        product, other = self._position_cost()
        state_bytes = self.filter.state_bytes(batch, read, size)
        return Cost(
            product_flops=positions * product + flops[0],
            other_flops=positions * (other + (self.dim if self.config.bias else 0)) + flops[1],
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )

    def cost(self, batch: int, time: int) -> Cost:
        return self._cost(batch, time, self.filter.flops(batch, time), time)

    def step_cost(self, batch: int, position: int) -> Cost:
        return self._cost(batch, 1, self.filter.step_flops(batch, position), position + 1)


class PlainLongMixer(LongMixer):
    """y = conv(x) + b: values and readout are the identity (and the bias)."""

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x, None

    def _gated(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        return convolved

    def _position_cost(self) -> tuple[int, int]:
        return 0, 0


class GatedLongMixer(LongMixer):
    """y = W_out (C * conv(B * u)) with B, C, u = W_in x: an input gate, the convolution, an output gate."""

    def __init__(self, dim: int, config: Any = None) -> None:
        super().__init__(dim, config)
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        gate_in, gate_out, value = self.in_proj(x).chunk(3, dim=-1)
        return gate_in * value, gate_out

    def _gated(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        assert gate is not None
        return self.out_proj(gate * convolved)

    def _position_cost(self) -> tuple[int, int]:
        return linear_flops(1, self.dim, 4 * self.dim), 2 * self.dim


class GlobalConv(PlainLongMixer):
    """y = conv(x) + b, every channel with `length` taps.

    A position sees the last `length` positions and none before them. A step is exact and takes O(log^2 n) on average
    for n positions read, see `kernels.long_conv.online`.
    """

    config_class = GlobalConvConfig

    def __init__(self, dim: int, config: GlobalConvConfig | None = None) -> None:
        super().__init__(dim, config)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(12, {"length": 128}), (7, {"length": 21, "bias": False})]

    def _make_filter(self) -> LongFilter:
        return ExplicitFilter(self.dim, self.config.length)


class GatedGlobalConv(GatedLongMixer):
    """y = W_out (C * conv(B * u)) with B, C, u = W_in x, every channel with `length` taps; see GlobalConv."""

    config_class = GatedGlobalConvConfig

    def __init__(self, dim: int, config: GatedGlobalConvConfig | None = None) -> None:
        super().__init__(dim, config)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(12, {"length": 128}), (7, {"length": 21, "bias": True})]

    def _make_filter(self) -> LongFilter:
        return ExplicitFilter(self.dim, self.config.length)
