"""A mixer whose first layer hands its values on, and one that hands on something else in its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqmix.cost import Cost, linear_flops
from seqmix.mixer import Mixed, Mixing, SharingMixer, State, Traits
from seqmix.mixers.convolution import DepthwiseConv, DepthwiseConvConfig


@dataclass(frozen=True, kw_only=True)
class SharingConfig:
    """later: whether this is a layer above the first one."""

    later: bool = False


class Sharing(SharingMixer):
    """y = conv(v): v = W x in the first layer, W x + scale * (the first layer's v) above it."""

    config_class = SharingConfig

    def __init__(self, dim: int, config: SharingConfig | None = None) -> None:
        super().__init__(dim, config)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.conv = DepthwiseConv(dim, DepthwiseConvConfig(kernel=3))
        self.scale = nn.Parameter(torch.ones(dim)) if self.config.later else None

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(4, {}), (6, {"later": True})]

    @property
    def needs_shared(self) -> bool:
        return bool(self.config.later)

    @property
    def traits(self) -> Traits:
        return self.conv.traits

    @property
    def receptive_field(self) -> int:
        return self.conv.receptive_field

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.conv.reset_parameters()
        if self.scale is not None:
            nn.init.ones_(self.scale)

    def _values(self, x: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor]:
        own = self.proj(x)
        if self.scale is None:
            return own, own
        assert shared is not None
        return own + self.scale * shared, shared

    def forward_sharing(
        self,
        x: Tensor,
        state: State | None,
        shared: Tensor | None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> tuple[Mixed, Tensor]:
        values, handed_on = self._values(x, shared)
        return self.conv(values, state, document_ids=document_ids), handed_on

    def step_sharing(self, x: Tensor, state: State, shared: Tensor | None) -> tuple[Mixed, Tensor]:
        values, handed_on = self._values(x, shared)
        return self.conv.step(values, state), handed_on

    def init_state(self, batch: int, capacity: int | None = None, **where: Any) -> State:
        return self.conv.init_state(batch, capacity, **where)

    def mixing(self, x: Tensor, shared: Tensor | None = None) -> list[Mixing]:
        return self.conv.mixing(self._values(x, shared)[0])

    def readout(self, mixed: list[Tensor], x: Tensor, shared: Tensor | None = None) -> Tensor:
        return self.conv.readout(mixed, x)

    def links(self, time: int) -> Tensor:
        return self.conv.links(time)

    def cost(self, batch: int, time: int) -> Cost:
        size = self.num_parameters - self.conv.num_parameters
        own = Cost(product_flops=linear_flops(batch * time, self.dim, self.dim), parameters=size)
        return self.conv.cost(batch, time) + own


class StepHandsOnMore(Sharing):
    """Twice as much in a step."""

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {field.name: field.default for field in dataclasses.fields(cls.config_class)})]

    def step_sharing(self, x: Tensor, state: State, shared: Tensor | None) -> tuple[Mixed, Tensor]:
        mixed, handed_on = super().step_sharing(x, state, shared)
        return mixed, 2 * handed_on
