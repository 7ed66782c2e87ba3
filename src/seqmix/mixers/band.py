"""What mixers with a short band of weights share: K weights for each head in every row of the matrix.

    M[t, t - left + k] = w[t, head, k]        left = K - 1 when causal, floor((K - 1) / 2) around the position

Taps before the document, after its end or in another one count as zero.

Shapes: B batch, T time, D model width, H heads of W neighbouring channels, K kernel.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.cost import Cost
from seqmix.errors import InputError
from seqmix.kernels.depthwise_conv import DepthwiseConvState, empty_state, group_channels
from seqmix.kernels.dynamic_conv import dynamic_conv, dynamic_conv_step
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits
from seqmix.mixers.convolution import ConvState
from seqmix.mixers.sizes import usual_heads


class BandMixer(Mixer):
    """y = readout(M values) with K weights a head in every row of M: what mixers of such a band share.

    Args:
        dim, config: as of Mixer; the config has `kernel` and `causal`.
        heads: groups of neighbouring channels that share their weights; they divide dim.
    """

    config: Any

    def __init__(self, dim: int, config: Any, heads: int | None) -> None:
        super().__init__(dim, config)
        self.heads = usual_heads(dim) if heads is None else heads
        if dim % self.heads:
            raise InputError(f"heads is {self.heads}, which does not divide dim {dim}: choose a divisor")
        self.dilations = group_channels(1, dim, self.config.kernel)

    @abstractmethod
    def _values(self, x: Tensor) -> Tensor:
        """What is mixed, (..., dim), from x (..., dim)."""

    @abstractmethod
    def _weights(self, values: Tensor) -> Tensor:
        """The taps (..., heads, kernel) of each position, oldest first, or (heads, kernel) where all have the same."""

    @abstractmethod
    def _readout(self, mixed: Tensor) -> Tensor:
        """y (..., dim) from what was mixed, (..., dim)."""

    @abstractmethod
    def _position_cost(self) -> tuple[int, int]:
        """Product and other FLOPs of values, weights and readout for one position."""

    def _mix(
        self, values: Tensor, state: DepthwiseConvState | None, document_ids: Tensor | None
    ) -> tuple[Tensor, DepthwiseConvState | None]:
        """M values (batch, time, dim), and the ring after them."""
        causal = self.config.causal
        return dynamic_conv(values, self._weights(values), causal=causal, state=state, document_ids=document_ids)

    def _mix_step(self, values: Tensor, state: DepthwiseConvState) -> tuple[Tensor, DepthwiseConvState]:
        return dynamic_conv_step(values, self._weights(values), state=state)

    @property
    def traits(self) -> Traits:
        causal = self.config.causal
        return Traits(causal=causal, content_dependent=True, state_growth="constant" if causal else None)

    @property
    def receptive_field(self) -> int:
        return self.config.kernel

    @property
    def lags(self) -> range:
        ahead = 0 if self.config.causal else self.config.kernel // 2
        return range(-ahead, self.config.kernel - ahead)

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
        before = None if state is None else _ring(state)
        mixed, after = self._mix(self._values(x), before, document_ids)
        return Mixed(self._readout(mixed), None if after is None else _state(after))

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
        like = next(self.parameters())
        return _state(empty_state(self.dilations, batch, device or like.device, dtype or like.dtype))

    def step(self, x: Tensor, state: State) -> Mixed:
        if not self.config.causal:
            return super().step(x, state)
        mixed, after = self._mix_step(self._values(x), _ring(state))
        return Mixed(self._readout(mixed), _state(after))

    def mixing(self, x: Tensor) -> list[Mixing]:
        values = self._values(x)
        weights = self._weights(values)
        time = x.shape[1]
        if weights.dim() == 2:
            weights = weights.expand(1, time, -1, -1)
        # Every row one longer than the band shifts each row's weights by one against the row before.
        rows = F.pad(weights.transpose(1, 2), (0, time)).flatten(2)
        width = time + self.config.kernel - 1
        band = rows[:, :, : time * width].unflatten(2, (time, width))
        first = self.lags[-1]
        matrix = band[..., first : first + time]
        return [Mixing(matrix, values.unflatten(2, (self.heads, -1)).transpose(1, 2))]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self._readout(mixed[0].transpose(1, 2).flatten(2))

    def links(self, time: int) -> Tensor:
        steps = torch.arange(time)
        lag = steps[:, None] - steps
        return (lag >= self.lags[0]) & (lag <= self.lags[-1])

    def cost(self, batch: int, time: int) -> Cost:
        positions = batch * time
        products, others = self._position_cost()
        size = next(self.parameters()).element_size()
        state_bytes = 0
        if self.config.causal:
            state_bytes = batch * (self.dilations.past_size * size + BOOKKEEPING_BYTES)
        return Cost(
            product_flops=positions * (products + 2 * self.dim * self.config.kernel),
            other_flops=positions * others,
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )


def _ring(state: State) -> DepthwiseConvState:
    if isinstance(state, ConvState):
        return DepthwiseConvState(state.past, state.position, state.document)
    raise InputError(f"the state is a {type(state).__name__}, which no convolution made: begin with init_state")


def _state(ring: DepthwiseConvState) -> ConvState:
    return ConvState(ring.position, ring.document, ring.past)
