"""Linformer: softmax attention over fewer keys and values, each of which is a learned sum over all positions.

    q, k, v = W_q x, W_k x, W_v x
    K' = E k, V' = F v,  E and F (R, length): the first n columns for n positions        arXiv 2006.04768, equation 7
    y = W_o (A V'),  A = softmax(q K'^T / sqrt(K));   as a matrix over positions, M = A F

E and F are learned and shared by all heads (the paper's headwise sharing). Every row of K' sums over all positions, the
later ones included, so a causal form does not exist: a mask on the R keys would hide nothing of the future.

Positions count from the start of a document. Documents of a packed row each have projections of their own, which are
never formed: q K'^T is the sum over the document of (q · k[s]) E[:, s], and A V' that of (A · F[:, s]) v[s], both
linear attention.

Shapes: B batch, T time, D model width, H heads, K head width, R rank.
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
from seqmix.kernels.documents import Placement
from seqmix.kernels.linear_attention import attend_both_ways
from seqmix.mixer import Mixed, Mixer, Mixing, State, Traits, place
from seqmix.mixers.attention.cost import SOFTMAX_FLOPS
from seqmix.mixers.attention.product import attend, attention_matrix
from seqmix.mixers.linear_attention import no_past
from seqmix.mixers.sizes import check_sizes, heads_of


@dataclass(frozen=True, kw_only=True)
class LinformerConfig:
    """heads: None for head widths near 64. length: the most positions of a document. rank: R, keys that they become.

    share_kv: F is E (the paper's key-value sharing). bias: on the four projections of channels. causal: refused.
    """

    heads: int | None = None
    length: int = 512
    rank: int = 128
    share_kv: bool = False
    bias: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "heads", "length", "rank")
        if self.rank > self.length:
            raise InputError(f"rank is {self.rank}: it must not be above length {self.length}, which it is to compress")
        if self.causal:
            raise InputError(
                "causal is True: Linformer's projection mixes all positions before any mask, which would leak the "
                "future; leave causal out, or choose another mixer"
            )


class Linformer(Mixer):
    """y = W_o softmax(q (E k)^T / sqrt(K)) (F v).

    Raises:
        InputError: heads that do not divide dim; in forward, a document of more positions than `length`.
    """

    config_class = LinformerConfig
    config: LinformerConfig

    def __init__(self, dim: int, config: LinformerConfig | None = None) -> None:
        super().__init__(dim, config)
        config = self.config
        self.heads = heads_of(dim, config.heads)
        self.head_dim = dim // self.heads
        self.q_proj = nn.Linear(dim, dim, bias=config.bias)
        self.k_proj = nn.Linear(dim, dim, bias=config.bias)
        self.v_proj = nn.Linear(dim, dim, bias=config.bias)
        self.o_proj = nn.Linear(dim, dim, bias=config.bias)
        self.E = nn.Parameter(torch.empty(config.rank, config.length))
        self.F = None if config.share_kv else nn.Parameter(torch.empty(config.rank, config.length))
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (12, {"heads": 3, "length": 100, "rank": 5}),
            (10, {"heads": 2, "length": 110, "rank": 7, "share_kv": True, "bias": True, "causal": False}),
        ]

    def reset_parameters(self) -> None:
        """E and F keep the size of what they sum over a document of full length."""
        super().reset_parameters()
        for projection in self._projections():
            nn.init.normal_(projection, std=1 / math.sqrt(self.config.length))

    def _projections(self) -> tuple[Tensor, Tensor]:
        """E and F, (R, length)."""
        return self.E, self.E if self.F is None else self.F

    @property
    def traits(self) -> Traits:
        return Traits(causal=False, content_dependent=True, state_growth=None)

    @property
    def receptive_field(self) -> None:
        return None

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, time, heads, K)."""
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return q, k, v

    def _check_length(self, positions: int) -> None:
        if positions > self.config.length:
            raise InputError(
                f"a document has {positions} positions, but E projects at most length = {self.config.length}: give "
                "shorter ones or a larger length"
            )

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        no_past(self, state)
        placement = place(x, None, document_ids)
        mixed = self._mix_packed(x, placement) if placement.packed else self._mix(x)
        return Mixed(self.o_proj(mixed.flatten(2)), None)

    def _mix(self, x: Tensor) -> Tensor:
        """A V' of one document a row, (batch, time, heads, K)."""
        self._check_length(x.shape[1])
        q, k, v = self._project(x)
        of_keys, of_values = self._projections()
        return attend(q.transpose(1, 2), _compress(of_keys, k), _compress(of_values, v)).transpose(1, 2)

    def _mix_packed(self, x: Tensor, placement: Placement) -> Tensor:
        """A V' of packed documents, in float32 or wider until it is done."""
        # The longest document is a number that a compiler cannot look at; columns that are missing fail there too.
        if x.shape[1] > self.config.length and not torch.compiler.is_compiling():
            self._check_length(int(placement.positions.max()) + 1)
        wide = torch.promote_types(x.dtype, torch.float32)
        q, k, v = (part.to(wide) for part in self._project(x))
        columns_E, columns_F = (
            projection.T.to(wide)[placement.positions][:, :, None].expand(-1, -1, self.heads, -1)
            for projection in self._projections()
        )
        scores = attend_both_ways(q / math.sqrt(self.head_dim), k, columns_E, placement.runs)
        return attend_both_ways(scores.softmax(dim=-1), columns_F, v, placement.runs).to(x.dtype)

    def mixing(self, x: Tensor) -> list[Mixing]:
        """A F (batch, heads, time, source), which is what forward applies, and the values."""
        self._check_length(x.shape[1])
        q, k, v = self._project(x)
        of_keys, of_values = self._projections()
        weights = attention_matrix(q.transpose(1, 2), _compress(of_keys, k), None)
        return [Mixing(weights @ of_values[:, : x.shape[1]], v.transpose(1, 2))]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self.o_proj(mixed[0].transpose(1, 2).flatten(2))

    def links(self, time: int) -> Tensor:
        return torch.ones(time, time, dtype=torch.bool, device=self.E.device)

    def cost(self, batch: int, time: int) -> Cost:
        positions, rank = batch * time, self.config.rank
        size = self.E.element_size()
        # E k and F v, then the attention over R keys.
        mixing = 4 * positions * rank * self.dim + 4 * positions * rank * self.dim
        return Cost(
            product_flops=linear_flops(positions, self.dim, 4 * self.dim) + mixing,
            other_flops=positions * (SOFTMAX_FLOPS * rank * self.heads + (4 * self.dim if self.config.bias else 0)),
            parameters=self.num_parameters,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim),
        )


def _compress(projection: Tensor, x_BTHK: Tensor) -> Tensor:
    """The sums over positions that a projection (R, length) makes: (batch, heads, R, K)."""
    sums = projection[:, : x_BTHK.shape[1]] @ x_BTHK.flatten(2)
    return sums.unflatten(-1, x_BTHK.shape[2:]).transpose(1, 2)
