"""What a mixer with long convolutions asks of its filters, whatever they are: taps, a state, and how to convolve.

The streams of a mixer follow one another: each is convolved before the input of the next is known. So a pass over a
piece, or over one position, takes them in turn and gives the state at its end.

Shapes: B batch, T time, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from seqmix.kernels.documents import Placement
from seqmix.mixer import State


class Pass(Protocol):
    """One pass over a piece or a position."""

    def convolve(self, u: Tensor) -> Tensor:
        """y of the next stream, in the shape of u: (batch, time, dim) or (batch, dim)."""

    def finish(self) -> State:
        """The state after it, once all streams were convolved."""


class LongFilter(nn.Module, ABC):
    """The filters of a mixer's long convolutions.

    streams: convolutions, each of `dim` channels. length: taps of each; None for no end.
    """

    growth: Literal["constant", "linear"]

    def __init__(self, dim: int, streams: int, length: int | None) -> None:
        super().__init__()
        self.dim, self.streams, self.length = dim, streams, length

    @abstractmethod
    def taps(self, count: int) -> Tensor:
        """The first `count` taps, (streams, dim, count), lag 0 first; count is at most the length."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draws all parameters anew."""

    def no_decay(self) -> set[str]:
        """The names of parameters that weight decay must leave alone."""
        return set()

    @abstractmethod
    def init_state(
        self, batch: int, capacity: int | None, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> State:
        """The state before the first position; device and dtype of the parameters where None."""

    @abstractmethod
    def begin(self, state: State | None, placement: Placement, capacity: int | None) -> Pass:
        """A pass over a piece."""

    @abstractmethod
    def begin_step(self, state: State, x: Tensor) -> Pass:
        """A pass over one position x (batch, dim); it may write into the state."""

    @abstractmethod
    def state_bytes(self, batch: int, time: int, size: int) -> int:
        """The bytes of the state after `time` positions of numbers of `size` bytes."""

    @abstractmethod
    def flops(self, batch: int, time: int) -> tuple[int, int]:
        """Product and other FLOPs of a pass from an empty state."""

    @abstractmethod
    def step_flops(self, batch: int, position: int) -> tuple[int, int]:
        """Product and other FLOPs, on average, of a step with `position` positions already read."""

    def matrices(self, time: int) -> Tensor:
        """The Toeplitz matrices (streams, dim, time, time)."""
        steps = torch.arange(time, device=next(self.parameters()).device)
        lags = steps[:, None] - steps[None, :]
        taps = self.taps(time if self.length is None else min(time, self.length))
        inside = (lags >= 0) & (lags < taps.shape[2])
        return taps[:, :, lags.clamp(0, taps.shape[2] - 1)] * inside
