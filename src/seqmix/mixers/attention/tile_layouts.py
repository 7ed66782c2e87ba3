"""Tiles of targets and where their sources are: around them, for a window, or listed one by one.

Shapes: B batch, T time, K head width, G groups of heads; N tiles, L targets of a tile, S sources of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 64
"""Targets of a tile: with fewer the products are small, with more the sources that only some of them see are many."""
SCORES_AT_ONCE = 320 * 1024
"""Scores that each thread works on together: with as many gradients they take 2.5 megabytes."""


@dataclass(frozen=True)
class Chunk:
    """Tiles that are worked on together.

    tiles: their places, a slice or indices. hidden: bool (N or 1, L, S), what is not seen. key: where the sources are.
    """

    tiles: slice | Tensor
    hidden: Tensor | None
    key: tuple[int, int, int]


def _tiles_at_once(sources: int, repeats: int) -> int:
    return max(1, torch.get_num_threads() * SCORES_AT_ONCE // (sources * TILE * repeats))


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
        bias = torch.zeros(self.never.shape, device=device).masked_fill_(self.never, -math.inf)
        # Only the tiles at the window's ends hold what is never seen.
        self.ends = [
            (slice(first, first + TILE), bias[:, first : first + TILE])
            for first in range(0, self.width, TILE)
            if bool(self.never[:, first : first + TILE].any())
        ]
        self.distances = ahead.abs() * spacing

    def chunks(self, row: int, repeats: int) -> Iterator[Chunk]:
        size = _tiles_at_once(self.width, repeats)
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
            size = _tiles_at_once(sources.shape[1], repeats)
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
