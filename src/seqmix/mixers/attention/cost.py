"""What attention costs, for a number of links."""

from __future__ import annotations

from typing import NamedTuple

from seqmix.cost import Cost, linear_flops
from seqmix.mixer import BOOKKEEPING_BYTES
from seqmix.mixers.attention.config import AttentionConfig

SOFTMAX_FLOPS = 5
"""Scale, maximum, difference, exponential and division, for each link of each head."""
ALIBI_FLOPS = 2
NORM_FLOPS = 4
"""Square, sum, scale and weight, for each number that is normed."""


class AttentionSizes(NamedTuple):
    """The sizes of one attention's weights; element_size is the bytes of a number."""

    dim: int
    heads: int
    groups: int
    head_dim: int
    parameters: int
    element_size: int


def attention_cost(
    config: AttentionConfig, sizes: AttentionSizes, batch: int, time: int, links: int, read: int
) -> Cost:
    """The cost of `time` positions a row with `links` pairs of target and source, the last of `read` positions."""
    positions, size = batch * time, sizes.element_size
    of_heads, of_groups = sizes.heads * sizes.head_dim, sizes.groups * sizes.head_dim
    rotary = 3 * (of_heads + of_groups) + 2 * (sizes.head_dim // 2) if config.rope else 0
    norms = NORM_FLOPS * (of_heads + of_groups) if config.qk_norm else 0
    biases = of_heads + 2 * of_groups + sizes.dim if config.bias else 0
    of_scores = SOFTMAX_FLOPS + (ALIBI_FLOPS if config.alibi else 0)
    bookkeeping = BOOKKEEPING_BYTES if config.causal else 0
    stored = 0 if not config.causal else read if config.ring is None else config.kept + config.ring
    of_slot = 2 * of_groups * size
    return Cost(
        product_flops=linear_flops(positions, sizes.dim, 2 * (of_heads + of_groups)) + 4 * batch * links * of_heads,
        other_flops=positions * (rotary + norms + biases) + of_scores * batch * links * sizes.heads,
        parameters=sizes.parameters,
        state_bytes=batch * (stored * of_slot + bookkeeping),
        bytes_moved=size * (sizes.parameters + 2 * positions * sizes.dim)
        + batch * (min(stored, read) * of_slot + bookkeeping),
    )
