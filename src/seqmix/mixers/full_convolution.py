"""The full convolution: every tap is a matrix that mixes all channels.

    causal:      y[t] = sum_k W_k x[t - (K - 1 - k) d] + b
    non-causal:  y[t] = sum_k W_k x[t * stride + k d - left] + b

As a matrix: one head a tap; its values are W_k x, its matrix is 1 where the tap points, a shifted diagonal (with
rows left out where the stride is above 1); the readout sums the heads and adds b.

Shapes: B batch, T time, D model width, K kernel, L reach of the farthest tap, (K - 1) * dilation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost
from seqmix.errors import InputError
from seqmix.kernels.depthwise_conv.channels import group_channels, newest, ring_of, roll, unroll
from seqmix.kernels.documents import Placement
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, place


@dataclass
class FullConvState(State):
    """past: (batch, L * D), the ring of the recent inputs: the input of position p in slot p mod L."""

    past: Tensor


@dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """kernel: taps. dilation: positions between them. bias: one for each channel.

    stride and padding belong to the non-causal form: every `stride`-th position is kept; "same" centres the kernel
    as torch does and leaves ceil(time / stride) positions, a number is what is added on both sides.
    """

    kernel: int = 3
    dilation: int = 1
    causal: bool = True
    stride: int = 1
    padding: int | Literal["same"] = "same"
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("kernel", "dilation", "stride"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if isinstance(self.padding, str) and self.padding != "same":
            raise InputError(f"padding is {self.padding!r}: give a number of positions, or 'same'")
        if isinstance(self.padding, int) and self.padding < 0:
            raise InputError(f"padding is {self.padding}: it must not be negative")
        if self.causal and (self.stride != 1 or self.padding != "same"):
            raise InputError(
                f"stride is {self.stride} and padding {self.padding!r}: a causal convolution keeps the length, so "
                "leave both out or set causal to False"
            )

    @property
    def reach(self) -> int:
        """L, from the first tap to the last."""
        return (self.kernel - 1) * self.dilation

    @property
    def sides(self) -> tuple[int, int]:
        """Positions added before and after the sequence."""
        if self.causal:
            return self.reach, 0
        if isinstance(self.padding, int):
            return self.padding, self.padding
        return self.reach // 2, self.reach - self.reach // 2

    def positions_out(self, time: int) -> int:
        """The length of the output; an InputError where nothing is left."""
        count = (time + sum(self.sides) - self.reach - 1) // self.stride + 1
        if count < 1:
            raise InputError(
                f"a sequence of {time} positions is shorter than the kernel's span of {self.reach + 1}: give a longer "
                "sequence or more padding"
            )
        return count


class Conv(Mixer):
    """y[t] = sum_k W_k x[t - (K - 1 - k) d] + b, or the centred form with stride and padding.

    Args:
        dim, config: as of Mixer.
        outputs: the width of y where another mixer holds this one as a part; None for dim.
        weight_norm: give each output channel's weights a length of their own, W = scale * weight / |weight|
            (arXiv 1602.07868).
    """

    config_class = ConvConfig
    config: ConvConfig

    def __init__(
        self, dim: int, config: ConvConfig | None = None, *, outputs: int | None = None, weight_norm: bool = False
    ) -> None:
        super().__init__(dim, config)
        outputs = dim if outputs is None else outputs
        self.dilations = group_channels(self.config.dilation, dim, self.config.kernel)
        self.weight = nn.Parameter(torch.empty(outputs, dim, self.config.kernel))
        self.scale = nn.Parameter(torch.empty(outputs)) if weight_norm else None
        self.bias = nn.Parameter(torch.empty(outputs)) if self.config.bias else None
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (6, {}),
            (5, {"kernel": 4, "dilation": 3, "bias": False}),
            (4, {"kernel": 1}),
            (5, {"kernel": 4, "dilation": 2, "causal": False}),
            (4, {"kernel": 3, "causal": False, "stride": 2}),
            (4, {"kernel": 4, "causal": False, "stride": 3, "padding": 5}),
            (4, {"kernel": 3, "causal": False, "padding": 1}),
        ]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        bound = 1 / math.sqrt(self.dim * self.config.kernel)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        self.measure_scale()

    def measure_scale(self) -> None:
        """Gives W the lengths that `weight` has, so that the two are equal."""
        if self.scale is not None:
            with torch.no_grad():
                self.scale.copy_(self.weight.flatten(1).norm(dim=1))

    @property
    def filters(self) -> Tensor:
        """W, (outputs, dim, kernel)."""
        if self.scale is None:
            return self.weight
        lengths = self.weight.flatten(1).norm(dim=1)
        return self.weight * (self.scale / lengths)[:, None, None]

    @property
    def traits(self) -> Traits:
        config = self.config
        return Traits(
            causal=config.causal,
            content_dependent=False,
            state_growth="constant" if config.causal else None,
            resamples=config.stride != 1 or sum(config.sides) != config.reach,
        )

    @property
    def receptive_field(self) -> int:
        return self.config.reach + 1

    @property
    def lags(self) -> list[int]:
        return [self.config.sides[0] - tap * self.config.dilation for tap in reversed(range(self.config.kernel))]

    @property
    def head_spans(self) -> list[int | None]:
        # A head is a tap, in the order of the filters: the farthest back first.
        return [1 if self.traits.resamples else abs(lag) + 1 for lag in reversed(self.lags)]

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        if not self.config.causal and state is not None:
            raise InputError("a non-causal convolution takes no state: give the whole sequence at once")
        if document_ids is not None and self.traits.resamples:
            raise InputError(
                "a convolution that changes the length cannot keep packed documents apart: give one document a row"
            )
        left, right = self.config.sides
        if not self.config.causal:
            behind = x.new_zeros(len(x), left, self.dim)
            return Mixed(self._convolve(x, behind, right, place(x, None, document_ids)), None)
        group = self.dilations.groups[0]
        start = self.init_state(len(x), device=x.device, dtype=x.dtype) if state is None else state
        before = cast(FullConvState, start)
        placement = place(x, state, document_ids)
        recent = unroll(before.past, before.position, group)
        past = roll(newest(recent, x, group), placement.position, group)
        after = FullConvState(placement.position, placement.document, past)
        return Mixed(self._convolve(x, recent, right, placement), after)

    def _convolve(self, x: Tensor, behind: Tensor, right: int, placement: Placement) -> Tensor:
        """y from x, what stands before it and `right` zeros after it."""
        config = self.config
        count = config.positions_out(x.shape[1])
        if placement.packed or x.dtype == torch.float64:
            padded = torch.cat([behind, x, x.new_zeros(len(x), right, self.dim)], dim=1)
            return self._sum_of_taps(padded, count, _runs_of(placement, behind.shape[1], right))
        time_last = F.pad(torch.cat([behind, x], dim=1).transpose(1, 2), (0, right))
        return F.conv1d(time_last, self.filters, self.bias, config.stride, 0, config.dilation).transpose(1, 2)

    def _sum_of_taps(self, padded: Tensor, count: int, runs: Tensor | None) -> Tensor:
        """The convolution as its formula reads; a tap that points into another document counts nothing."""
        config = self.config
        here = slice(config.sides[0], config.sides[0] + count)
        filters, y = self.filters, None
        for tap in range(config.kernel):
            first = tap * config.dilation
            there = slice(first, first + (count - 1) * config.stride + 1, config.stride)
            source = padded[:, there]
            if runs is not None:
                source = torch.where((runs[:, there] == runs[:, here])[..., None], source, source.new_zeros(()))
            moved = F.linear(source, filters[:, :, tap])
            y = moved if y is None else y + moved
        assert y is not None
        return y if self.bias is None else y + self.bias.to(y.dtype)

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
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        past = torch.zeros(batch, self.dilations.past_size, device=device, dtype=dtype or self.weight.dtype)
        return FullConvState(count, count.clone(), past)

    def step(self, x: Tensor, state: State) -> Mixed:
        if not self.config.causal:
            return super().step(x, state)
        before = cast(FullConvState, state)
        group = self.dilations.groups[0]
        window = x[:, :, None]
        if group.length:
            ring = ring_of(before.past, group)
            back = torch.arange(self.config.kernel - 1, 0, -1, device=x.device) * group.dilation
            slots = (before.position[:, None] - back) % group.length
            sources = ring.gather(1, slots[:, :, None].expand(-1, -1, self.dim))
            window = torch.cat([sources.to(x.dtype).transpose(1, 2), window], dim=2)
            slot = (before.position % group.length)[:, None, None].expand(-1, 1, self.dim)
            ring.scatter_(1, slot, x[:, None].to(ring.dtype))
        y = F.linear(window.flatten(1), self.filters.flatten(1), self.bias)
        return Mixed(y, FullConvState(before.position + 1, before.document, before.past))

    def mixing(self, x: Tensor) -> list[Mixing]:
        matrix = self._taps(x.shape[1], x.device).to(x.dtype)
        values = torch.einsum("bsi,oik->bkso", x, self.filters)
        return [Mixing(matrix[None], values)]

    def _taps(self, time: int, device: torch.device) -> Tensor:
        """bool (kernel, time out, time): where each tap points."""
        config = self.config
        targets = torch.arange(config.positions_out(time), device=device) * config.stride - config.sides[0]
        offsets = torch.arange(config.kernel, device=device) * config.dilation
        sources = offsets[:, None] + targets
        return sources[:, :, None] == torch.arange(time, device=device)

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        y = mixed[0].sum(dim=1)
        return y if self.bias is None else y + self.bias

    def links(self, time: int) -> Tensor:
        return self._taps(time, self.weight.device).any(dim=0)

    def cost(self, batch: int, time: int) -> Cost:
        count = self.config.positions_out(time)
        outputs = self.weight.shape[0]
        size = self.weight.element_size()
        state_bytes = 0
        if self.config.causal:
            state_bytes = batch * (self.dilations.past_size * size + BOOKKEEPING_BYTES)
        others = batch * count * (outputs if self.config.bias else 0)
        return Cost(
            product_flops=2 * batch * count * self.weight.numel(),
            other_flops=others if self.scale is None else others + 3 * self.weight.numel(),
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + batch * (time * self.dim + count * outputs)) + state_bytes,
        )


def _runs_of(placement: Placement, left: int, right: int) -> Tensor | None:
    """The document of every padded position: what stands before continues document 0, after the end is none."""
    if not placement.packed:
        return None
    return F.pad(F.pad(placement.runs, (left, 0)), (0, right), value=-1)
