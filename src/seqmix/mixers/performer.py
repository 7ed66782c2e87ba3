"""Performer: softmax attention's weights exp(q · k / sqrt(K)) estimated by a product of random positive features.

    q, k, v = W_q x, W_k x, W_v x, q and k divided by K^(1/4)            FAVOR+, arXiv 2009.14794, lemma 1, section 2.4
    phi(x) = exp(omega x - |x|^2 / 2) / sqrt(M)                          omega: orthogonal rows with Gaussian lengths
    M[t, s] = phi(q[t]) · phi(k[s]) / sum_s phi(q[t]) · phi(k[s]);   y = W_o (M v)

s runs over s <= t where it is causal, else over the document. In M both sqrt(M) and |q|^2 / 2 cancel and are left out.
Features are kept as logarithms; each feature's largest key so far is held in the state, and its sums are divided by
that (`kernels/linear_attention`), so that nothing overflows and no norm is 0, whatever the size of the input.

Shapes: B batch, T time, D model width, H heads, K head width, M features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.linear_attention import (
    exponential_attention,
    exponential_attention_both_ways,
    exponential_attention_flops,
    exponential_attention_step,
    exponential_weights,
)
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers.linear_attention import no_past
from seqmix.mixers.sizes import check_sizes, heads_of


@dataclass(frozen=True, kw_only=True)
class PerformerConfig:
    """heads: None for head widths near 64. features: M; None for K ln K, the paper's, and at least K.

    bias: on all four projections. chunk: positions handled at once, a power of two; it changes the speed alone.
    """

    heads: int | None = None
    features: int | None = None
    causal: bool = True
    bias: bool = False
    chunk: int = 64

    def __post_init__(self) -> None:
        check_sizes(self, "heads", "features", "chunk")
        if self.chunk & (self.chunk - 1):
            raise InputError(f"chunk is {self.chunk}: it must be a power of two")


@dataclass
class PerformerState(State):
    """top: (batch, heads, M), the largest logarithm of each feature of the keys so far, minus infinity before any.

    sums: (batch, heads, M, K + 1), of feature (outer) value, divided by exp(top); the last column, of value 1, is the
    norm. Both in float32 or wider.
    """

    top: Tensor
    sums: Tensor


def orthogonal_directions(count: int, width: int, *, generator: torch.Generator | None = None) -> Tensor:
    """(count, width) float64: blocks of `width` orthogonal rows, each as long as a Gaussian vector of that width."""
    blocks = -(-count // width)
    gaussian = torch.randn(blocks, width, width, generator=generator, dtype=torch.float64)
    orthogonal, upper = torch.linalg.qr(gaussian)
    # QR fixes a sign of its own choice; with that of R's diagonal taken out the directions are uniform.
    rows = (orthogonal * upper.diagonal(dim1=-2, dim2=-1).sign()[:, None]).transpose(1, 2).flatten(0, 1)[:count]
    lengths = torch.randn(count, width, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)
    return rows * lengths


class Performer(Mixer):
    """y = W_o (phi(q) sum phi(k) (outer) v) / (phi(q) · sum phi(k)) with random positive features phi.

    `omega` (M, K), which all heads share, is drawn once, by the random numbers at construction, and saved with the
    parameters; `redraw` takes others.

    Raises:
        InputError: heads that do not divide dim.
    """

    config_class = PerformerConfig
    config: PerformerConfig
    omega: Tensor

    def __init__(self, dim: int, config: PerformerConfig | None = None) -> None:
        super().__init__(dim, config)
        self.heads = heads_of(dim, self.config.heads)
        self.head_dim = width = dim // self.heads
        self.features = self.config.features or max(width, round(width * math.log(width)))
        bias = self.config.bias
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.o_proj = nn.Linear(dim, dim, bias=bias)
        self.register_buffer("omega", torch.empty(self.features, width))
        self.redraw()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (12, {"heads": 3, "chunk": 16}),
            (10, {"heads": 2, "features": 4, "bias": True}),
            (9, {"heads": 3, "causal": False}),
        ]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.redraw()

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draws other features, as the paper does now and then while it trains; a state of the old ones is void."""
        if not self.omega.is_meta:
            with torch.no_grad():
                self.omega.copy_(orthogonal_directions(self.features, self.head_dim, generator=generator))

    @property
    def traits(self) -> Traits:
        causal = self.config.causal
        return Traits(causal=causal, content_dependent=True, state_growth="constant" if causal else None)

    @property
    def receptive_field(self) -> None:
        return None

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of the features of queries and keys, (batch, H, T, M), and values (batch, H, T, K).

        Of one token x (batch, D) without T. All in float32 or wider: an exponent that is off by 2^-8 of its size, as a
        16-bit one may be, is a weight that is off by far more.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        heads = (proj(x).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = ((part.transpose(1, 2) if x.dim() == 3 else part).to(wide) for part in heads)
        directions = self.omega.to(wide).T * self.head_dim**-0.25
        half_norms = k.square().sum(dim=-1, keepdim=True) / (2 * math.sqrt(self.head_dim))
        with torch.autocast(x.device.type, enabled=False):
            return q @ directions, k @ directions - half_norms, v

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        placement = place(x, state, document_ids)
        runs, chunk = placement.runs if placement.packed else None, self.config.chunk
        q, k, v = self._project(x)
        if not self.config.causal:
            no_past(self, state)
            mixed = exponential_attention_both_ways(q, k, v, runs=runs, chunk=chunk)
            return Mixed(self.readout([mixed], x), None)
        before = _own_state(self.init_state(len(x), device=x.device, dtype=x.dtype) if state is None else state)
        mixed, top, sums = exponential_attention(q, k, v, before.top, before.sums, runs=runs, chunk=chunk)
        return Mixed(self.readout([mixed], x), PerformerState(placement.position, placement.document, top, sums))

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
        wide = torch.promote_types(dtype or weight.dtype, torch.float32)
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        top = torch.full((batch, self.heads, self.features), -torch.inf, device=device, dtype=wide)
        return PerformerState(count, count.clone(), top, top.new_zeros(*top.shape, self.head_dim + 1))

    def step(self, x: Tensor, state: State) -> Mixed:
        if not self.config.causal:
            return super().step(x, state)
        before = _own_state(state)
        mixed, top, sums = exponential_attention_step(*self._project(x), before.top, before.sums)
        y = self.o_proj(mixed.flatten(1).to(x.dtype))
        return Mixed(y, PerformerState(state.position + 1, state.document, top, sums))

    def mixing(self, x: Tensor) -> list[Mixing]:
        """The estimated softmax matrix (batch, heads, time, source), which is what forward applies, and the values."""
        q, k, v = self._project(x)
        return [Mixing(exponential_weights(q, k, self.links(x.shape[1])).to(x.dtype), v.to(x.dtype))]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self.o_proj(mixed[0].transpose(1, 2).flatten(2).to(x.dtype))

    def links(self, time: int) -> Tensor:
        device = self.q_proj.weight.device
        if self.config.causal:
            return causal_mask(time, device=device)
        return torch.ones(time, time, dtype=torch.bool, device=device)

    def _cost(self, batch: int, positions: int, mixing_flops: int, visits: int) -> Cost:
        """`visits`: how often each feature of each position is worked on, beside products."""
        size = self.q_proj.weight.element_size()
        features, columns = self.heads * self.features, self.head_dim + 1
        state_bytes = batch * (features * (columns + 1) * max(4, size) + BOOKKEEPING_BYTES)
        kept = state_bytes if self.config.causal else 0
        biases = 4 * self.dim if self.config.bias else 0
        return Cost(
            product_flops=linear_flops(positions, self.dim, 4 * self.dim)
            + 2 * linear_flops(positions * self.heads, self.head_dim, self.features)
            + mixing_flops,
            other_flops=positions * (3 * self.dim + biases + visits * features),
            parameters=self.num_parameters,
            state_bytes=kept,
            bytes_moved=size * (self.num_parameters + self.omega.numel() + 2 * positions * self.dim) + kept,
        )

    def cost(self, batch: int, time: int) -> Cost:
        if self.config.causal:
            chunk = self.config.chunk
            mixing = exponential_attention_flops(time, self.heads, self.features, self.head_dim, chunk)
            return self._cost(batch, batch * time, batch * mixing, 3 * chunk.bit_length() + 8)
        return self._cost(batch, batch * time, 4 * batch * time * self.heads * self.features * (self.head_dim + 1), 8)

    def step_cost(self, batch: int, position: int) -> Cost:
        columns = self.head_dim + 1
        return self._cost(batch, batch, 2 * batch * self.heads * self.features * columns, 8 + 3 * columns)


def _own_state(state: State) -> PerformerState:
    """The state as the one that Performer makes."""
    if isinstance(state, PerformerState):
        return state
    raise InputError(f"the state is a {type(state).__name__}, which is not of performer: begin with init_state")
