"""Which sources the tiles of a pattern of links need: listed from the pattern's parts, never from all pairs.

Every part gives ranges of positions for each piece of a tile (the targets of a tile that are of one document). The
ranges of a tile are united, and tiles with about equally many sources form a group.

Shapes: T time, P pieces, N tiles, L targets of a tile, S sources of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from seqmix.mixers.attention.tile_layouts import TILE, Lists
from seqmix.mixers.links.parts import Global, Random, Window
from seqmix.mixers.links.pattern import Pattern

GROWTH = 1.25
"""Tiles of a group have at most so many times the sources of each other, which bounds the padding."""
LINKS_AT_ONCE = 1 << 21
"""Pairs of target and source that are looked at together."""


class Pieces(NamedTuple):
    """The targets of each tile that are of one document (and one residue): all (P,).

    tile: its tile. start: where its document begins. length: that document's. lowest, highest: positions of the first
    and the last target within the document.
    """

    tile: Tensor
    start: Tensor
    length: Tensor
    lowest: Tensor
    highest: Tensor


class Ranges(NamedTuple):
    """Sources `first`, `first + step`, ... up to `last` of a tile; positions of the row, all (any number,)."""

    tile: Tensor
    first: Tensor
    last: Tensor
    step: int


class Row(NamedTuple):
    """A row of packed documents. runs, start, length, position: (T,), of each place's document. order: (T,) or None.

    order: the place of the row at each place in the tiles. place: the inverse.
    """

    runs: Tensor
    start: Tensor
    length: Tensor
    position: Tensor
    order: Tensor
    place: Tensor
    stride: int

    @property
    def time(self) -> int:
        return len(self.runs)


def stride_of(pattern: Pattern) -> int:
    """The largest dilation: targets that far apart share sources, so they stand side by side in the tiles."""
    return max((part.dilation for part in pattern.parts if isinstance(part, Window)), default=1)


def tile_order(time: int, stride: int, device: torch.device) -> Tensor:
    """(T,): the positions by their remainder."""
    steps = torch.arange(time, device=device)
    return torch.cat([steps[remainder::stride] for remainder in range(stride)])


def _row(runs: Tensor, stride: int) -> Row:
    time = len(runs)
    steps = torch.arange(time, device=runs.device)
    is_first = torch.ones_like(runs, dtype=torch.bool)
    is_first[1:] = runs[1:] != runs[:-1]
    document = is_first.cumsum(0) - 1
    start = is_first.nonzero()[:, 0]
    length = torch.diff(start, append=start.new_tensor([time]))
    order = tile_order(time, stride, runs.device)
    place = torch.empty_like(order)
    place[order] = steps
    return Row(runs, start[document], length[document], steps - start[document], order, place, stride)


def _pieces(row: Row) -> tuple[Pieces, Tensor]:
    """The pieces, and bool (T,): whether a place in the tiles is the first of one."""
    tile = torch.arange(row.time, device=row.order.device) // TILE
    runs, residue = row.runs[row.order], row.order % row.stride
    is_first = torch.ones_like(tile, dtype=torch.bool)
    is_first[1:] = (tile[1:] != tile[:-1]) | (runs[1:] != runs[:-1]) | (residue[1:] != residue[:-1])
    first = is_first.nonzero()[:, 0]
    last = torch.cat([first[1:], first.new_tensor([row.time])]) - 1
    at = row.order[first]
    pieces = Pieces(tile[first], row.start[at], row.length[at], row.position[at], row.position[row.order[last]])
    return pieces, is_first


def _clipped(pieces: Pieces, first: Tensor, last: Tensor, step: int, causal: bool) -> Ranges:
    """Ranges of positions of a document, as positions of the row, without what is outside or ahead."""
    first = torch.where(first < 0, first.remainder(step), first)
    last = last.minimum(pieces.highest if causal else pieces.length - 1)
    return Ranges(pieces.tile, first + pieces.start, last + pieces.start, step)


def _ranges(pattern: Pattern, row: Row, causal: bool) -> Iterator[Ranges]:
    pieces, is_first = _pieces(row)
    lowest, highest = pieces.lowest, pieces.highest
    yield _clipped(pieces, lowest, highest, row.stride, causal)
    for part in pattern.parts:
        if isinstance(part, Window) and part.block > 1:
            begin = lowest // part.block - part.size + 1
            end = highest // part.block + part.size
            yield _clipped(pieces, (begin * part.block).clamp(min=0), end * part.block - 1, 1, causal)
        elif isinstance(part, Window):
            span = (part.size - 1) * part.dilation
            # Sources of targets that stand `stride` apart.
            step = math.gcd(part.dilation, row.stride)
            yield _clipped(pieces, lowest - span, highest + span, step, causal)
        elif isinstance(part, Global):
            for a, b in part.spans:
                yield _clipped(pieces, torch.full_like(lowest, a), torch.full_like(lowest, b - 1), 1, causal)
                has_one = (lowest < b) & (highest >= a)
                some = Pieces(*(field[has_one] for field in pieces))
                yield _clipped(some, torch.zeros_like(some.tile), some.highest.clone().fill_(row.time), 1, causal)
        elif isinstance(part, Random):
            yield _drawn(part, row, is_first)
            if not causal:
                yield _drawing(part, row)


def _drawn(part: Random, row: Row, is_first: Tensor) -> Ranges:
    """The blocks that the targets of a piece draw."""
    units = row.position[row.order] // part.block
    leads = is_first.clone()
    leads[1:] |= units[1:] != units[:-1]
    at = row.order[leads]
    drawn = torch.stack(part.draws(units[leads]), dim=1)
    valid = drawn >= 0
    tile = (row.place[at] // TILE)[:, None].expand_as(drawn)[valid]
    first = (drawn * part.block + row.start[at][:, None])[valid]
    return Ranges(tile, first, first + part.block - 1, 1)


def _drawing(part: Random, row: Row) -> Ranges:
    """The blocks by which the targets of a tile are drawn."""
    units = row.position // part.block
    leads = row.position % part.block == 0
    begins = leads.nonzero()[:, 0]
    drawn = torch.stack(part.draws(units[leads]), dim=1)
    start, length = row.start[leads][:, None], row.length[leads][:, None]
    targets = drawn[..., None] * part.block + torch.arange(part.block, device=drawn.device)
    valid = (drawn >= 0)[..., None] & (targets < length[..., None])
    tile = row.place[(targets + start[..., None])[valid]] // TILE
    first = begins[:, None, None].expand_as(targets)[valid]
    pairs = torch.unique(tile * row.time + first)
    tile, first = pairs // row.time, pairs % row.time
    last = (first + part.block - 1).minimum(row.start[first] + row.length[first] - 1)
    return Ranges(tile, first, last, 1)


def _keys(ranges: Ranges, row: Row) -> Tensor:
    """tile * T + place in the tiles, for each source of each range."""
    tile, first, last, step = ranges
    counts = ((last - first) // step + 1).clamp(min=0)
    which = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    within = torch.arange(len(which), device=which.device) - (counts.cumsum(0) - counts)[which]
    return tile[which] * row.time + row.place[first[which] + within * step]


def _listed(pattern: Pattern, runs: Tensor, causal: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Tiles (N,), sources (N, S) and what is hidden (N, L, S), of each group of tiles of one row (T,)."""
    row = _row(runs, stride_of(pattern))
    time = row.time
    keys = torch.unique(torch.cat([_keys(ranges, row) for ranges in _ranges(pattern, row, causal)]))
    counts = torch.bincount(keys // time, minlength=-(-time // TILE))
    begins = counts.cumsum(0) - counts
    sources = keys % time
    classes = (counts.double().log() / math.log(GROWTH)).ceil()
    groups: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for one in classes.unique():
        tiles = (classes == one).nonzero()[:, 0]
        slots = torch.arange(int(counts[tiles].max()), device=runs.device)
        exists = slots < counts[tiles, None]
        listed = sources[torch.where(exists, begins[tiles, None] + slots, 0)]
        hidden = torch.empty(len(tiles), TILE, len(slots), dtype=torch.bool, device=runs.device)
        size = max(1, LINKS_AT_ONCE // (TILE * len(slots)))
        for first in range(0, len(tiles), size):
            some = slice(first, first + size)
            hidden[some] = ~_seen(pattern, row, tiles[some], listed[some], exists[some], causal)
        for group, tensor in zip(groups, (tiles, listed, hidden), strict=True):
            group.append(tensor)
    return groups


def _seen(pattern: Pattern, row: Row, tiles: Tensor, listed: Tensor, exists: Tensor, causal: bool) -> Tensor:
    """bool (N, L, S)."""
    places = tiles[:, None] * TILE + torch.arange(TILE, device=tiles.device)
    is_inside = places < row.time
    targets, sources = row.order[places.clamp(max=row.time - 1)], row.order[listed]
    seen = pattern.allows(row.position[targets][:, :, None], row.position[sources][:, None, :], causal=causal)
    seen &= row.runs[targets][:, :, None] == row.runs[sources][:, None, :]
    return seen & is_inside[:, :, None] & exists[:, None, :]


def tile_lists(pattern: Pattern, runs_BT: Tensor, *, causal: bool) -> Lists:
    """The lists for rows of packed documents, runs (B, T) being equal exactly within one document."""
    flat: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    sizes: list[int] = []
    for index, runs in enumerate(runs_BT):
        for tiles, sources, hidden in zip(*_listed(pattern, runs, causal), strict=True):
            sizes += [index, *sources.shape]
            for tensors, tensor in zip(flat, (tiles, sources, hidden), strict=True):
                tensors.append(tensor.flatten())
    stride = stride_of(pattern)
    order = tile_order(runs_BT.shape[1], stride, runs_BT.device) if stride > 1 else None
    tiles, sources, hidden = (torch.cat(tensors) for tensors in flat)
    return Lists(tiles, sources, hidden, sizes, order)


@lru_cache(maxsize=8)
def whole_lists(pattern: Pattern, time: int, causal: bool, device: torch.device) -> Lists:
    """The lists for a single document, the same for every row."""
    # Tensors made in inference mode could not be kept for a backward pass.
    with torch.inference_mode(False), torch.no_grad():
        lists = tile_lists(pattern, torch.zeros(1, time, dtype=torch.int64, device=device), causal=causal)
    return replace(lists, sizes=[-1 if index % 3 == 0 else size for index, size in enumerate(lists.sizes)])
