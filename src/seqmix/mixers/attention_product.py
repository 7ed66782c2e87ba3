"""softmax(Q K^T / sqrt(K)) V: written out, by torch's fused operation, and in blocks for a window.

float64 takes the written-out form, which is the specification of the others.

Shapes: B batch, H heads, G groups of heads that share keys and values, T time, S source, K head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.mixer import causal_mask

SMALLEST_BLOCK = 64
"""Targets that share one block of sources: with fewer the blocks' overlap and the number of products grow."""


def repeat_groups(x_BGSK: Tensor, heads: int) -> Tensor:
    """The keys or values of every head: head h has those of group h // (H / G)."""
    groups = x_BGSK.shape[1]
    return x_BGSK if groups == heads else x_BGSK.repeat_interleave(heads // groups, dim=1)


def attention_matrix(q_BHTK: Tensor, k_BGSK: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(K)) over the sources that the mask (batch or 1, T, S) allows: (B, H, T, S).

    A target that may see nothing gets a row of zeros.
    """
    k_BHSK = repeat_groups(k_BGSK, q_BHTK.shape[1])
    scores_BHTS = q_BHTK @ k_BHSK.transpose(-1, -2) / math.sqrt(q_BHTK.shape[-1])
    if mask is None:
        return scores_BHTS.softmax(dim=-1)
    mask = mask[:, None]
    lowest = torch.finfo(scores_BHTS.dtype).min
    return scores_BHTS.masked_fill(~mask, lowest).softmax(dim=-1) * mask


def attend(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None = None, *, is_causal: bool = False
) -> Tensor:
    """The values mixed by the attention matrix, (B, H, T, K).

    Args:
        mask: bool (batch or 1, T, S), the sources that each target sees; None for all.
        is_causal: instead of a mask, each target sees itself and what stands before it (T equals S).
    """
    heads, groups, time = q_BHTK.shape[1], k_BGSK.shape[1], q_BHTK.shape[2]
    if q_BHTK.dtype == torch.float64:
        if is_causal:
            mask = causal_mask(time, device=q_BHTK.device)[None]
        return attention_matrix(q_BHTK, k_BGSK, mask) @ repeat_groups(v_BGSK, heads)
    if time == 1:
        # The heads of a group take the place of time, so that one token never copies the keys for each head.
        q_BGNK = q_BHTK.unflatten(1, (groups, heads // groups))[:, :, :, 0]
        mixed = F.scaled_dot_product_attention(
            q_BGNK, k_BGSK, v_BGSK, attn_mask=None if mask is None or is_causal else mask[:, None]
        )
        return mixed.flatten(1, 2)[:, :, None]
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=None if mask is None else mask[:, None],
        is_causal=is_causal,
        enable_gqa=groups != heads,
    )


def attend_locally(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, window: int, runs_BT: Tensor | None = None
) -> Tensor:
    """The values mixed over a causal window, (B, H, T, K), with work and memory that grow as T * window.

    A block of targets shares a block of sources that begins window - 1 positions before it. The first block has
    none before it, the last one may be shorter: both are products of their own.

    Args:
        runs_BT: equal exactly within one document, which nothing leaves; None for a single one.
    """
    time = q_BHTK.shape[2]
    block, before = max(window, SMALLEST_BLOCK), window - 1
    if time < 2 * block or q_BHTK.dtype == torch.float64:
        mask = causal_mask(time, window, q_BHTK.device)[None]
        return attend(q_BHTK, k_BGTK, v_BGTK, mask if runs_BT is None else _within_runs(mask, runs_BT, runs_BT))
    whole = time - time % block
    mask = causal_mask(before + block, window, q_BHTK.device)[None, before:]

    def product(targets: slice, sources: slice, mask: Tensor) -> Tensor:
        if runs_BT is not None:
            mask = _within_runs(mask, runs_BT[:, targets], runs_BT[:, sources])
        return attend(q_BHTK[:, :, targets], k_BGTK[:, :, sources], v_BGTK[:, :, sources], mask)

    def of_targets(tensor: Tensor) -> Tensor:
        return _blocks(tensor[:, :, block:whole], block, block)

    def of_sources(tensor: Tensor) -> Tensor:
        return _blocks(tensor[:, :, block - before : whole], before + block, block)

    middle_mask = mask
    if runs_BT is not None:
        runs = runs_BT[:, None, :, None]
        middle_mask = _within_runs(mask, of_targets(runs)[:, 0, :, 0], of_sources(runs)[:, 0, :, 0])
    middle = attend(of_targets(q_BHTK), of_sources(k_BGTK), of_sources(v_BGTK), middle_mask)
    parts = [
        product(slice(0, block), slice(0, block), mask[:, :, before:]),
        middle.unflatten(0, (len(q_BHTK), -1)).transpose(1, 2).flatten(2, 3),
    ]
    if whole < time:
        rest = time - whole
        parts.append(product(slice(whole, time), slice(whole - before, time), mask[:, :rest, : before + rest]))
    return torch.cat(parts, dim=2)


def _within_runs(mask: Tensor, targets: Tensor, sources: Tensor) -> Tensor:
    """The mask (1, T, S) where target (B, T) and source (B, S) are of one run."""
    return mask & (targets[:, :, None] == sources[:, None, :])


def _blocks(x_BHTK: Tensor, size: int, step: int) -> Tensor:
    """Overlapping blocks of `size` positions, one every `step`, in the batch: (B * blocks, H, size, K)."""
    return x_BHTK.unfold(2, size, step).permute(0, 2, 1, 4, 3).flatten(0, 1)
