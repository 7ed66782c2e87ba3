"""The causal mean: every earlier position counts the same, and nothing about the mixing is learned.

    y[t] = W_o mean(v[0 ... t]),  v = W_v x;   M[t, s] = 1 / (t + 1) for s <= t

The one limit of all mixers, beside `dense`. The sums are kept in float64: after a million positions a float32 sum
would have lost digits that depend on how the sequence was cut, and a running sum is small.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place

SUM_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """bias: on both projections."""

    bias: bool = False


@dataclass
class PoolState(State):
    """total: (batch, dim) float64, the sum of the values of the document so far."""

    total: Tensor


def running_sums(values_BTD: Tensor, runs_BT: Tensor | None) -> Tensor:
    """The sum of the values up to each position, within its run: (batch, time, dim).

    With runs the sums double in length, so that no sum over a border is ever formed and subtracted again.
    """
    if runs_BT is None:
        return values_BTD.cumsum(dim=1)
    sums_BTD = values_BTD
    shift = 1
    while shift < values_BTD.shape[1]:
        is_same = (runs_BT[:, shift:] == runs_BT[:, :-shift])[..., None]
        earlier = torch.where(is_same, sums_BTD[:, :-shift], 0)
        sums_BTD = torch.cat([sums_BTD[:, :shift], sums_BTD[:, shift:] + earlier], dim=1)
        shift *= 2
    return sums_BTD


class Pool(Mixer):
    """y[t] = W_o (v[0] + ... + v[t]) / (t + 1) with v = W_v x."""

    config_class = PoolConfig

    def __init__(self, dim: int, config: PoolConfig | None = None) -> None:
        super().__init__(dim, config)
        self.v_proj = nn.Linear(dim, dim, bias=self.config.bias)
        self.out_proj = nn.Linear(dim, dim, bias=self.config.bias)

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(12, {}), (7, {"bias": True})]

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
        values = self.v_proj(x)
        sums = running_sums(values.double(), placement.runs if placement.packed else None)
        if state is not None:
            before = _pool_state(state).total[:, None].double()
            sums = sums + torch.where((placement.runs == 0)[..., None], before, 0)
        means = (sums / (placement.positions + 1)[..., None]).to(values.dtype)
        return Mixed(self.out_proj(means), PoolState(placement.position, placement.document, sums[:, -1].clone()))

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> PoolState:
        """The state before the first token; its sums are float64 whatever `dtype` is."""
        device = self.v_proj.weight.device if device is None else device
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        return PoolState(count, count.clone(), torch.zeros(batch, self.dim, dtype=torch.float64, device=device))

    def step(self, x: Tensor, state: State) -> Mixed:
        values = self.v_proj(x)
        total = _pool_state(state).total.double() + values
        position = state.position + 1
        mean = (total / position[:, None]).to(values.dtype)
        return Mixed(self.out_proj(mean), PoolState(position, state.document, total))

    def mixing(self, x: Tensor) -> list[Mixing]:
        lengths = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
        matrix = self.links(x.shape[1]).to(x) / lengths[:, None]
        return [Mixing(matrix[None, None], self.v_proj(x)[:, None])]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self.out_proj(mixed[0][:, 0])

    def links(self, time: int) -> Tensor:
        return causal_mask(time, device=self.v_proj.weight.device)

    def cost(self, batch: int, time: int) -> Cost:
        positions = batch * time
        size = self.v_proj.weight.element_size()
        state_bytes = batch * (self.dim * SUM_BYTES + BOOKKEEPING_BYTES)
        return Cost(
            product_flops=linear_flops(positions, self.dim, 2 * self.dim),
            other_flops=positions * self.dim * (4 if self.config.bias else 2),
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )


def _pool_state(state: State) -> PoolState:
    """The state as the one that the causal mean makes."""
    if isinstance(state, PoolState):
        return state
    raise InputError(f"the state is a {type(state).__name__}, which pool did not make: begin with init_state")
