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
from seqmix.kernels.long_conv import long_conv_flops, step_flops
from seqmix.mixer import Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers.online_convolution import LongFilter, SequencePass, TokenPass, long_state


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


class ExplicitFilter(LongFilter):
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


class _GlobalMixer(Mixer):
    """What the mixers share: readout(conv(values(x)) + bias), with values and readout position by position."""

    def __init__(self, dim: int, config: Any = None) -> None:
        super().__init__(dim, config)
        self.filter = ExplicitFilter(dim, self.config.length)
        self.bias = nn.Parameter(torch.empty(dim)) if self.config.bias else None

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

    @property
    def traits(self) -> Traits:
        return Traits(causal=True, content_dependent=False, state_growth="linear")

    @property
    def receptive_field(self) -> int:
        return self.config.length

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
        """As `Mixer.forward`; the state keeps at most the last `length` inputs, and with a capacity of at least
        `length` it is never full."""
        values, gate = self._values(x)
        convolving = SequencePass(self.filter, long_state(state), place(x, state, document_ids), capacity)
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
        weight = self.filter.weight
        device = weight.device if device is None else device
        return self.filter.init_state(batch, capacity, device, dtype or weight.dtype)

    def step(self, x: Tensor, state: State) -> Mixed:
        """As `Mixer.step`; exact, in O(log^2 n) on average for n positions read, see `kernels.long_conv.online`."""
        before = long_state(state)
        assert before is not None
        values, gate = self._values(x)
        convolving = TokenPass(self.filter, before, x)
        convolved = convolving.convolve(values)
        return Mixed(self._readout(convolved, gate), convolving.finish())

    def mixing(self, x: Tensor) -> list[Mixing]:
        return [Mixing(self.filter.matrices(x.shape[1]), self._values(x)[0].transpose(1, 2)[..., None])]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self._readout(mixed[0][..., 0].transpose(1, 2), self._values(x)[1])

    def links(self, time: int) -> Tensor:
        return causal_mask(time, self.config.length, self.filter.weight.device)

    def _cost(self, batch: int, time: int, convolution: int, read: int) -> Cost:
        """The cost of `time` positions a row, the convolution taking `convolution` FLOPs a row, after `read` in all."""
        positions, size = batch * time, self.filter.weight.element_size()
        product, other = self._position_cost()
        state_bytes = self.filter.state_bytes(batch, read, size)
        return Cost(
            product_flops=positions * product,
            other_flops=positions * (other + (self.dim if self.config.bias else 0)) + batch * convolution,
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )

    def cost(self, batch: int, time: int) -> Cost:
        return self._cost(batch, time, self.dim * long_conv_flops(time), time)

    def step_cost(self, batch: int, position: int) -> Cost:
        slots = min(position + 1, self.config.length)
        return self._cost(batch, 1, self.dim * step_flops(slots), position + 1)


class GlobalConv(_GlobalMixer):
    """y = conv(x) + b, every channel with `length` taps."""

    config_class = GlobalConvConfig

    def __init__(self, dim: int, config: GlobalConvConfig | None = None) -> None:
        super().__init__(dim, config)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(12, {"length": 128}), (7, {"length": 21, "bias": False})]

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x, None

    def _gated(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        return convolved

    def _position_cost(self) -> tuple[int, int]:
        return 0, 0


class GatedGlobalConv(_GlobalMixer):
    """y = W_out (C * conv(B * u)) with B, C, u = W_in x: an input gate, the convolution, an output gate."""

    config_class = GatedGlobalConvConfig

    def __init__(self, dim: int, config: GatedGlobalConvConfig | None = None) -> None:
        super().__init__(dim, config)
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(12, {"length": 128}), (7, {"length": 21, "bias": True})]

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        gate_in, gate_out, value = self.in_proj(x).chunk(3, dim=-1)
        return gate_in * value, gate_out

    def _gated(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        assert gate is not None
        return self.out_proj(gate * convolved)

    def _position_cost(self) -> tuple[int, int]:
        return linear_flops(1, self.dim, 4 * self.dim), 2 * self.dim
