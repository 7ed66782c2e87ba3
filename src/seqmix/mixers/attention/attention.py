"""Softmax attention: a matrix whose rows are computed from the input and sum to 1, over all links or a few.

    q, k, v = W_q x, W_k x, W_v x;   M = softmax(q k^T / sqrt(head_dim)) over the links;   y = W_o (M v)

arXiv 1706.03762; rotary positions on q and k (`rotary.py`), grouped-query heads arXiv 2305.13245; patterns of links
(`mixers/links`); ALiBi arXiv 2108.12409, a bias of -slope * distance on the scores; an RMSNorm of each head's q and k,
before they turn, arXiv 2302.05442. With `memory`, keys and values come from a second sequence, seen as a whole.

Shapes: B batch, T time, S source, D model width, H heads, G groups of heads that share keys and values, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqmix.cost import Cost, causal_links
from seqmix.errors import InputError
from seqmix.mixer import Mixed, Mixer, Mixing, State, Traits, place
from seqmix.mixers.attention.config import AttentionConfig
from seqmix.mixers.attention.cost import AttentionSizes, attention_cost
from seqmix.mixers.attention.memory import MemoryState, memory_state
from seqmix.mixers.attention.product import attend, attention_matrix, repeat_groups
from seqmix.mixers.attention.slots import SlotState, append, empty_slots, filled, gather, held_by, remember
from seqmix.mixers.attention.sparse import alibi, alibi_slopes, attend_by_links, attend_to_cached, links_and_bias
from seqmix.mixers.links.counts import count_links, links_of
from seqmix.mixers.norms import RMSNorm
from seqmix.mixers.rotary import apply_rotation, rotation
from seqmix.mixers.sizes import usual_heads


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
        self.q_norm, self.k_norm = (
            RMSNorm(self.head_dim, config.qk_norm_eps) if config.qk_norm else nn.Identity() for _ in range(2)
        )
        self.pattern, self.ring, self.kept = config.link_pattern, config.ring, config.kept

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (12, {}),
            (12, {"heads": 4, "kv_heads": 2, "bias": True, "rope_theta": 500.0, "qk_norm": True, "qk_norm_eps": 1e-5}),
            (10, {"heads": 2, "kv_heads": 1, "window": 5}),
            (12, {"heads": 3, "head_dim": 5, "rope": False, "alibi": True, "pattern": "window(3) | global_(2)"}),
            (10, {"heads": 2, "pattern": "window(2, dilation=3) | random(2, seed=1)"}),
            (6, {"heads": 3, "causal": False, "window": 4}),
            (8, {"heads": 2, "causal": False, "pattern": "bigbird(block=3, random_blocks=1)", "rope": False}),
        ]

    def check_context(self, context: int) -> None:
        if self.pattern is not None:
            self.pattern.check_context(context)

    @property
    def traits(self) -> Traits:
        causal = self.config.causal
        growth: Literal["constant", "linear"] = "linear" if self.ring is None else "constant"
        return Traits(causal=causal, content_dependent=True, state_growth=growth if causal else None, cross=True)

    @property
    def sees_all_held(self) -> bool:
        """Whether the next position sees all that the state holds: a window without gaps, or all positions."""
        only = None if self.pattern is None else self.pattern.single_window
        return self.pattern is None or (only is not None and only.dilation == 1)

    @property
    def receptive_field(self) -> int | None:
        return None if self.pattern is None else self.pattern.receptive_field(causal=self.config.causal)

    @property
    def sees_everything(self) -> bool:
        return self.pattern is None

    @property
    def lags(self) -> Sequence[int] | None:
        return None if self.pattern is None else self.pattern.lags(causal=self.config.causal)

    @property
    def period(self) -> int:
        return 1 if self.pattern is None else self.pattern.period

    def lags_at(self, position: int) -> Sequence[int] | None:
        return None if self.pattern is None else self.pattern.lags(causal=self.config.causal, position=position)

    @property
    def positions_seen(self) -> int | None:
        return None if self.pattern is None else self.pattern.positions_seen(causal=self.config.causal)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for norm in (self.q_norm, self.k_norm):
            if isinstance(norm, nn.RMSNorm):
                norm.reset_parameters()

    def _heads(self, projected: Tensor) -> Tensor:
        """(B, T, heads * K) to (B, heads, T, K)."""
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, T, D), q and k turned by their positions (B or 1, T)."""
        q_BHTK, (k_BGTK, v_BGTK) = self._queries(x), self._keys_and_values(x)
        if self.config.rope:
            angles = rotation(positions[:, None], self.head_dim, self.config.rope_theta, q_BHTK.dtype)
            q_BHTK, k_BGTK = apply_rotation(q_BHTK, *angles), apply_rotation(k_BGTK, *angles)
        return q_BHTK, k_BGTK, v_BGTK

    def _queries(self, x: Tensor) -> Tensor:
        return self.q_norm(self._heads(self.q_proj(x)))

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.k_norm(self._heads(self.k_proj(x))), self._heads(self.v_proj(x))

    def _slopes(self, device: torch.device) -> Tensor | None:
        return alibi_slopes(self.heads, device) if self.config.alibi else None

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
            moved = state.at(placement.position, placement.document)
            return Mixed(self._mix_memory(x, state), moved if self.config.causal else None)
        slots = _slot_state(state)
        is_alike = not placement.packed and (slots is None or slots.is_even)
        positions = placement.positions[: 1 if is_alike else None]
        q_BHTK, k_BGTK, v_BGTK = self._project(x, positions)
        cached = gather(slots, (k_BGTK, v_BGTK), placement, kept=self.kept)
        keys, values = cached.stored
        if keys.shape[2] == x.shape[1]:
            mixed = attend_by_links(
                q_BHTK,
                keys,
                values,
                self.pattern,
                causal=self.config.causal,
                positions=positions,
                runs=placement.runs if placement.packed else None,
                slopes_H=self._slopes(x.device),
            )
        else:
            mixed = attend_to_cached(q_BHTK, cached, placement, self.pattern, self._slopes(x.device))
        if not self.config.causal:
            return Mixed(self._output(mixed), None)
        after = remember(slots, cached, placement, capacity=capacity, window=self.ring, kept=self.kept)
        return Mixed(self._output(mixed), after)

    def memory_state(self, memory: Tensor, memory_mask: Tensor | None = None) -> MemoryState:
        """The state that attends to memory (batch, source, dim), with its mask (batch, source), before any token."""
        return memory_state(*self._keys_and_values(memory), memory_mask)

    def _mix_memory(self, x: Tensor, state: MemoryState) -> Tensor:
        q_BHTK = self._queries(x)
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
        return empty_slots(
            batch,
            (capacity or 0) if self.ring is None else self.kept + self.ring,
            ((self.groups, self.head_dim), (self.groups, self.head_dim)),
            grows=self.ring is None and capacity is None,
            device=weight.device if device is None else device,
            dtype=dtype or weight.dtype,
        )

    def step(self, x: Tensor, state: State) -> Mixed:
        if not self.config.causal:
            return super().step(x, state)
        if isinstance(state, MemoryState):
            y = self._mix_memory(x[:, None], state)[:, 0]
            return Mixed(y, state.at(state.position + 1, state.document))
        before = _slot_state(state)
        assert before is not None
        q_BH1K, k_BG1K, v_BG1K = self._project(x[:, None], before.position[: 1 if before.is_even else None, None])
        after = append(before, (k_BG1K, v_BG1K), window=self.ring, kept=self.kept)
        (keys, values), mask = filled(after, kept=self.kept)
        bias = None
        if self.config.alibi or not self.sees_all_held:
            rows = slice(0, 1) if mask is None else slice(None)
            last = after.position[rows, None] - 1
            held = held_by(after, rows, self.kept)
            mask, bias = links_and_bias(self.pattern, last, held, mask, self._slopes(x.device), q_BH1K.dtype)
        mixed = attend(q_BH1K, keys.to(q_BH1K.dtype), values.to(q_BH1K.dtype), mask, bias=bias)
        return Mixed(self._output(mixed)[:, 0], after)

    def mixing(self, x: Tensor, memory: Tensor | None = None, memory_mask: Tensor | None = None) -> list[Mixing]:
        """The softmax matrix (batch, heads, time, source) and each head's values; over memory where it is given."""
        if memory is not None:
            state = self.memory_state(memory, memory_mask)
            matrix = attention_matrix(self._queries(x), state.keys, state.mask[:, None])
            return [Mixing(matrix, repeat_groups(state.values, self.heads))]
        positions = torch.arange(x.shape[1], device=x.device)[None]
        q_BHTK, k_BGTK, v_BGTK = self._project(x, positions)
        slopes = self._slopes(x.device)
        bias = None if slopes is None else alibi(slopes, positions, positions, q_BHTK.dtype)
        matrix = attention_matrix(q_BHTK, k_BGTK, self.links(x.shape[1])[None], bias)
        return [Mixing(matrix, repeat_groups(v_BGTK, self.heads))]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self._output(mixed[0])

    def links(self, time: int) -> Tensor:
        steps = torch.arange(time, device=self.q_proj.weight.device)
        targets, sources = steps[:, None], steps[None, :]
        if self.pattern is not None:
            return self.pattern.allows(targets, sources, causal=self.config.causal)
        return targets >= sources if self.config.causal else torch.ones_like(targets >= sources)

    def _num_links(self, time: int) -> int:
        """Pairs of target and source of one head over a sequence."""
        if self.pattern is not None:
            return count_links(self.pattern, time, causal=self.config.causal)
        return causal_links(time) if self.config.causal else time * time

    @property
    def _sizes(self) -> AttentionSizes:
        sizes = (self.dim, self.heads, self.groups, self.head_dim, self.num_parameters)
        return AttentionSizes(*sizes, self.q_proj.weight.element_size())

    def cost(self, batch: int, time: int) -> Cost:
        return attention_cost(self.config, self._sizes, batch, time, self._num_links(time), time)

    def step_cost(self, batch: int, position: int) -> Cost:
        seen = position + 1 if self.pattern is None else int(links_of(self.pattern, torch.tensor([position])))
        return attention_cost(self.config, self._sizes, batch, 1, seen, position + 1)


def _slot_state(state: State | None) -> SlotState | None:
    """The state as the one that self-attention makes."""
    if state is None or isinstance(state, SlotState):
        return state
    raise InputError(f"the state is a {type(state).__name__}, which attention did not make: begin with init_state")
