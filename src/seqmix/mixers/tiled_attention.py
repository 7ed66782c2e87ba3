"""softmax(Q K^T / sqrt(K)) V over few links, by tiles: neighbouring targets share the sources that any of them sees.

A tile of targets meets its sources in one product; what a target does not see of them is left out of its softmax.
A few tiles are worked on at a time, so that their scores stay in the cache, and the backward pass forms the scores
again from the logarithm of each row's sum (FlashAttention-2, arXiv 2307.08691). Time grows as T * S, memory as T.

Shapes: B batch, H heads, G groups of heads that share keys and values, R heads of a group, T time, K head width;
N tiles, L targets of a tile, S sources of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 64
"""Targets of a tile: with fewer the products are small, with more the sources that only some of them see are many."""
SCORES_AT_ONCE = 160 * 1024
"""Scores worked on together: with as many gradients they take a little over a megabyte."""
LOWEST = -1e30
"""Stands for the largest score of a row that sees nothing, so that no difference of infinities is formed."""


@dataclass(frozen=True)
class Chunk:
    """Tiles that are worked on together.

    tiles: their places, a slice or indices. hidden: bool (N or 1, L, S), what is not seen. key: where the sources are.
    """

    tiles: slice | Tensor
    hidden: Tensor | None
    key: tuple[int, int, int]


class Near:
    """Tiles whose sources are the positions around them: a window.

    Args:
        before, after: positions on either side that a target sees besides itself.
        spacing: how far neighbouring positions really are from each other.
        runs: (1 or B, T), equal exactly within what nothing leaves; None for all.
    """

    def __init__(
        self, time: int, before: int, after: int, spacing: int, runs: Tensor | None, device: torch.device
    ) -> None:
        self.time, self.runs = time, runs
        self.num_tiles = -(-time // TILE)
        self.left, self.right = -(-before // TILE), -(-after // TILE)
        self.width = (self.left + 1 + self.right) * TILE
        targets = torch.arange(TILE, device=device)[:, None] + self.left * TILE
        ahead = torch.arange(self.width, device=device) - targets
        self.never = (ahead < -before) | (ahead > after)
        self.distances = ahead.abs() * spacing

    def chunks(self, row: int, repeats: int) -> Iterator[Chunk]:
        size = max(1, SCORES_AT_ONCE // (self.width * TILE * repeats))
        runs = None
        if self.runs is not None:
            runs = self._padded(self.runs[row if len(self.runs) > 1 else 0][:, None], -1)[..., 0]
        for first in range(0, self.num_tiles, size):
            last = min(first + size, self.num_tiles)
            yield Chunk(slice(first, last), self._hidden(first, last, runs), (first, last, self.width))

    def _hidden(self, first: int, last: int, runs: Tensor | None) -> Tensor | None:
        """What is outside of the sequence, or of another run; None in the middle of a single run."""
        if runs is not None:
            sources = self._blocks(runs[:, None], first, last)[..., 0]
            targets = sources[:, self.left * TILE : (self.left + 1) * TILE]
            return (targets[:, :, None] != sources[:, None, :]) | self.never
        if first >= self.left and (last + self.right) * TILE <= self.time:
            return None
        device = self.never.device
        starts = (torch.arange(first, last, device=device) - self.left) * TILE
        places = starts[:, None] + torch.arange(self.width, device=device)
        return ((places < 0) | (places >= self.time))[:, None, :]

    def _padded(self, x_TK: Tensor, value: float = 0.0) -> Tensor:
        """With whole tiles, and those on either side that the first and the last one look at."""
        behind = (self.num_tiles + self.right) * TILE - self.time
        return F.pad(x_TK, (0, 0, self.left * TILE, behind), value=value).contiguous()

    def _blocks(self, padded: Tensor, first: int, last: int) -> Tensor:
        """The sources (N, S, K) of some tiles: a view whose tiles overlap."""
        step, width = padded.stride(), padded.shape[1]
        return padded.as_strided(
            (last - first, self.width, width),
            (TILE * step[0], *step),
            padded.storage_offset() + first * TILE * step[0],
        )

    def prepare(self, x_TK: Tensor) -> Tensor:
        return self._padded(x_TK)

    def take(self, prepared: Tensor, chunk: Chunk) -> Tensor:
        return self._blocks(prepared, *chunk.key[:2])

    def distance(self, chunk: Chunk) -> Tensor:
        return self.distances[None]

    def total(self, prepared: Tensor) -> Tensor:
        return torch.zeros_like(prepared)

    def add(self, total: Tensor, chunk: Chunk, gradient_NSK: Tensor) -> None:
        first, last, _ = chunk.key
        width = gradient_NSK.shape[-1]
        tiles = total.view(-1, TILE, width)
        parts = gradient_NSK.view(last - first, -1, TILE, width)
        for shift in range(parts.shape[1]):
            tiles[first + shift : last + shift].add_(parts[:, shift])

    def finish(self, total: Tensor) -> Tensor:
        return total[self.left * TILE : self.left * TILE + self.time]


@dataclass(frozen=True)
class Lists:
    """Tiles and the sources of each, by groups with equally many sources; all tensors are flat.

    tiles: which tile, for each tile of each group. sources: positions, for each of those. hidden: for each of those
    and each target. sizes: (row, tiles, sources) of each group, row -1 for all rows. order: the position of each
    place in the tiles, None where tiles are consecutive positions.
    """

    tiles: Tensor
    sources: Tensor
    hidden: Tensor
    sizes: Sequence[int]
    order: Tensor | None

    @property
    def num_links(self) -> int:
        """Pairs of target and source over the rows that are listed."""
        return int(self.hidden.numel() - self.hidden.sum())


class Listed:
    """Tiles whose sources are listed one by one."""

    def __init__(self, time: int, lists: Lists) -> None:
        self.time, self.lists = time, lists
        self.num_tiles = -(-time // TILE)
        self.groups: list[tuple[int, Tensor, Tensor, Tensor]] = []
        places = [0, 0, 0]
        for row, tiles, sources in zip(*(lists.sizes[i::3] for i in range(3)), strict=True):
            counts = (tiles, tiles * sources, tiles * TILE * sources)
            flat = (lists.tiles, lists.sources, lists.hidden)
            one, two, three = (x[p : p + n] for x, p, n in zip(flat, places, counts, strict=True))
            places = [p + n for p, n in zip(places, counts, strict=True)]
            self.groups.append((row, one, two.view(tiles, sources), three.view(tiles, TILE, sources)))

    def chunks(self, row: int, repeats: int) -> Iterator[Chunk]:
        for index, (of_row, tiles, sources, hidden) in enumerate(self.groups):
            if of_row not in (-1, row):
                continue
            size = max(1, SCORES_AT_ONCE // (sources.shape[1] * TILE * repeats))
            for first in range(0, len(tiles), size):
                last = min(first + size, len(tiles))
                yield Chunk(tiles[first:last], hidden[first:last], (index, first, last))

    def _sources(self, chunk: Chunk) -> Tensor:
        index, first, last = chunk.key
        return self.groups[index][2][first:last]

    def prepare(self, x_TK: Tensor) -> Tensor:
        return x_TK

    def take(self, prepared: Tensor, chunk: Chunk) -> Tensor:
        sources = self._sources(chunk)
        return prepared.index_select(0, sources.flatten()).view(*sources.shape, -1)

    def distance(self, chunk: Chunk) -> Tensor:
        assert isinstance(chunk.tiles, Tensor)
        sources = self._sources(chunk)
        targets = chunk.tiles[:, None] * TILE + torch.arange(TILE, device=sources.device)
        if self.lists.order is not None:
            targets, sources = self.lists.order[targets.clamp(max=self.time - 1)], self.lists.order[sources]
        return (targets[:, :, None] - sources[:, None, :]).abs()

    def total(self, prepared: Tensor) -> list[tuple[Tensor, Tensor]]:
        return []

    def add(self, total: list[tuple[Tensor, Tensor]], chunk: Chunk, gradient_NSK: Tensor) -> None:
        total.append((self._sources(chunk).flatten(), gradient_NSK.flatten(0, 1).clone()))

    def finish(self, total: list[tuple[Tensor, Tensor]]) -> Tensor:
        sources, gradients = (torch.cat(parts) for parts in zip(*total, strict=True))
        # Adds the rows of each index in parallel, which index_add_ does one after another on a CPU.
        return torch.ops.aten.embedding_dense_backward(gradients, sources, self.time, -1, False)


Layout = Near | Listed


def _in_tiles(x_BHTK: Tensor, groups: int, num_tiles: int) -> Tensor:
    """(B, H, T, K) to (B, G, N, R * L, K) in float32, with zeros behind."""
    x, missing = x_BHTK.float(), num_tiles * TILE - x_BHTK.shape[2]
    x = F.pad(x, (0, 0, 0, missing)) if missing else x
    return x.unflatten(1, (groups, -1)).unflatten(3, (num_tiles, TILE)).transpose(2, 3).flatten(3, 4).contiguous()


def _from_tiles(x_BGNLK: Tensor, time: int) -> Tensor:
    """(B, G, N, R * L, K) to (B, H, T, K)."""
    return x_BGNLK.unflatten(3, (-1, TILE)).transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :, :time]


def _scores(
    q_NLK: Tensor, k_NSK: Tensor, chunk: Chunk, layout: Layout, bias: Tensor | None, slopes_R: Tensor | None
) -> Tensor:
    """(N, R * L, S), minus infinity where nothing is seen."""
    scores = torch.bmm(q_NLK, k_NSK.transpose(1, 2))
    if bias is not None:
        scores += bias
    by_head = scores.unflatten(1, (-1, TILE))
    if slopes_R is not None:
        by_head -= slopes_R[:, None, None] * layout.distance(chunk)[:, None]
    if chunk.hidden is not None:
        by_head.masked_fill_(chunk.hidden[:, None], -math.inf)
    return scores


def _product_into(out_NLK: Tensor, chunk: Chunk, left_NLS: Tensor, right_NSK: Tensor) -> None:
    if isinstance(chunk.tiles, slice):
        torch.bmm(left_NLS, right_NSK, out=out_NLK[chunk.tiles])
    else:
        out_NLK[chunk.tiles] = torch.bmm(left_NLS, right_NSK)


def _walk(
    layout: Layout, batch: int, groups: int, heads: int, slopes_H: Tensor | None, like: Tensor
) -> Iterator[tuple[int, int, Callable[[Tensor, Tensor, Chunk], Tensor], list[Chunk]]]:
    """Rows and groups, with how their scores are made and their chunks."""
    repeats = heads // groups
    bias = None
    if isinstance(layout, Near):
        bias = torch.zeros_like(layout.never, dtype=torch.float32).masked_fill_(layout.never, -math.inf)
        bias = bias.repeat(repeats, 1)
    slopes_GR = None if slopes_H is None else slopes_H.float().view(groups, repeats)
    for row in range(batch):
        chunks = list(layout.chunks(row, repeats))
        for group in range(groups):
            slopes = None if slopes_GR is None else slopes_GR[group]

            def scores(q: Tensor, k: Tensor, chunk: Chunk, slopes: Tensor | None = slopes) -> Tensor:
                return _scores(q, k, chunk, layout, bias, slopes)

            yield row, group, scores, chunks


def mix_tiles(
    layout: Layout, slopes_H: Tensor | None, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor
) -> tuple[Tensor, Tensor]:
    """The values mixed, (B, H, T, K), and the logarithm of each row's sum, (B, G, N, R * L, 1), for the backward."""
    (batch, heads, time, width), groups = q_BHTK.shape, k_BGTK.shape[1]
    q = _in_tiles(q_BHTK * width**-0.5, groups, layout.num_tiles)
    mixed, (sums, scale) = torch.empty_like(q), q.new_empty(2, *q.shape[:-1], 1).unbind()
    for row, group, scores, chunks in _walk(layout, batch, groups, heads, slopes_H, q):
        keys, values = (layout.prepare(x[row, group].float()) for x in (k_BGTK, v_BGTK))
        for chunk in chunks:
            weights = scores(q[row, group][chunk.tiles], layout.take(keys, chunk), chunk)
            largest = weights.amax(dim=-1, keepdim=True).clamp_(min=LOWEST)
            total = weights.sub_(largest).exp_().sum(dim=-1, keepdim=True).clamp_(min=torch.finfo(q.dtype).tiny)
            _product_into(mixed[row, group], chunk, weights, layout.take(values, chunk))
            scale[row, group][chunk.tiles] = total
            sums[row, group][chunk.tiles] = largest.add_(total.log())
    return _from_tiles(mixed.div_(scale), time).to(q_BHTK.dtype).contiguous(), sums


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
    q, grad = (_in_tiles(x, groups, layout.num_tiles) for x in (q_BHTK * width**-0.5, grad_BHTK))
    inner = _in_tiles((grad_BHTK.float() * mixed_BHTK.float()).sum(dim=-1, keepdim=True), groups, layout.num_tiles)
    of_q = torch.empty_like(q)
    of_k, of_v = (torch.empty_like(x, dtype=torch.float32) for x in (k_BGTK, v_BGTK))
    for row, group, scores, chunks in _walk(layout, batch, groups, heads, slopes_H, q):
        keys, values = (layout.prepare(x[row, group].float()) for x in (k_BGTK, v_BGTK))
        totals: tuple[Any, Any] = (layout.total(keys), layout.total(values))
        for chunk in chunks:
            k_NSK, q_NLK, grad_NLK = layout.take(keys, chunk), q[row, group][chunk.tiles], grad[row, group][chunk.tiles]
            weights = scores(q_NLK, k_NSK, chunk).sub_(sums[row, group][chunk.tiles]).exp_()
            layout.add(totals[1], chunk, torch.bmm(weights.transpose(1, 2), grad_NLK))
            of_scores = torch.bmm(grad_NLK, layout.take(values, chunk).transpose(1, 2))
            of_scores.sub_(inner[row, group][chunk.tiles]).mul_(weights)
            _product_into(of_q[row, group], chunk, of_scores, k_NSK)
            layout.add(totals[0], chunk, torch.bmm(of_scores.transpose(1, 2), q_NLK))
        of_k[row, group], of_v[row, group] = (layout.finish(total) for total in totals)
    of_q = _from_tiles(of_q, time) * width**-0.5
    return tuple(x.to(like.dtype).contiguous() for x, like in ((of_q, q_BHTK), (of_k, k_BGTK), (of_v, v_BGTK)))  # type: ignore[return-value]
