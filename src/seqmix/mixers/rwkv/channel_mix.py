"""RWKV's channel mixes: a feed-forward over every input blended with the one before it.

    x_i[t] = x[t] + mu_i * (x[t-1] - x[t])                                       x[t-1] is zero where a document begins
    RWKV-7:  y = W_v relu(W_k x_k)²                                              arXiv 2503.14456, section 4
    RWKV-6:  y = sigmoid(W_r x_r) * (W_v relu(W_k x_k)²)                         arXiv 2404.05892, section 4

As a matrix: a head of width 1 for each channel, a fixed band of two, 1 - mu on the diagonal and mu below it; the values
are x. Everything after the blend works position by position: the readout.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers.rwkv.parts import LayerConfig, orthogonal_, ramp
from seqmix.mixers.rwkv.token_shift import ShiftState, last_input, token_shift


@dataclass(frozen=True, kw_only=True)
class ChannelMixConfig(LayerConfig):
    """hidden: the width between the two projections; None takes 4 dim in RWKV-7, and in RWKV-6 3.5 dim rounded down to
    a multiple of 32 (at least 32)."""

    hidden: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden is not None and self.hidden < 1:
            raise InputError(f"hidden is {self.hidden}: it must be at least 1, or None for RWKV's own width")


class RWKV7ChannelMix(Mixer):
    """y = W_v relu(W_k x_k)²."""

    config_class = ChannelMixConfig
    config: ChannelMixConfig
    mu_power: ClassVar[int] = 4
    """In the first layer mu of channel c starts at 1 - c / D; the exponent falls with the layer to this power."""
    readers: ClassVar[tuple[str, ...]] = ("k",)
    """The projections that read a blend; "r" is a sigmoid gate on the output."""

    def __init__(self, dim: int, config: ChannelMixConfig | None = None) -> None:
        super().__init__(dim, config)
        self.hidden = self.config.hidden or self.default_hidden(dim)
        self.mu = nn.ParameterDict({name: nn.Parameter(torch.empty(dim)) for name in self.readers})
        self.key = nn.Linear(dim, self.hidden, bias=False)
        self.value = nn.Linear(self.hidden, dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False) if "r" in self.readers else None
        self.reset_parameters()

    @staticmethod
    def default_hidden(dim: int) -> int:
        return 4 * dim

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {}), (5, {"hidden": 7, "layer": 1, "layers": 3})]

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for mu in self.mu.values():
                mu.copy_(1 - ramp(self.dim) ** (self.config.falling**self.mu_power))
        orthogonal_(self.key.weight, 1.0)
        nn.init.zeros_(self.value.weight)
        if self.receptance is not None:
            nn.init.zeros_(self.receptance.weight)

    @property
    def traits(self) -> Traits:
        return Traits(causal=True, content_dependent=False, state_growth="constant")

    @property
    def receptive_field(self) -> int:
        return 2

    def _activate(self, blended: Mapping[str, Tensor]) -> Tensor:
        """y (..., D) from what each projection reads."""
        y = self.value(torch.relu(self.key(blended["k"])).square())
        return y if self.receptance is None else torch.sigmoid(self.receptance(blended["r"])) * y

    def _blend(self, x: Tensor, shifted: Tensor) -> Tensor:
        away = shifted - x
        return self._activate({name: torch.addcmul(x, away, mu) for name, mu in self.mu.items()})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        before = self.init_state(len(x), device=x.device, dtype=x.dtype) if state is None else cast(ShiftState, state)
        placement = place(x, state, document_ids)
        y = self._blend(x, token_shift(x, before.last, placement))
        return Mixed(y, ShiftState(placement.position, placement.document, last_input(x, before.last)))

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ShiftState:
        device = self.key.weight.device if device is None else device
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        last = torch.zeros(batch, self.dim, dtype=dtype or self.key.weight.dtype, device=device)
        return ShiftState(count, count.clone(), last)

    def step(self, x: Tensor, state: State) -> Mixed:
        before = cast(ShiftState, state)
        y = self._blend(x, before.last.to(x.dtype))
        return Mixed(y, ShiftState(before.position + 1, before.document, x.clone()))

    def mixing(self, x: Tensor) -> list[Mixing]:
        """One for each projection that reads a blend; a head is a channel."""
        now = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        ago = torch.diag_embed(now.diagonal()[1:], offset=-1)
        values = x.transpose(1, 2)[..., None]
        weights = (mu.to(x.dtype)[:, None, None] for mu in self.mu.values())
        return [Mixing(((1 - weight) * now + weight * ago)[None], values) for weight in weights]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self._activate({name: part[..., 0].transpose(1, 2) for name, part in zip(self.mu, mixed, strict=True)})

    def links(self, time: int) -> Tensor:
        return causal_mask(time, window=2, device=self.key.weight.device)

    def cost(self, batch: int, time: int) -> Cost:
        positions = batch * time
        weights = self.num_parameters - len(self.mu) * self.dim
        size = self.key.weight.element_size()
        state_bytes = batch * (self.dim * size + BOOKKEEPING_BYTES)
        return Cost(
            product_flops=linear_flops(positions, 1, weights),
            other_flops=positions * (8 * len(self.mu) * self.dim + 2 * self.hidden),
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )


class RWKV6ChannelMix(RWKV7ChannelMix):
    """y = sigmoid(W_r x_r) * (W_v relu(W_k x_k)²)."""

    mu_power = 3
    readers = ("k", "r")

    @staticmethod
    def default_hidden(dim: int) -> int:
        return max(32, 7 * dim // 2 // 32 * 32)
