"""A state that keeps something for each position read: the keys and values of attention, for example.

Slot p mod slots holds position p of the row's current document, so that padding on the left and earlier
documents take no room. With as many slots as positions that is a plain list; with `window` slots it is a ring. Behind
`kept` slots, which hold the first positions of the document for good, the rest is a ring for those after them.

Shapes: B batch, T time of a piece, S slots, G groups (heads), W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.errors import InputError
from seqmix.kernels.documents import Placement
from seqmix.mixer import State

FIRST_GROWTH = 16
"""Slots that an empty state gets at its first step; later it grows by half, so that copying stays rare."""


@dataclass
class SlotState(State):
    """stored: tensors (batch, groups, slots, width), all with the same slots; those not yet filled are never read.

    shortest, longest: bounds of `position` over the rows, equal only where all rows stand at one position. They
        are plain numbers, so that knowing how many slots are filled does not wait for a device.
    grows: slots are added as needed; otherwise there are as many as the capacity, or as the window.
    """

    stored: tuple[Tensor, ...]
    shortest: int
    longest: int
    grows: bool

    @property
    def slots(self) -> int:
        """The positions there is room for."""
        return self.stored[0].shape[2]

    @property
    def is_even(self) -> bool:
        """Whether all rows are known to stand at one position."""
        return self.shortest == self.longest

    def cat(self, *others: Self) -> Self:
        states = (self, *others)
        slots = max(state.slots for state in states)
        if any(state.slots < min(state.longest, slots) for state in states):
            raise InputError("states of windows of different sizes cannot be joined: keep them apart")
        return type(self)(
            position=torch.cat([state.position for state in states]),
            document=torch.cat([state.document for state in states]),
            stored=tuple(
                torch.cat([widen(tensor, slots) for tensor in tensors])
                for tensors in zip(*(state.stored for state in states), strict=True)
            ),
            shortest=min(state.shortest for state in states),
            longest=max(state.longest for state in states),
            grows=any(state.grows for state in states),
        )


class Cached(NamedTuple):
    """What a state and a piece together offer to the piece.

    stored: tensors (batch, groups, source, width): the filled slots, then the piece.
    positions: (batch or 1, source) int64, -1 where a slot holds nothing; 1 where all rows are alike.
    runs: (batch or 1, source) int64 as in a Placement.
    """

    stored: tuple[Tensor, ...]
    positions: Tensor
    runs: Tensor


def empty_slots(
    batch: int,
    slots: int,
    groups_and_widths: tuple[tuple[int, int], ...],
    *,
    grows: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> SlotState:
    """The state before the first position."""
    count = torch.zeros(batch, dtype=torch.int64, device=device)
    stored = tuple(
        torch.zeros(batch, groups, slots, width, device=device, dtype=dtype) for groups, width in groups_and_widths
    )
    return SlotState(count, count.clone(), stored, 0, 0, grows)


def widen(tensor: Tensor, slots: int) -> Tensor:
    """A tensor (batch, groups, slots, width) with empty slots added; the same one where there are enough."""
    missing = slots - tensor.shape[2]
    return F.pad(tensor, (0, 0, 0, missing)) if missing > 0 else tensor


def held_positions(last: Tensor, slots: int, count: int, kept: int = 0) -> Tensor:
    """The position (batch, count) in each of the first slots when `last` (batch,) is the latest; negative for none."""
    slot = torch.arange(count, device=last.device)
    held = last[:, None] - (last[:, None] - slot).remainder(max(slots - kept, 1))
    if not kept:
        return held
    return torch.where(slot < kept, slot.expand_as(held), held).masked_fill((slot > last[:, None]) | (held < slot), -1)


def held_by(state: SlotState, rows: slice, kept: int = 0) -> Tensor:
    """The position (batch, source) in each slot in use, of some rows; negative for none."""
    return held_positions(state.position[rows] - 1, state.slots, slots_in_use(state), kept)


def slots_in_use(state: SlotState) -> int:
    """How many of the first slots may hold something; all of them while compiling."""
    return state.slots if torch.compiler.is_compiling() else min(state.longest, state.slots)


def gather(state: SlotState | None, pieces: tuple[Tensor, ...], placement: Placement, *, kept: int = 0) -> Cached:
    """Puts a piece (tensors (batch, groups, time, width)) behind the filled slots of the state it continues."""
    alike = not placement.packed and (state is None or (state.is_even and not torch.compiler.is_compiling()))
    rows = slice(0, 1) if alike else slice(None)
    positions, runs = placement.positions[rows], placement.runs[rows]
    if state is None or state.slots == 0:
        return Cached(pieces, positions, runs)
    used = slots_in_use(state)
    held = held_by(state, rows, kept)
    is_empty = held < 0
    stored = tuple(
        torch.cat(
            [_emptied(old[:, :, :used].to(new.dtype), None if alike else is_empty), new],
            dim=2,
        )
        for old, new in zip(state.stored, pieces, strict=True)
    )
    return Cached(
        stored,
        torch.cat([held.masked_fill(is_empty, -1), positions], dim=1),
        torch.cat([torch.zeros_like(held), runs], dim=1),
    )


def visible(cached: Cached, placement: Placement, window: int | None = None) -> Tensor:
    """bool (batch or 1, time, source): the sources of the same document at or before the target, within the window."""
    rows = cached.positions.shape[0]
    positions, runs = placement.positions[:rows, :, None], placement.runs[:rows, :, None]
    distance = positions - cached.positions[:, None, :]
    mask = (runs == cached.runs[:, None, :]) & (cached.positions[:, None, :] >= 0) & (distance >= 0)
    return mask if window is None else mask & (distance < window)


def remember(
    state: SlotState | None,
    cached: Cached,
    placement: Placement,
    *,
    capacity: int | None = None,
    window: int | None = None,
    kept: int = 0,
) -> SlotState:
    """The state after a piece, which `gather` has put behind the state before it.

    Args:
        window: slots of the ring, behind the `kept` ones; None for a slot for each position.

    Raises:
        InputError: more positions in a row's last document than the capacity has room for.
    """
    time = placement.positions.shape[1]
    before = (0, 0) if state is None else (state.shortest, state.longest)
    shortest, longest = 1 if placement.packed else before[0] + time, before[1] + time
    grows = window is None and capacity is None and (state is None or state.grows)
    slots = kept + window if window is not None else max(0 if state is None else state.slots, capacity or 0)
    if longest > slots and window is None and (not grows or state is not None):
        shortest, longest = _looked_up(placement.position, shortest, longest)
    if grows:
        slots = max(slots, longest)
    elif window is None:
        check_room(slots, longest)
    source = cached.positions.shape[1]
    if shortest == longest and (window is None or source <= slots) and longest == source:
        stored = tuple(widen(tensor, slots) for tensor in cached.stored)
    else:
        stored = _selected(cached, placement, slots, source - time, kept)
    if state is not None:
        stored = tuple(tensor.to(old.dtype) for tensor, old in zip(stored, state.stored, strict=True))
    return SlotState(placement.position, placement.document, stored, shortest, longest, grows)


def append(state: SlotState, pieces: tuple[Tensor, ...], *, window: int | None = None, kept: int = 0) -> SlotState:
    """The state after one more position (tensors (batch, groups, 1, width)); writes in place where gradients allow it.

    Args:
        window: slots of the ring, behind the `kept` ones; None for a slot for each position.

    Raises:
        InputError: the capacity is full.
    """
    slots, shortest, longest = state.slots, state.shortest, state.longest
    if window is None and longest >= slots:
        shortest, longest = _looked_up(state.position, shortest, longest)
        if state.grows:
            slots = max(longest + 1, slots + slots // 2, FIRST_GROWTH) if longest >= slots else slots
        else:
            check_room(slots, longest + 1)
    is_recorded = any(t.requires_grad for t in state.stored) or (
        torch.is_grad_enabled() and any(t.requires_grad for t in pieces)
    )
    uses_one_slot = shortest == longest and not torch.compiler.is_compiling()
    stored = []
    for old, new in zip(state.stored, pieces, strict=True):
        tensor = widen(old, slots)
        if is_recorded and tensor is old:
            tensor = old.clone()
        if uses_one_slot:
            tensor[:, :, longest if longest < slots else kept + (longest - kept) % (slots - kept)] = new[:, :, 0]
        else:
            round_ring = kept + (state.position - kept).remainder(slots - kept)
            slot = torch.where(state.position < slots, state.position, round_ring) if kept else round_ring
            tensor.scatter_(2, slot[:, None, None, None].expand_as(new), new.to(tensor.dtype))
        stored.append(tensor)
    return SlotState(state.position + 1, state.document, tuple(stored), shortest + 1, longest + 1, state.grows)


def filled(state: SlotState, *, kept: int = 0) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The slots in use, and bool (batch, 1, source) where a row has fewer of them than another; None for none."""
    used = slots_in_use(state)
    if state.is_even and not torch.compiler.is_compiling():
        return tuple(tensor[:, :, :used] for tensor in state.stored), None
    is_empty = held_by(state, slice(None), kept) < 0
    return tuple(_emptied(tensor[:, :, :used], is_empty) for tensor in state.stored), ~is_empty[:, None, :]


def check_room(capacity: int, positions: int) -> None:
    """Refuses more positions than a capacity has room for."""
    if positions > capacity and not torch.compiler.is_compiling():
        raise InputError(
            f"the state's capacity is {capacity} and position {positions} was reached: "
            "make it with a larger capacity, or with capacity=None to let it grow"
        )


def _emptied(tensor: Tensor, is_empty: Tensor | None) -> Tensor:
    """Zeros in slots that hold nothing: what stands there may be anything, and zero times NaN is NaN."""
    return tensor if is_empty is None else tensor.masked_fill(is_empty[:, None, :, None], 0)


def _looked_up(position: Tensor, shortest: int, longest: int) -> tuple[int, int]:
    """The exact bounds of the positions, for when the known ones are too loose; while compiling the known ones."""
    if torch.compiler.is_compiling() or shortest == longest:
        return shortest, longest
    least, greatest = position.aminmax()
    return int(least), int(greatest)


def _selected(cached: Cached, placement: Placement, slots: int, used: int, kept: int) -> tuple[Tensor, ...]:
    """Each slot's latest content, from the filled slots (the first `used`) or from the piece behind them."""
    rows = cached.positions.shape[0]
    time = placement.positions.shape[1]
    last = placement.position[:rows] - 1
    held = held_positions(last, slots, slots, kept)
    step = held - last[:, None] + time - 1
    index = torch.where(step >= 0, used + step, torch.arange(slots, device=last.device))
    is_empty = held < 0
    index = index.masked_fill(is_empty, 0)
    return tuple(_emptied(tensor.take_along_dim(index[:, None, :, None], dim=2), is_empty) for tensor in cached.stored)
