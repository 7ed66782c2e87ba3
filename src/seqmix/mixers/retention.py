"""Retention, RetNet's mixer: linear attention without a norm, with a decay of its own for each head.

    q, k, v = W_q x, W_k x, W_v x;   q, k turned by their positions;   gamma_h = 1 - 2^(-5 - h), h = 0, 1, ...
    M[t, s] = gamma^(t - s) q[t] · k[s] / sqrt(K) for s <= t                  arXiv 2307.08621, equations 5 to 8
    y = W_o (swish(W_g x) * groupnorm(M v))                                   one group a head

The paper's three forms: the parallel one is `mixing`, the recurrent one is `step` with S[t] = gamma S[t-1] + k v^T,
and the chunkwise one is `forward`. Its turning, q e^(i n theta) and k e^(-i m theta), is that of rotary positions: in
half-split pairs with theta_i = base^(-2 i / K); xPos's further scale is what gamma replaces. The paper's norms of
scores and rows change nothing but the size of a head's output, which the group norm takes away again. (The authors'
code has neighbours as pairs, base^(-2 i / (K - 2)), and an RMSNorm without weights.)

Shapes: B batch, T time, D model width, H heads, K width of queries and keys, V width of values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.state_space import decayed_weights, scan_flops, state_space_scan, state_space_step, step_flops
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers.rotary import apply_rotation, rotation
from seqmix.mixers.sizes import check_sizes, heads_of

INITIAL_GAIN = 2**-2.5
"""Of W_q, W_k, W_v and W_g in the authors' code, so that the sums begin small; W_o begins with 1."""


@dataclass(frozen=True, kw_only=True)
class RetNetConfig:
    """heads: None for head widths near 64 (the paper's large models have 256). expand: V over K, the paper's 2.

    rope_theta: the base of the turning. norm_eps: of the group norm. bias: on all five projections.
    chunk: positions the scan handles at once; it changes the speed and nothing else.
    """

    heads: int | None = None
    expand: int = 2
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    bias: bool = False
    chunk: int = 64

    def __post_init__(self) -> None:
        check_sizes(self, "heads", "expand", "chunk")
        for name in ("rope_theta", "norm_eps"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be greater than 0")


@dataclass
class RetNetState(State):
    """hidden: (batch, heads, V, K), the decayed sum of value (outer) key, in float32 or wider."""

    hidden: Tensor


def decay_logarithms(heads: int, device: torch.device) -> Tensor:
    """log gamma of each head, (heads,) float64; the decays of late heads differ from 1 by less than float32 shows."""
    exponents = torch.arange(heads, dtype=torch.float64, device=device) + 5
    return torch.log1p(-(2.0**-exponents))


class RetNet(Mixer):
    """y = W_o (swish(W_g x) * groupnorm(retention(q, k, v))).

    Raises:
        InputError: heads that do not divide dim, or whose values have width 1, of which a norm leaves nothing.
    """

    config_class = RetNetConfig
    config: RetNetConfig

    def __init__(self, dim: int, config: RetNetConfig | None = None) -> None:
        super().__init__(dim, config)
        self.heads = heads_of(dim, self.config.heads)
        self.head_dim, self.inner = dim // self.heads, self.config.expand * dim
        if self.inner == self.heads:
            raise InputError(
                f"heads is {self.heads}, which leaves values of width 1 to a group norm: choose fewer heads or expand 2"
            )
        bias = self.config.bias
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, self.inner, bias=bias)
        self.g_proj = nn.Linear(dim, self.inner, bias=bias)
        self.o_proj = nn.Linear(self.inner, dim, bias=bias)
        self.norm = nn.GroupNorm(self.heads, self.inner, eps=self.config.norm_eps)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (12, {"heads": 3, "chunk": 16}),
            (10, {"heads": 2, "expand": 1, "bias": True, "rope_theta": 500.0, "norm_eps": 1e-3}),
        ]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.g_proj):
            nn.init.xavier_uniform_(projection.weight, gain=INITIAL_GAIN)
        nn.init.xavier_uniform_(self.o_proj.weight)
        self.norm.reset_parameters()

    @property
    def traits(self) -> Traits:
        return Traits(causal=True, content_dependent=True, state_growth="constant")

    @property
    def receptive_field(self) -> None:
        return None

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, already scaled, keys and values of x (..., D), (..., H, K or V), turned by positions (...)."""
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        angles = rotation(positions[..., None], self.head_dim, self.config.rope_theta, x.dtype)
        return apply_rotation(q, *angles) / math.sqrt(self.head_dim), apply_rotation(k, *angles), v

    def _constants(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps of 1, log gamma, and no skip: what the state space needs beside q, k and v."""
        wide = torch.promote_types(values.dtype, torch.float32)
        steps = values.new_ones(values.shape[:-1], dtype=wide)
        return steps, decay_logarithms(self.heads, values.device).to(wide), steps.new_zeros(self.heads)

    def _output(self, mixed: Tensor, x: Tensor) -> Tensor:
        """W_o of the gated, normed mixed values (..., H, V)."""
        flat = mixed.flatten(-2)
        normed = self.norm(flat.flatten(end_dim=-2)).view_as(flat)
        return self.o_proj(F.silu(self.g_proj(x)) * normed)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        placement = place(x, state, document_ids)
        q, k, v = self._project(x, placement.positions)
        steps, log_gamma, no_skip = self._constants(v)
        mixed, hidden = state_space_scan(
            v,
            steps,
            log_gamma,
            k,
            q,
            no_skip,
            state=None if state is None else _own_state(state).hidden,
            runs=placement.runs if placement.packed else None,
            chunk=self.config.chunk,
        )
        return Mixed(self._output(mixed, x), RetNetState(placement.position, placement.document, hidden))

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        weight = self.q_proj.weight
        device = weight.device if device is None else device
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        sizes = (batch, self.heads, self.inner // self.heads, self.head_dim)
        hidden = torch.zeros(sizes, device=device, dtype=torch.promote_types(dtype or weight.dtype, torch.float32))
        return RetNetState(count, count.clone(), hidden)

    def step(self, x: Tensor, state: State) -> Mixed:
        q, k, v = self._project(x, state.position)
        steps, log_gamma, no_skip = self._constants(v)
        mixed, hidden = state_space_step(v, steps, log_gamma, k, q, no_skip, _own_state(state).hidden)
        return Mixed(self._output(mixed, x), RetNetState(state.position + 1, state.document, hidden))

    def mixing(self, x: Tensor) -> list[Mixing]:
        """The parallel form's matrix (batch, heads, time, source), with its decays, and the values."""
        q, k, v = self._project(x, torch.arange(x.shape[1], device=x.device)[None])
        steps, log_gamma, _ = self._constants(v)
        matrix = decayed_weights(steps, log_gamma, k.to(steps.dtype), q.to(steps.dtype))
        return [Mixing(matrix.to(x.dtype), v.transpose(1, 2))]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self._output(mixed[0].transpose(1, 2), x)

    def links(self, time: int) -> Tensor:
        return causal_mask(time, device=self.q_proj.weight.device)

    def _cost(self, batch: int, positions: int, scan: int) -> Cost:
        size = self.q_proj.weight.element_size()
        state_bytes = batch * (self.inner * self.head_dim * max(4, size) + BOOKKEEPING_BYTES)
        rotary_and_scale = 7 * self.dim + 2 * (self.head_dim // 2)
        norm_and_gate = 12 * self.inner
        biases = 3 * self.dim + 2 * self.inner if self.config.bias else 0
        return Cost(
            product_flops=linear_flops(positions, self.dim, 2 * self.dim + 3 * self.inner) + scan,
            other_flops=positions * (rotary_and_scale + norm_and_gate + biases),
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )

    def cost(self, batch: int, time: int) -> Cost:
        width = self.inner // self.heads
        scan = scan_flops(time, self.heads, width, self.heads, self.head_dim, self.config.chunk)
        return self._cost(batch, batch * time, batch * scan)

    def step_cost(self, batch: int, position: int) -> Cost:
        return self._cost(batch, batch, batch * step_flops(self.heads, self.inner // self.heads, self.head_dim))


def _own_state(state: State) -> RetNetState:
    """The state as the one that retention makes."""
    if isinstance(state, RetNetState):
        return state
    raise InputError(f"the state is a {type(state).__name__}, which is not of retnet: begin with init_state")
