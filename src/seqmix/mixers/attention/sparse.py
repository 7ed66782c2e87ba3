"""Attention over a pattern of links, by the form that suits: written out, by tiles, or FlexAttention on a GPU.

The written-out form is the specification and the one for short sequences; it forms all pairs and hides those that
are no links. The others do work for links alone, so that their time grows as T times the links of a position.

Shapes: B batch, H heads, G groups of heads that share keys and values, T time, K head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.documents import Placement
from seqmix.mixers.attention.product import attend
from seqmix.mixers.attention.slots import Cached, visible
from seqmix.mixers.attention.tile_layouts import TILE
from seqmix.mixers.attention.tile_lists import stride_of, tile_lists, tile_order, whole_lists
from seqmix.mixers.attention.tile_operator import tiled_attention
from seqmix.mixers.links.parts import Global, Random, Window
from seqmix.mixers.links.pattern import Pattern


def alibi_slopes(heads: int, device: torch.device | None = None) -> Tensor:
    """(H,): 2^(-8 i / H) for i = 1 ... H (arXiv 2108.12409); for other numbers than powers of two, those of the next
    smaller power and then every second one of the next larger, as the paper's code has it."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2 ** (-4 * i / power) for i in range(1, 2 * (heads - power), 2)]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


def alibi(slopes_H: Tensor, targets: Tensor, sources: Tensor, dtype: torch.dtype) -> Tensor:
    """(B or 1, H, T, S): what is added to the scores of targets (B or 1, T) for sources (B or 1, S)."""
    distance = (targets[:, None, :, None] - sources[:, None, None, :]).abs()
    return -slopes_H.to(dtype)[:, None, None] * distance.to(dtype)


def attend_by_links(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    pattern: Pattern | None,
    *,
    causal: bool,
    positions: Tensor,
    runs: Tensor | None = None,
    slopes_H: Tensor | None = None,
) -> Tensor:
    """The values mixed over a whole sequence, (B, H, T, K).

    Args:
        pattern: None for all links. positions: (B or 1, T), within the document.
        runs: (B, T), equal exactly within one document, which nothing leaves; None for a single one.
        slopes_H: of ALiBi.
    """
    if pattern is not None and not pattern.is_full and _pays(pattern, q_BHTK, causal):
        if q_BHTK.device.type == "cuda":
            from seqmix.mixers.attention.flex import attend_by_blocks, can_run

            if can_run(q_BHTK):
                return attend_by_blocks(q_BHTK, k_BGTK, v_BGTK, pattern, causal, positions, runs, slopes_H)
        only = pattern.single_window
        if only is not None:
            return _by_window(q_BHTK, k_BGTK, v_BGTK, only, causal, positions, runs, slopes_H)
        if not torch.compiler.is_compiling():
            return _by_lists(q_BHTK, k_BGTK, v_BGTK, pattern, causal, runs, slopes_H)
    if pattern is None and runs is None and slopes_H is None:
        return attend(q_BHTK, k_BGTK, v_BGTK, is_causal=causal)
    mask = _mask(pattern, causal, positions, runs)
    bias = None if slopes_H is None else alibi(slopes_H, positions, positions, q_BHTK.dtype)
    return attend(q_BHTK, k_BGTK, v_BGTK, mask, bias=bias)


def attend_to_cached(
    q_BHTK: Tensor, cached: Cached, placement: Placement, pattern: Pattern | None, slopes_H: Tensor | None
) -> Tensor:
    """The values mixed of a piece and of what a state holds before it, causally, (B, H, T, K)."""
    keys, values = cached.stored
    only = None if pattern is None else pattern.single_window
    if pattern is not None and only is not None and _pays(pattern, q_BHTK, causal=True):
        return _by_window_after(q_BHTK, cached, placement, only, slopes_H)
    targets = placement.positions[: len(cached.positions)]
    mask, bias = links_and_bias(pattern, targets, cached.positions, visible(cached, placement), slopes_H, q_BHTK.dtype)
    return attend(q_BHTK, keys, values, mask, bias=bias)


def links_and_bias(
    pattern: Pattern | None,
    targets: Tensor,
    sources: Tensor,
    mask: Tensor | None,
    slopes_H: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """The causal links among `mask` (B or 1, T, S), None for all, and the bias of ALiBi.

    Targets and sources are positions, (B or 1, T) and (B or 1, S).
    """
    if pattern is not None:
        links = pattern.allows(targets[:, :, None], sources[:, None, :], causal=True)
        mask = links if mask is None else mask & links
    return mask, None if slopes_H is None else alibi(slopes_H, targets, sources, dtype)


def _by_window_after(
    q_BHTK: Tensor, cached: Cached, placement: Placement, window: Window, slopes_H: Tensor | None
) -> Tensor:
    """A window over a piece and the ring before it, which is put in order; queries stand for it that nothing reads."""
    past = cached.positions.shape[1] - q_BHTK.shape[2]
    held, order = cached.positions[:, :past].sort(dim=1)
    keys, values = (
        torch.cat([x[:, :, :past].take_along_dim(order[:, None, :, None], dim=2), x[:, :, past:]], dim=2)
        for x in cached.stored
    )
    # Slots that hold nothing come first, and are of no document.
    runs = torch.cat([torch.where(held < 0, -1, 0), cached.runs[:, past:]], dim=1)
    q = F.pad(q_BHTK, (0, 0, past, 0))
    return _by_window(q, keys, values, window, True, placement.positions, runs, slopes_H)[:, :, past:]


def _mask(pattern: Pattern | None, causal: bool, positions: Tensor, runs: Tensor | None) -> Tensor | None:
    """bool (B or 1, T, T): the links, one document; None for all."""
    targets, sources = positions[:, :, None], positions[:, None, :]
    mask = targets >= sources if causal else None
    if pattern is not None:
        mask = pattern.allows(targets, sources, causal=causal)
    if runs is None:
        return mask
    same = runs[:, :, None] == runs[:, None, :]
    return same if mask is None else mask & same


def _pays(pattern: Pattern, q_BHTK: Tensor, causal: bool) -> bool:
    """Whether tiles meet so few sources that their work is less than half of that for all pairs."""
    time = q_BHTK.shape[2]
    if q_BHTK.dtype == torch.float64 or time < 2 * TILE:
        return False
    sources = 0
    for part in pattern.parts:
        if isinstance(part, Window):
            around = TILE + part.size * part.block * (1 if causal else 2)
            sources += around * (part.dilation if part.dilation != stride_of(pattern) else 1)
        elif isinstance(part, Global):
            sources += sum(b - a for a, b in part.spans)
        elif isinstance(part, Random):
            sources += part.count * max(part.block, TILE) * (1 if causal else 2)
    return 2 * sources <= time


def _by_window(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    window: Window,
    causal: bool,
    positions: Tensor,
    runs: Tensor | None,
    slopes_H: Tensor | None,
) -> Tensor:
    batch, _, time, _ = q_BHTK.shape
    order = None
    links = 0 if torch.compiler.is_compiling() else _window_links(window, causal, batch, positions)
    if window.dilation > 1:
        # Positions with one remainder are a sequence of their own, in which the window has no gaps.
        order = tile_order(time, window.dilation, q_BHTK.device)
        remainder = order % window.dilation
        runs = remainder[None] if runs is None else runs[:, order] * window.dilation + remainder
    near = [window.size - 1, 0 if causal else window.size - 1, window.dilation]
    return tiled_attention(q_BHTK, k_BGTK, v_BGTK, slopes_H, runs, order, None, None, None, [], near, links)[0]


def _window_links(window: Window, causal: bool, batch: int, positions: Tensor) -> int:
    """Pairs of target and source over all rows."""
    seen = (positions // window.dilation).clamp(max=window.size - 1) + 1
    links = int(seen.sum()) * (batch // len(positions))
    return links if causal else 2 * links - batch * positions.shape[1]


def _by_lists(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    pattern: Pattern,
    causal: bool,
    runs: Tensor | None,
    slopes_H: Tensor | None,
) -> Tensor:
    batch, _, time, _ = q_BHTK.shape
    if runs is None:
        lists = whole_lists(pattern, time, causal, q_BHTK.device)
        links = batch * lists.num_links
    else:
        lists = tile_lists(pattern, runs, causal=causal)
        links = lists.num_links
    return tiled_attention(
        q_BHTK,
        k_BGTK,
        v_BGTK,
        slopes_H,
        None,
        lists.order,
        lists.tiles,
        lists.sources,
        lists.hidden,
        list(lists.sizes),
        [],
        links,
    )[0]
