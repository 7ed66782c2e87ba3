"""softmax(Q K^T / sqrt(K)) V over all pairs of target and source: written out, and by torch's fused operation.

float64 takes the written-out form, which is the specification of the other.

Shapes: B batch, H heads, G groups of heads that share keys and values, T time, S source, K head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.mixer import causal_mask


def repeat_groups(x_BGSK: Tensor, heads: int) -> Tensor:
    """The keys or values of every head: head h has those of group h // (H / G)."""
    groups = x_BGSK.shape[1]
    return x_BGSK if groups == heads else x_BGSK.repeat_interleave(heads // groups, dim=1)


def attention_matrix(q_BHTK: Tensor, k_BGSK: Tensor, mask: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(K) + bias) over the sources that the mask (batch or 1, T, S) allows: (B, H, T, S).

    The bias is (batch or 1, H, T, S). A target that may see nothing gets a row of zeros.
    """
    k_BHSK = repeat_groups(k_BGSK, q_BHTK.shape[1])
    scores_BHTS = q_BHTK @ k_BHSK.transpose(-1, -2) / math.sqrt(q_BHTK.shape[-1])
    if bias is not None:
        scores_BHTS = scores_BHTS + bias
    if mask is None:
        return scores_BHTS.softmax(dim=-1)
    mask = mask[:, None]
    lowest = torch.finfo(scores_BHTS.dtype).min
    return scores_BHTS.masked_fill(~mask, lowest).softmax(dim=-1) * mask


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """The values mixed by the attention matrix, (B, H, T, K).

    Args:
        mask: bool (batch or 1, T, S), the sources that each target sees; None for all.
        bias: (batch or 1, H, T, S), added to the scores.
        is_causal: instead of a mask and a bias, each target sees itself and what stands before it (T equals S).
    """
    heads, groups, time = q_BHTK.shape[1], k_BGSK.shape[1], q_BHTK.shape[2]
    if q_BHTK.dtype == torch.float64:
        if is_causal:
            mask = causal_mask(time, device=q_BHTK.device)[None]
        return attention_matrix(q_BHTK, k_BGSK, mask, bias) @ repeat_groups(v_BGSK, heads)
    added = None if mask is None else mask[:, None]
    if bias is not None:
        added = bias if added is None else bias.masked_fill(~added, -math.inf)
    if time == 1:
        # The heads of a group take the place of time, so that one token never copies the keys for each head.
        in_groups = (groups, heads // groups)
        if bias is not None and added is not None:
            added = added.unflatten(1, in_groups)[:, :, :, 0]
        q_BGNK = q_BHTK.unflatten(1, in_groups)[:, :, :, 0]
        mixed = F.scaled_dot_product_attention(q_BGNK, k_BGSK, v_BGSK, attn_mask=None if is_causal else added)
        return mixed.flatten(1, 2)[:, :, None]
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=added, is_causal=is_causal, enable_gqa=groups != heads
    )
