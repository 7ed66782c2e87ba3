"""Linear attention: the softmax replaced by a product of positive features, so that sums take the place of a cache.

    q, k, v = W_q x, W_k x, W_v x;   phi(x) = elu(x) + 1                 arXiv 2006.16236, equations 4 to 12
    M[t, s] = phi(q[t]) · phi(k[s]) / (phi(q[t]) · z[t] + eps),   z[t] = sum_s phi(k[s]);   y = W_o (M v)

s runs over s <= t where it is causal, else over the document. eps is the authors' code's, for features that all
underflow. The norm z is one more column of the values, 1 everywhere, so one scan gives both sums.

Shapes: B batch, T time, S source, D model width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.linear_attention import attend_both_ways
from seqmix.kernels.state_space import scan_flops, state_space_scan, state_space_step, step_flops
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers.sizes import check_sizes, heads_of


@dataclass(frozen=True, kw_only=True)
class LinearAttentionConfig:
    """heads: None for head widths near 64. eps: added to the norm. bias: on all four projections.

    chunk: positions the scan handles at once; it changes the speed and nothing else.
    """

    heads: int | None = None
    causal: bool = True
    eps: float = 1e-6
    bias: bool = False
    chunk: int = 64

    def __post_init__(self) -> None:
        check_sizes(self, "heads", "chunk")
        if self.eps <= 0:
            raise InputError(f"eps is {self.eps}: it must be greater than 0")


@dataclass
class LinearAttentionState(State):
    """sums: (batch, heads, K + 1, K), of value (outer) feature; the last row, of value 1, is the norm z.

    In float32 or wider.
    """

    sums: Tensor


def no_past(mixer: Mixer, state: State | None) -> None:
    """Refuses a state where a mixer reads whole documents."""
    if state is not None:
        raise InputError(f"a non-causal {type(mixer).__name__} takes no state: give the whole sequence at once")


def _features(x: Tensor) -> Tensor:
    """elu(x) + 1, in float32 or wider; written so that a small feature keeps its digits."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


class LinearAttention(Mixer):
    """y = W_o (phi(q) sum phi(k) (outer) v) / (phi(q) · sum phi(k)) with phi = elu + 1.

    Raises:
        InputError: heads that do not divide dim.
    """

    config_class = LinearAttentionConfig
    config: LinearAttentionConfig

    def __init__(self, dim: int, config: LinearAttentionConfig | None = None) -> None:
        super().__init__(dim, config)
        self.heads = heads_of(dim, self.config.heads)
        self.head_dim = dim // self.heads
        bias = self.config.bias
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.o_proj = nn.Linear(dim, dim, bias=bias)

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (12, {"heads": 3, "chunk": 16}),
            (10, {"heads": 2, "bias": True, "eps": 1e-3}),
            (9, {"heads": 3, "causal": False}),
        ]

    @property
    def traits(self) -> Traits:
        causal = self.config.causal
        return Traits(causal=causal, content_dependent=True, state_growth="constant" if causal else None)

    @property
    def receptive_field(self) -> None:
        return None

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries and keys, and values with a column of ones, (..., H, K or K + 1), in float32 or wider."""
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _features(q), _features(k)
        return q, k, F.pad(v.to(q.dtype), (0, 1), value=1.0)

    def _output(self, mixed: Tensor, x: Tensor) -> Tensor:
        """W_o of the first K columns (..., H, K + 1) over the last one."""
        normed = mixed[..., :-1] / (mixed[..., -1:] + self.config.eps)
        return self.o_proj(normed.flatten(-2).to(x.dtype))

    def _constants(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Steps of 1, and the zeros that are both the decay's logarithm and the skip."""
        return values.new_ones(values.shape[:-1]), values.new_zeros(self.heads)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        placement = place(x, state, document_ids)
        runs = placement.runs if placement.packed else None
        q, k, v = self._project(x)
        if not self.config.causal:
            no_past(self, state)
            return Mixed(self._output(attend_both_ways(q, k, v, runs, chunk=self.config.chunk), x), None)
        steps, zeros = self._constants(v)
        before = None if state is None else _own_state(state).sums
        mixed, sums = state_space_scan(v, steps, zeros, k, q, zeros, state=before, runs=runs, chunk=self.config.chunk)
        return Mixed(self._output(mixed, x), LinearAttentionState(placement.position, placement.document, sums))

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        weight = self.q_proj.weight
        if not self.config.causal:
            return super().init_state(batch, capacity, device=device, dtype=dtype)
        device = weight.device if device is None else device
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        sizes = (batch, self.heads, self.head_dim + 1, self.head_dim)
        sums = torch.zeros(sizes, device=device, dtype=torch.promote_types(dtype or weight.dtype, torch.float32))
        return LinearAttentionState(count, count.clone(), sums)

    def step(self, x: Tensor, state: State) -> Mixed:
        if not self.config.causal:
            return super().step(x, state)
        q, k, v = self._project(x)
        steps, zeros = self._constants(v)
        mixed, sums = state_space_step(v, steps, zeros, k, q, zeros, _own_state(state).sums)
        return Mixed(self._output(mixed, x), LinearAttentionState(state.position + 1, state.document, sums))

    def mixing(self, x: Tensor) -> list[Mixing]:
        """The normed products of the features, (batch, heads, time, source); readout of them is the last projection."""
        q_BTHK, k_BTHK, v_BTHK = self._project(x)
        weights = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK) * self.links(x.shape[1])
        matrix = weights / (weights.sum(dim=-1, keepdim=True) + self.config.eps)
        return [Mixing(matrix.to(x.dtype), v_BTHK[..., :-1].transpose(1, 2).to(x.dtype))]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self.o_proj(mixed[0].transpose(1, 2).flatten(2))

    def links(self, time: int) -> Tensor:
        device = self.q_proj.weight.device
        if self.config.causal:
            return causal_mask(time, device=device)
        return torch.ones(time, time, dtype=torch.bool, device=device)

    def _cost(self, batch: int, positions: int, mixing_flops: int) -> Cost:
        size = self.q_proj.weight.element_size()
        sums = self.heads * (self.head_dim + 1) * self.head_dim * max(4, size)
        state_bytes = batch * (sums + BOOKKEEPING_BYTES) if self.config.causal else 0
        features_and_norm = 8 + 4 * self.config.bias
        return Cost(
            product_flops=linear_flops(positions, self.dim, 4 * self.dim) + mixing_flops,
            other_flops=positions * self.dim * features_and_norm,
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )

    def cost(self, batch: int, time: int) -> Cost:
        heads, width = self.heads, self.head_dim
        if self.config.causal:
            mixing = scan_flops(time, heads, width + 1, heads, width, self.config.chunk)
        else:
            mixing = 4 * time * heads * width * (width + 1)
        return self._cost(batch, batch * time, batch * mixing)

    def step_cost(self, batch: int, position: int) -> Cost:
        return self._cost(batch, batch, batch * step_flops(self.heads, self.head_dim + 1, self.head_dim))


def _own_state(state: State) -> LinearAttentionState:
    """The state as the one that linear attention makes."""
    if isinstance(state, LinearAttentionState):
        return state
    raise InputError(f"the state is a {type(state).__name__}, which is not of linear_attention: begin with init_state")
