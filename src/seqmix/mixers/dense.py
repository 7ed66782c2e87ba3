"""The fully connected layer over positions: every weight of the lower triangle is learned on its own.

    y[t] = W_o concat_h sum over s <= t of W[h, t, s] v_h[s],  v = W_v x;   M = W, the same for every input

What every other mixer simplifies: a convolution ties W along the diagonals, the causal mean (`pool`) fixes it,
attention computes it. t and s count from the beginning of the document; `max_length` is the longest document.

Shapes: B batch, T time, S source, D model width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqmix.cost import Cost, causal_links, linear_flops
from seqmix.errors import InputError
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers.attention.slots import SlotState, append, empty_slots, filled, gather, remember, visible

INITIAL_NOISE = 0.1
"""The spread of the first weights around the causal mean, as a share of it."""


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """heads: triangles, for equal shares of the channels. max_length: the positions of the longest document.

    bias: on both projections.
    """

    heads: int = 1
    max_length: int = 512
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")


class Dense(Mixer):
    """y = W_o (W v) with a learned lower triangle W for each head, near the causal mean at first.

    weight: (heads, max_length * (max_length + 1) / 2), the rows of each triangle one after another, so that W[h, t, s]
    is weight[h, t * (t + 1) / 2 + s] and a shorter triangle is the beginning of a longer one.

    Raises:
        InputError: heads that do not divide dim; a document longer than max_length.
    """

    config_class = DenseConfig

    def __init__(self, dim: int, config: DenseConfig | None = None) -> None:
        super().__init__(dim, config)
        heads = self.config.heads
        if dim % heads:
            raise InputError(f"heads is {heads}, which does not divide dim {dim}: choose a divisor")
        self.weight = nn.Parameter(torch.empty(heads, causal_links(self.config.max_length)))
        self.v_proj = nn.Linear(dim, dim, bias=self.config.bias)
        self.out_proj = nn.Linear(dim, dim, bias=self.config.bias)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(12, {"max_length": 128}), (10, {"heads": 2, "max_length": 100, "bias": True})]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        lengths = torch.arange(1, self.config.max_length + 1, device=self.weight.device)
        # The size is given since a tensor without memory, as sizes are found with, cannot tell it.
        rows = lengths.repeat_interleave(lengths, output_size=self.weight.shape[1])
        self.weight.normal_(1, INITIAL_NOISE).div_(rows)

    @property
    def traits(self) -> Traits:
        return Traits(causal=True, content_dependent=False, state_growth="linear")

    @property
    def receptive_field(self) -> None:
        return None

    def _values(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, H, T, K)."""
        return self.v_proj(x).unflatten(-1, (self.config.heads, -1)).transpose(1, 2)

    def _output(self, mixed_BHTK: Tensor) -> Tensor:
        return self.out_proj(mixed_BHTK.transpose(1, 2).flatten(2))

    def _triangle(self, time: int) -> Tensor:
        """W for the first positions: (H, T, T)."""
        rows, columns = torch.tril_indices(time, time, device=self.weight.device)
        matrix = self.weight.new_zeros(self.config.heads, time, time)
        matrix[:, rows, columns] = self.weight[:, : causal_links(time)]
        return matrix

    def _matrix(self, targets: Tensor, sources: Tensor, mask: Tensor) -> Tensor:
        """W at offsets (B or 1, T) and (B or 1, S), zero outside the mask (B or 1, T, S): (B or 1, H, T, S)."""
        index = (targets * (targets + 1) // 2)[:, :, None] + sources[:, None, :]
        picked = self.weight[:, index.masked_fill(~mask, 0)].transpose(0, 1)
        return picked * mask[:, None]

    def _check_length(self, positions: int) -> None:
        longest = self.config.max_length
        if positions > longest and not torch.compiler.is_compiling():
            raise InputError(
                f"a document has {positions} positions and max_length is {longest}: make the mixer with a larger "
                "max_length, or cut the text into shorter documents"
            )

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        slots = _slot_state(state)
        placement = place(x, state, document_ids)
        bound = x.shape[1] + (0 if slots is None else slots.longest)
        if bound > self.config.max_length and not torch.compiler.is_compiling():
            self._check_length(int(placement.positions.max()) + 1)
        cached = gather(slots, (self._values(x),), placement)
        (values,) = cached.stored
        if not placement.packed and values.shape[2] == x.shape[1]:
            matrix = self._triangle(x.shape[1])[None]
        else:
            rows = cached.positions.shape[0]
            matrix = self._matrix(placement.positions[:rows], cached.positions, visible(cached, placement))
        capacity = None if capacity is None else min(capacity, self.config.max_length)
        return Mixed(self._output(matrix @ values), remember(slots, cached, placement, capacity=capacity))

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> SlotState:
        heads = self.config.heads
        return empty_slots(
            batch,
            min(capacity or 0, self.config.max_length),
            ((heads, self.dim // heads),),
            grows=capacity is None,
            device=self.weight.device if device is None else device,
            dtype=dtype or self.weight.dtype,
        )

    def step(self, x: Tensor, state: State) -> Mixed:
        before = _slot_state(state)
        assert before is not None
        if before.longest >= self.config.max_length and not torch.compiler.is_compiling():
            self._check_length(int(before.position.max()) + 1)
        is_alike = before.is_even
        targets = before.position[: 1 if is_alike else None, None]
        after = append(before, (self._values(x[:, None]),))
        (values,), mask = filled(after)
        sources = torch.arange(values.shape[2], device=x.device)[None]
        matrix = self._matrix(targets, sources, sources[:, None, :] <= targets[:, :, None] if mask is None else mask)
        mixed = matrix @ values.to(matrix.dtype)
        return Mixed(self._output(mixed)[:, 0], after)

    def mixing(self, x: Tensor) -> list[Mixing]:
        self._check_length(x.shape[1])
        return [Mixing(self._triangle(x.shape[1])[None], self._values(x))]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self._output(mixed[0])

    def links(self, time: int) -> Tensor:
        return causal_mask(time, device=self.weight.device)

    def _cost(self, batch: int, time: int, products: int, links: int, length: int) -> Cost:
        """The cost of `time` positions a row that take `products` of weights and values, `links` of them not zero."""
        positions = batch * time
        size = self.weight.element_size()
        state_bytes = batch * (length * self.dim * size + BOOKKEEPING_BYTES)
        projections = self.num_parameters - self.weight.numel()
        return Cost(
            product_flops=linear_flops(positions, self.dim, 2 * self.dim) + 2 * batch * products * self.dim,
            other_flops=2 * positions * self.dim if self.config.bias else 0,
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (projections + links * self.config.heads + 2 * positions * self.dim) + state_bytes,
        )

    def cost(self, batch: int, time: int) -> Cost:
        """The triangle is multiplied as a square, zeros and all; the state has room for `time` positions."""
        return self._cost(batch, time, time * time, causal_links(time), time)

    def step_cost(self, batch: int, position: int) -> Cost:
        return self._cost(batch, 1, position + 1, position + 1, position + 1)


def _slot_state(state: State | None) -> SlotState | None:
    """The state as the one that this mixer makes."""
    if state is None or isinstance(state, SlotState):
        return state
    raise InputError(f"the state is a {type(state).__name__}, which dense did not make: begin with init_state")
