"""Softmax attention: a dense lower triangle whose rows are computed from the input and sum to 1.

    q, k, v = W_q x, W_k x, W_v x;   M = softmax(q k^T / sqrt(head_dim)) over s <= t;   y = W_o (M v)

arXiv 1706.03762; rotary positions on q and k (`rotary.py`), grouped-query heads arXiv 2305.13245, a window as in
arXiv 2004.05150. With `memory`, keys and values come from a second sequence, which is seen as a whole.

Shapes: B batch, T time, S source, D model width, H heads, G groups of heads that share keys and values, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from seqmix.cost import Cost, causal_links, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.documents import Placement
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers.attention_product import attend, attend_locally, attention_matrix, repeat_groups
from seqmix.mixers.rotary import apply_rotation, rotation
from seqmix.mixers.slots import SlotState, append, empty_slots, filled, gather, remember, visible, widen

USUAL_HEAD_DIM = 64
SOFTMAX_FLOPS = 5
"""Scale, maximum, difference, exponential and division, for each link of each head."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The options of softmax attention.

    heads: None for head widths near 64. kv_heads: groups of heads that share keys and values; None for heads.
    head_dim: None for dim // heads.
    rope: turn q and k by their position in the document, half-split pairs, base rope_theta.
    window: the positions seen, the present one included; None for all. Not causal: as many after it too.
    bias: on all four projections.
    """

    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    rope: bool = True
    rope_theta: float = 10000.0
    window: int | None = None
    causal: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_dim", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1")
        if self.rope_theta <= 0:
            raise InputError(f"rope_theta is {self.rope_theta}: it must be greater than 0")


@dataclass
class MemoryState(State):
    """keys, values: (batch, groups, source, head width) of the memory; mask: bool (batch, source), what is seen."""

    keys: Tensor
    values: Tensor
    mask: Tensor

    def cat(self, *others: Self) -> Self:
        states = (self, *others)
        source = max(state.mask.shape[1] for state in states)
        return type(self)(
            torch.cat([state.position for state in states]),
            torch.cat([state.document for state in states]),
            torch.cat([widen(state.keys, source) for state in states]),
            torch.cat([widen(state.values, source) for state in states]),
            torch.cat([nn.functional.pad(state.mask, (0, source - state.mask.shape[1])) for state in states]),
        )


def usual_heads(dim: int) -> int:
    """The number of heads that divides dim with widths near 64, even ones where dim is even."""
    divisors = [heads for heads in range(1, dim + 1) if dim % heads == 0]
    return min(divisors, key=lambda heads: (dim // heads % 2, abs(dim // heads - USUAL_HEAD_DIM)))


class Attention(Mixer):
    """y = W_o softmax(q k^T / sqrt(K)) v; `q_proj`, `k_proj`, `v_proj`, `o_proj` map one to one onto Llama's weights.

    Raises:
        InputError: heads that do not divide dim (without head_dim), kv_heads that do not divide heads.
    """

    config_class = AttentionConfig

    def __init__(self, dim: int, config: AttentionConfig | None = None) -> None:
        super().__init__(dim, config)
        config = self.config
        self.heads = usual_heads(dim) if config.heads is None else config.heads
        self.groups = self.heads if config.kv_heads is None else config.kv_heads
        if config.head_dim is None and dim % self.heads:
            raise InputError(
                f"heads is {self.heads}, which does not divide dim {dim}: choose a divisor, or give head_dim"
            )
        if self.heads % self.groups:
            raise InputError(f"kv_heads is {self.groups}, which does not divide heads {self.heads}: choose a divisor")
        self.head_dim = dim // self.heads if config.head_dim is None else config.head_dim
        self.q_proj = nn.Linear(dim, self.heads * self.head_dim, bias=config.bias)
        self.k_proj = nn.Linear(dim, self.groups * self.head_dim, bias=config.bias)
        self.v_proj = nn.Linear(dim, self.groups * self.head_dim, bias=config.bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, dim, bias=config.bias)

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (12, {}),
            (12, {"heads": 4, "kv_heads": 2, "bias": True, "rope_theta": 500.0}),
            (10, {"heads": 2, "kv_heads": 1, "window": 5}),
            (12, {"heads": 3, "head_dim": 5, "rope": False}),
            (10, {"heads": 2, "causal": False}),
            (6, {"heads": 3, "causal": False, "window": 4}),
        ]

    @property
    def traits(self) -> Traits:
        causal = self.config.causal
        growth: Literal["constant", "linear"] = "linear" if self.config.window is None else "constant"
        return Traits(causal=causal, content_dependent=True, state_growth=growth if causal else None, cross=True)

    @property
    def receptive_field(self) -> int | None:
        window = self.config.window
        return window if window is None or self.config.causal else 2 * window - 1

    def _heads(self, projected: Tensor) -> Tensor:
        """(B, T, heads * K) to (B, heads, T, K)."""
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, T, D), q and k turned by their positions (B or 1, T)."""
        q_BHTK, k_BGTK, v_BGTK = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.config.rope:
            angles = rotation(positions[:, None], self.head_dim, self.config.rope_theta, q_BHTK.dtype)
            q_BHTK, k_BGTK = apply_rotation(q_BHTK, *angles), apply_rotation(k_BGTK, *angles)
        return q_BHTK, k_BGTK, v_BGTK

    def _output(self, mixed_BHTK: Tensor) -> Tensor:
        return self.o_proj(mixed_BHTK.transpose(1, 2).flatten(2))

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Mixed:
        """Mixes a sequence x (batch, time, dim), continuing `state` where one is given.

        Args:
            document_ids: (batch, time) integers; nothing crosses a place where the id changes.
            capacity: the number of positions the state is made for; None grows as it must.
            memory: (batch, source, dim), where keys and values come from instead; every target sees all of it,
                without rotary positions. The state returned holds it, so that later pieces do not need it.
            memory_mask: bool (batch, source), False for what must not be seen of the memory.

        Raises:
            InputError: a state together with memory or for a non-causal attention, or a full capacity.
        """
        if state is not None and memory is not None:
            raise InputError("both a state and memory were given: the state holds the memory, so leave memory out")
        if state is not None and not self.config.causal:
            raise InputError("a non-causal attention takes no state: give the whole sequence at once")
        placement = place(x, state, document_ids)
        if memory is not None:
            state = self.memory_state(memory, memory_mask)
        if isinstance(state, MemoryState):
            after = MemoryState(placement.position, placement.document, state.keys, state.values, state.mask)
            return Mixed(self._mix_memory(x, state), after if self.config.causal else None)
        slots = _slot_state(state)
        is_alike = not placement.packed and (slots is None or slots.is_even)
        q_BHTK, k_BGTK, v_BGTK = self._project(x, placement.positions[: 1 if is_alike else None])
        if not self.config.causal:
            mask = self._mask_around(placement)
            return Mixed(self._output(attend(q_BHTK, k_BGTK, v_BGTK, mask)), None)
        window = self.config.window
        cached = gather(slots, (k_BGTK, v_BGTK), placement)
        keys, values = cached.stored
        has_no_past = keys.shape[2] == x.shape[1]
        if has_no_past and window is not None and window < x.shape[1]:
            mixed = attend_locally(q_BHTK, keys, values, window, placement.runs if placement.packed else None)
        elif has_no_past and not placement.packed:
            mixed = attend(q_BHTK, keys, values, is_causal=True)
        else:
            mixed = attend(q_BHTK, keys, values, visible(cached, placement, window))
        return Mixed(self._output(mixed), remember(slots, cached, placement, capacity=capacity, window=window))

    def _mask_around(self, placement: Placement) -> Tensor | None:
        """bool (batch or 1, T, T) for the non-causal form: one document, less than a window away on either side."""
        window, runs = self.config.window, placement.runs
        mask = runs[:, :, None] == runs[:, None, :] if placement.packed else None
        if window is None:
            return mask
        near = self.links(runs.shape[1])[None]
        return near if mask is None else mask & near

    def memory_state(self, memory: Tensor, memory_mask: Tensor | None = None) -> MemoryState:
        """The state that attends to memory (batch, source, dim), with its mask (batch, source), before any token."""
        batch, source, _ = memory.shape
        if memory_mask is None:
            memory_mask = torch.ones(batch, source, dtype=torch.bool, device=memory.device)
        if memory_mask.shape != (batch, source):
            raise InputError(
                f"memory_mask has shape {tuple(memory_mask.shape)}: it must be (batch, source) = {(batch, source)}"
            )
        count = torch.zeros(batch, dtype=torch.int64, device=memory.device)
        keys, values = self._heads(self.k_proj(memory)), self._heads(self.v_proj(memory))
        return MemoryState(count, count.clone(), keys, values, memory_mask.to(torch.bool))

    def _mix_memory(self, x: Tensor, state: MemoryState) -> Tensor:
        q_BHTK = self._heads(self.q_proj(x))
        keys, values = state.keys.to(q_BHTK.dtype), state.values.to(q_BHTK.dtype)
        return self._output(attend(q_BHTK, keys, values, state.mask[:, None].expand(-1, x.shape[1], -1)))

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
        weight = self.k_proj.weight
        window = self.config.window
        return empty_slots(
            batch,
            (capacity or 0) if window is None else window,
            ((self.groups, self.head_dim), (self.groups, self.head_dim)),
            grows=window is None and capacity is None,
            device=weight.device if device is None else device,
            dtype=dtype or weight.dtype,
        )

    def step(self, x: Tensor, state: State) -> Mixed:
        if not self.config.causal:
            return super().step(x, state)
        if isinstance(state, MemoryState):
            y = self._mix_memory(x[:, None], state)[:, 0]
            return Mixed(y, MemoryState(state.position + 1, state.document, state.keys, state.values, state.mask))
        before = _slot_state(state)
        assert before is not None
        q_BH1K, k_BG1K, v_BG1K = self._project(x[:, None], before.position[: 1 if before.is_even else None, None])
        after = append(before, (k_BG1K, v_BG1K), window=self.config.window)
        (keys, values), mask = filled(after)
        mixed = attend(q_BH1K, keys.to(q_BH1K.dtype), values.to(q_BH1K.dtype), mask)
        return Mixed(self._output(mixed)[:, 0], after)

    def mixing(self, x: Tensor, memory: Tensor | None = None, memory_mask: Tensor | None = None) -> list[Mixing]:
        """The softmax matrix (batch, heads, time, source) and each head's values; over memory where it is given."""
        if memory is not None:
            state = self.memory_state(memory, memory_mask)
            matrix = attention_matrix(self._heads(self.q_proj(x)), state.keys, state.mask[:, None])
            return [Mixing(matrix, repeat_groups(state.values, self.heads))]
        q_BHTK, k_BGTK, v_BGTK = self._project(x, torch.arange(x.shape[1], device=x.device)[None])
        matrix = attention_matrix(q_BHTK, k_BGTK, self.links(x.shape[1])[None])
        return [Mixing(matrix, repeat_groups(v_BGTK, self.heads))]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self._output(mixed[0])

    def links(self, time: int) -> Tensor:
        device, window = self.q_proj.weight.device, self.config.window
        if self.config.causal:
            return causal_mask(time, window, device)
        mask = causal_mask(time, window, device) if window is not None else torch.ones(time, time, dtype=torch.bool)
        return (mask | mask.T).to(device)

    def _num_links(self, time: int) -> int:
        """Pairs of target and source of one head over a sequence."""
        window = self.config.window
        if self.config.causal:
            return causal_links(time, window)
        return time * time if window is None else 2 * causal_links(time, window) - time

    def _cost(self, batch: int, time: int, links: int, stored: int, touched: int) -> Cost:
        """The cost of `time` positions a row with `links`; the state has `stored` slots, `touched` of them in use."""
        positions = batch * time
        size = self.q_proj.weight.element_size()
        of_heads, of_groups = self.heads * self.head_dim, self.groups * self.head_dim
        rotary = 3 * (of_heads + of_groups) + 2 * (self.head_dim // 2) if self.config.rope else 0
        biases = of_heads + 2 * of_groups + self.dim if self.config.bias else 0
        bookkeeping = BOOKKEEPING_BYTES if self.config.causal else 0
        return Cost(
            product_flops=linear_flops(positions, self.dim, 2 * (of_heads + of_groups)) + 4 * batch * links * of_heads,
            other_flops=positions * (rotary + biases) + SOFTMAX_FLOPS * batch * links * self.heads,
            parameters=self.num_parameters,
            state_bytes=batch * (2 * stored * of_groups * size + bookkeeping),
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim)
            + batch * (2 * touched * of_groups * size + bookkeeping),
        )

    def cost(self, batch: int, time: int) -> Cost:
        window = self.config.window
        stored = 0 if not self.config.causal else time if window is None else window
        return self._cost(batch, time, self._num_links(time), stored, min(stored, time))

    def step_cost(self, batch: int, position: int) -> Cost:
        window = self.config.window
        seen = position + 1 if window is None else min(position + 1, window)
        return self._cost(batch, 1, seen, position + 1 if window is None else window, seen)


def _slot_state(state: State | None) -> SlotState | None:
    """The state as the one that self-attention makes."""
    if state is None or isinstance(state, SlotState):
        return state
    raise InputError(f"the state is a {type(state).__name__}, which attention did not make: begin with init_state")
