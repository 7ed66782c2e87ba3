"""softmax(Q K^T / sqrt(K)) V over few links, by tiles: neighbouring targets share the sources that any of them sees.

A tile of targets meets its sources in one product; what a target does not see of them is left out of its softmax.
A few tiles are worked on at a time, so that their scores stay in the cache, and the backward pass forms the scores
again from the logarithm of each row's sum (FlashAttention-2, arXiv 2307.08691). Time grows as T * S, memory as T.

Shapes: B batch, H heads, G groups of heads that share keys and values, R heads of a group, T time, K head width;
N tiles, L targets of a tile, S sources of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.mixers.attention.tile_layouts import TILE, Chunk, Layout, Near

LOWEST = -1e30
"""Stands for the largest score of a row that sees nothing, so that no difference of infinities is formed."""


def _in_tiles(x_BHTK: Tensor, groups: int, num_tiles: int) -> Tensor:
    """(B, H, T, K) to (B, G, N, R * L, K) in float32, with zeros behind."""
    x, missing = x_BHTK.float(), num_tiles * TILE - x_BHTK.shape[2]
    x = F.pad(x, (0, 0, 0, missing)) if missing else x
    return x.unflatten(1, (groups, -1)).unflatten(3, (num_tiles, TILE)).transpose(2, 3).flatten(3, 4).contiguous()


def _from_tiles(x_BGNLK: Tensor, time: int) -> Tensor:
    """(B, G, N, R * L, K) to (B, H, T, K)."""
    return x_BGNLK.unflatten(3, (-1, TILE)).transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :, :time]


def _scores(
    q_NLK: Tensor, k_NSK: Tensor, chunk: Chunk, layout: Layout, slopes_R: Tensor | None, scale: float
) -> Tensor:
    """(N, R * L, S), minus infinity where nothing is seen."""
    scores = _product(q_NLK, k_NSK.transpose(1, 2), scale)
    by_head = scores.unflatten(1, (-1, TILE))
    if isinstance(layout, Near):
        for columns, bias in layout.ends:
            by_head[..., columns] += bias
    if slopes_R is not None:
        by_head -= slopes_R[:, None, None] * layout.distance(chunk)[:, None]
    if chunk.hidden is not None:
        by_head.masked_fill_(chunk.hidden[:, None], -math.inf)
    return scores


def _product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * left @ right for each of N; what `out` holds before has no part in it."""
    out = left.new_empty(len(left), left.shape[1], right.shape[2]) if out is None else out
    return torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _product_into(out_NLK: Tensor, chunk: Chunk, left_NLS: Tensor, right_NSK: Tensor, scale: float = 1.0) -> None:
    if isinstance(chunk.tiles, slice):
        _product(left_NLS, right_NSK, scale, out_NLK[chunk.tiles])
    else:
        out_NLK[chunk.tiles] = _product(left_NLS, right_NSK, scale)


def _walk(
    layout: Layout, batch: int, groups: int, slopes_H: Tensor | None, repeats: int
) -> Iterator[tuple[int, int, list[Chunk], Tensor | None]]:
    """Rows and groups, with their chunks and the slopes of the group's heads."""
    slopes_GR = None if slopes_H is None else slopes_H.float().view(groups, repeats)
    for row in range(batch):
        chunks = list(layout.chunks(row, repeats))
        for group in range(groups):
            yield row, group, chunks, None if slopes_GR is None else slopes_GR[group]


def mix_tiles(
    layout: Layout, slopes_H: Tensor | None, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor
) -> tuple[Tensor, Tensor]:
    """The values mixed, (B, H, T, K), and the logarithm of each row's sum, (B, G, N, R * L, 1), for the backward."""
    (batch, heads, time, width), groups = q_BHTK.shape, k_BGTK.shape[1]
    q, scale = _in_tiles(q_BHTK, groups, layout.num_tiles), width**-0.5
    mixed, (sums, totals) = torch.empty_like(q), q.new_empty(2, *q.shape[:-1], 1).unbind()
    for row, group, chunks, slopes in _walk(layout, batch, groups, slopes_H, heads // groups):
        keys, values = (layout.prepare(x[row, group].float()) for x in (k_BGTK, v_BGTK))
        for chunk in chunks:
            weights = _scores(q[row, group][chunk.tiles], layout.take(keys, chunk), chunk, layout, slopes, scale)
            largest = weights.amax(dim=-1, keepdim=True).clamp_(min=LOWEST)
            total = weights.sub_(largest).exp_().sum(dim=-1, keepdim=True).clamp_(min=torch.finfo(q.dtype).tiny)
            _product_into(mixed[row, group], chunk, weights, layout.take(values, chunk))
            totals[row, group][chunk.tiles] = total
            sums[row, group][chunk.tiles] = largest.add_(total.log())
    return _from_tiles(mixed.div_(totals), time).to(q_BHTK.dtype).contiguous(), sums


def mix_tiles_backward(
    layout: Layout,
    slopes_H: Tensor | None,
    sums: Tensor,
    grad_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    mixed_BHTK: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values."""
    (batch, heads, time, width), groups = q_BHTK.shape, k_BGTK.shape[1]
    q, grad = (_in_tiles(x, groups, layout.num_tiles) for x in (q_BHTK, grad_BHTK))
    scale = width**-0.5
    inner = _in_tiles((grad_BHTK.float() * mixed_BHTK.float()).sum(dim=-1, keepdim=True), groups, layout.num_tiles)
    of_q = torch.empty_like(q)
    of_k, of_v = (torch.empty_like(x, dtype=torch.float32) for x in (k_BGTK, v_BGTK))
    for row, group, chunks, slopes in _walk(layout, batch, groups, slopes_H, heads // groups):
        keys, values = (layout.prepare(x[row, group].float()) for x in (k_BGTK, v_BGTK))
        totals: tuple[Any, Any] = (layout.total(keys), layout.total(values))
        for chunk in chunks:
            k_NSK, q_NLK, grad_NLK = layout.take(keys, chunk), q[row, group][chunk.tiles], grad[row, group][chunk.tiles]
            weights = _scores(q_NLK, k_NSK, chunk, layout, slopes, scale)
            weights.sub_(sums[row, group][chunk.tiles]).exp_()
            layout.add(totals[1], chunk, torch.bmm(weights.transpose(1, 2), grad_NLK))
            of_scores = torch.bmm(grad_NLK, layout.take(values, chunk).transpose(1, 2))
            of_scores.sub_(inner[row, group][chunk.tiles]).mul_(weights)
            _product_into(of_q[row, group], chunk, of_scores, k_NSK, scale)
            layout.add(totals[0], chunk, _product(of_scores.transpose(1, 2), q_NLK, scale))
        of_k[row, group], of_v[row, group] = (layout.finish(total) for total in totals)
    grads = ((_from_tiles(of_q, time), q_BHTK), (of_k, k_BGTK), (of_v, v_BGTK))
    return tuple(x.to(like.dtype).contiguous() for x, like in grads)  # type: ignore[return-value]
