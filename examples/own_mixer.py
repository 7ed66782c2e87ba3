"""A mixer of your own: an exponential moving average with a decay for each channel.

    y[t] = a * y[t - 1] + (1 - a) * x[t];   M[t, s] = (1 - a) * a^(t - s) for s <= t, a head of width 1 a channel

Check it: seqmix check examples/own_mixer.py:MovingAverage
Compare it: seqmix compare --import examples/own_mixer.py --models transformer,mixer:moving_average \
    --data python-stdlib --params 300k --budget tokens=200k --out runs/own
docs/your_own_mixer.md goes through it line by line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqmix.cost import Cost
from seqmix.errors import InputError
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers import register_mixer


@dataclass(frozen=True, kw_only=True)
class MovingAverageConfig:
    """decay: what every channel starts with, between 0 and 1."""

    decay: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise InputError(f"decay is {self.decay}: it must lie between 0 and 1")


@dataclass
class MovingAverageState(State):
    """average: (batch, dim), the last output of the document so far."""

    average: Tensor


@register_mixer("moving_average")
class MovingAverage(Mixer):
    """y[t] = a * y[t - 1] + (1 - a) * x[t], a = sigmoid of a parameter for each channel."""

    config_class = MovingAverageConfig

    def __init__(self, dim: int, config: MovingAverageConfig | None = None) -> None:
        super().__init__(dim, config)
        self.logit = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.logit, math.log(self.config.decay / (1 - self.config.decay)))

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(12, {}), (5, {"decay": 0.5})]

    @property
    def traits(self) -> Traits:
        return Traits(causal=True, content_dependent=False, state_growth="constant")

    @property
    def receptive_field(self) -> None:
        return None

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        placement = place(x, state, document_ids)
        before = self.init_state(len(x), device=x.device, dtype=x.dtype) if state is None else state
        assert isinstance(before, MovingAverageState)
        average = before.average
        is_first = (placement.positions == 0)[..., None]
        outputs = []
        for time in range(x.shape[1]):
            average = self._next(x[:, time], torch.where(is_first[:, time], 0, average))
            outputs.append(average)
        return Mixed(torch.stack(outputs, dim=1), MovingAverageState(placement.position, placement.document, average))

    def step(self, x: Tensor, state: State) -> Mixed:
        assert isinstance(state, MovingAverageState)
        average = self._next(x, state.average)
        return Mixed(average, MovingAverageState(state.position + 1, state.document, average))

    def _next(self, x: Tensor, average: Tensor) -> Tensor:
        decay = torch.sigmoid(self.logit)
        return decay * average + (1 - decay) * x

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> MovingAverageState:
        device, dtype = device or self.logit.device, dtype or self.logit.dtype
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        return MovingAverageState(count, count.clone(), torch.zeros(batch, self.dim, device=device, dtype=dtype))

    def mixing(self, x: Tensor) -> list[Mixing]:
        steps = torch.arange(x.shape[1], device=x.device)
        distance = (steps[:, None] - steps[None, :]).clamp(min=0)
        decay = torch.sigmoid(self.logit)[:, None, None]
        matrix = (1 - decay) * decay**distance * self.links(x.shape[1])
        return [Mixing(matrix[None], x.transpose(1, 2)[..., None])]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return mixed[0][..., 0].transpose(1, 2)

    def links(self, time: int) -> Tensor:
        return causal_mask(time, device=self.logit.device)

    def cost(self, batch: int, time: int) -> Cost:
        size = self.logit.element_size()
        state_bytes = batch * (self.dim * size + BOOKKEEPING_BYTES)
        return Cost(
            other_flops=3 * batch * time * self.dim,
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * batch * time * self.dim) + state_bytes,
        )
