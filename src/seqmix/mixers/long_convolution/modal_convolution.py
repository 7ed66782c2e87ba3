"""Long convolutions whose filters are sums of decaying waves, so that a state of fixed size is enough.

    taps[k] = Re sum over n of R_n lambda_n^k,  lambda = exp(-exp(log_decay) + i angle),  + D at k = 0

    modal_conv:        y = conv(x) + b
    gated_modal_conv:  B, C, u = W_in x;  y = W_out (C * conv(B * u))
    modal_hyena:       Hyena's operator (`hyena.py`) with such filters

The filters of arXiv 2310.18780 (Laughing Hyena), a diagonal state space of complex numbers that no input changes. They
can be trained from their first values, or come from a trained mixer by `distillation.distill`. M is a lower triangle,
constant along its diagonals, the same for every input.

Shapes: B batch, T time, D model width, N modes, M = 2 N the numbers of a channel's state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from seqmix.errors import InputError
from seqmix.kernels.documents import Placement
from seqmix.kernels.long_conv import long_conv_flops
from seqmix.kernels.long_conv.modal import CHUNK, Modes, scan, scan_by_step, scan_flops, step
from seqmix.mixer import BOOKKEEPING_BYTES, State
from seqmix.mixers.long_convolution.global_convolution import GatedLongMixer, PlainLongMixer
from seqmix.mixers.long_convolution.hyena import HyenaMixer, check_hyena
from seqmix.mixers.long_convolution.long_filter import LongFilter

LONGEST_DECAY = 1000.0
"""Positions: time constants are drawn between 1 and this, evenly in the log."""


@dataclass
class ModalState(State):
    """hidden: for each stream (batch, dim, 2 * modes), real parts first, in float32 or wider."""

    hidden: tuple[Tensor, ...]


def _check_size(state_size: int) -> None:
    if state_size < 1:
        raise InputError(f"state_size is {state_size}: give at least 1 mode for each channel")


@dataclass(frozen=True, kw_only=True)
class ModalConvConfig:
    """state_size: N, complex modes of every channel. bias: added to what is convolved."""

    state_size: int = 16
    bias: bool = True

    def __post_init__(self) -> None:
        _check_size(self.state_size)


@dataclass(frozen=True, kw_only=True)
class GatedModalConvConfig:
    """As ModalConvConfig, without a bias unless asked for."""

    state_size: int = 16
    bias: bool = False

    def __post_init__(self) -> None:
        _check_size(self.state_size)


@dataclass(frozen=True, kw_only=True)
class ModalHyenaConfig:
    """state_size: N, complex modes of every channel and filter. order, short_kernel, bias: as of Hyena."""

    state_size: int = 16
    order: int = 2
    short_kernel: int = 3
    bias: bool = True

    def __post_init__(self) -> None:
        _check_size(self.state_size)
        check_hyena(self)


class ModalFilter(LongFilter):
    """Filters without an end, of N modes for each channel.

    log_decay, angle: (streams, dim, N), of lambda. residue: (2, streams, dim, N), the real and the imaginary part of R.
    skip: (streams, dim).
    """

    growth = "constant"

    def __init__(self, dim: int, streams: int, state_size: int) -> None:
        super().__init__(dim, streams, None)
        self.state_size = state_size
        self.log_decay = nn.Parameter(torch.empty(streams, dim, state_size))
        self.angle = nn.Parameter(torch.empty(streams, dim, state_size))
        self.residue = nn.Parameter(torch.empty(2, streams, dim, state_size))
        self.skip = nn.Parameter(torch.empty(streams, dim))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Time constants of every scale, all angles, each mode of the same energy, that of a channel near 1."""
        self.log_decay.uniform_(-math.log(LONGEST_DECAY), 0)
        self.angle.uniform_(0, math.pi)
        energy = -torch.expm1(-2 * self.log_decay.exp())
        self.residue.normal_().mul_((energy / self.state_size).sqrt())
        self.skip.normal_()

    def no_decay(self) -> set[str]:
        return {"log_decay", "angle", "skip"}

    def modes(self, stream: int) -> Modes:
        """The modes of a stream, in float32 or wider."""
        wide = torch.promote_types(self.skip.dtype, torch.float32)
        parts = (self.log_decay[stream], self.angle[stream], *self.residue[:, stream])
        log_decay, angle, real, imaginary = (part.to(wide) for part in parts)
        return Modes(log_decay.exp(), angle, real, imaginary)

    def taps(self, count: int) -> Tensor:
        taps = torch.stack([self.modes(stream).taps(count) for stream in range(self.streams)])
        return torch.cat([taps[..., :1] + self.skip[..., None], taps[..., 1:]], dim=2)

    def init_state(
        self, batch: int, capacity: int | None, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> ModalState:
        device = self.skip.device if device is None else device
        wide = torch.promote_types(dtype or self.skip.dtype, torch.float32)
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        sizes = (batch, self.dim, 2 * self.state_size)
        hidden = tuple(torch.zeros(sizes, dtype=wide, device=device) for _ in range(self.streams))
        return ModalState(count, count.clone(), hidden)

    def begin(self, state: State | None, placement: Placement, capacity: int | None) -> ModalSequence:
        before = cast(ModalState | None, state)
        if before is None:
            parameter_type, device = self.skip.dtype, placement.positions.device
            before = self.init_state(len(placement.positions), None, device, parameter_type)
        return ModalSequence(self, before, placement)

    def begin_step(self, state: State, x: Tensor) -> ModalToken:
        return ModalToken(self, cast(ModalState, state))

    def state_bytes(self, batch: int, time: int, size: int) -> int:
        return batch * (2 * self.streams * self.dim * self.state_size * max(4, size) + BOOKKEEPING_BYTES)

    def flops(self, batch: int, time: int) -> tuple[int, int]:
        channels = batch * self.streams * self.dim
        chunks = -(-time // CHUNK)
        inside = chunks * long_conv_flops(min(CHUNK, time)) + chunks * 8 * self.state_size
        return channels * scan_flops(time, self.state_size), channels * (inside + 4 * time)

    def step_flops(self, batch: int, position: int) -> tuple[int, int]:
        return 12 * batch * self.streams * self.dim * self.state_size, 4 * batch * self.streams * self.dim


class ModalSequence:
    """A pass over a piece; float64 takes the loop."""

    def __init__(self, own: ModalFilter, state: ModalState, placement: Placement) -> None:
        self.filter, self.state, self.placement = own, state, placement
        self.hidden: list[Tensor] = []

    def convolve(self, u: Tensor) -> Tensor:
        """y (batch, time, dim) of the next stream."""
        stream = len(self.hidden)
        wide = torch.promote_types(u.dtype, torch.float32)
        runs = self.placement.runs if self.placement.packed else None
        form = scan_by_step if u.dtype == torch.float64 else scan
        before = self.state.hidden[stream]
        with torch.autocast(u.device.type, enabled=False):
            y, hidden = form(u.to(wide), self.filter.modes(stream), before.to(wide), runs)
        self.hidden.append(hidden.to(before.dtype))
        return (y + u * self.filter.skip[stream]).to(u.dtype)

    def finish(self) -> ModalState:
        """The state after the piece."""
        # Without a position the state is the one before, which must stay as it is.
        hidden = tuple(part.clone() for part in self.hidden)
        return ModalState(self.placement.position, self.placement.document, hidden)


class ModalToken:
    """A pass over one position."""

    def __init__(self, own: ModalFilter, state: ModalState) -> None:
        self.filter, self.state = own, state
        self.hidden: list[Tensor] = []

    def convolve(self, u: Tensor) -> Tensor:
        """y (batch, dim) of the next stream."""
        stream = len(self.hidden)
        before = self.state.hidden[stream]
        y, hidden = step(u.to(before.dtype), self.filter.modes(stream), before)
        self.hidden.append(hidden.to(before.dtype))
        return (y + u * self.filter.skip[stream]).to(u.dtype)

    def finish(self) -> ModalState:
        """The state after the position."""
        return ModalState(self.state.position + 1, self.state.document, tuple(self.hidden))


class ModalConv(PlainLongMixer):
    """y = conv(x) + b, every channel with a filter of `state_size` modes; a step costs the same at every position."""

    config_class = ModalConvConfig

    def __init__(self, dim: int, config: ModalConvConfig | None = None) -> None:
        super().__init__(dim, config)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(12, {"state_size": 4}), (5, {"state_size": 1, "bias": False})]

    def _make_filter(self) -> LongFilter:
        return ModalFilter(self.dim, 1, self.config.state_size)


class GatedModalConv(GatedLongMixer):
    """y = W_out (C * conv(B * u)) with B, C, u = W_in x, every channel with a filter of `state_size` modes."""

    config_class = GatedModalConvConfig

    def __init__(self, dim: int, config: GatedModalConvConfig | None = None) -> None:
        super().__init__(dim, config)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {"state_size": 4, "bias": True})]

    def _make_filter(self) -> LongFilter:
        return ModalFilter(self.dim, 1, self.config.state_size)


class ModalHyena(HyenaMixer):
    """Hyena's operator with filters of `state_size` modes: the recurrent form of a Hyena."""

    config_class = ModalHyenaConfig

    def __init__(self, dim: int, config: ModalHyenaConfig | None = None) -> None:
        super().__init__(dim, config)
        self.filter = ModalFilter(dim, self.config.order - 1, self.config.state_size)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(4, {"state_size": 3, "order": 3, "short_kernel": 2, "bias": False})]
