"""Long convolutions of one or several streams, over a sequence or one position at a time, and their state.

    y_j[t] = sum over k < length of taps_j[k] * u_j[t - k]        for each stream j and channel

The streams of a mixer follow one another: each is convolved before the input of the next is known.

Shapes: B batch, T time, P past positions, D channels, K taps, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from seqmix.errors import InputError
from seqmix.kernels.documents import Placement
from seqmix.kernels.long_conv import (
    NEAR,
    ahead,
    block_length,
    long_conv,
    long_conv_flops,
    online_taps,
    recent_sum,
    step_flops,
    tile_length,
)
from seqmix.mixer import BOOKKEEPING_BYTES, State
from seqmix.mixers.attention.slots import (
    FIRST_GROWTH,
    SlotState,
    append,
    check_room,
    empty_slots,
    held_positions,
    widen,
)
from seqmix.mixers.long_convolution.long_filter import LongFilter


@dataclass
class LongConvState(SlotState):
    """The inputs of the last positions, and what they send to the positions ahead.

    stored: for each stream (batch, 1, slots, channels), as many slots as positions, at most the filter's length.
    pending: for each stream (batch, block, channels) in float32 or wider, what inputs before the last `NEAR`
        positions send to the positions of the present block; see `kernels.long_conv.online`.
    read: how many positions of the block were read; with 0 `pending` holds nothing and is formed anew.

    A block of another length than the slots ask for gives way to one that has yet to begin.
    """

    pending: tuple[Tensor, ...] = ()
    read: int = 0

    def __post_init__(self) -> None:
        block = block_length(self.slots)
        if [part.shape[1] for part in self.pending] != [block] * len(self.stored):
            self.read = 0
            self.pending = tuple(
                tensor.new_zeros(
                    (len(tensor), block, tensor.shape[3]), dtype=torch.promote_types(tensor.dtype, torch.float32)
                )
                for tensor in self.stored
            )

    def cat(self, *others: Self) -> Self:
        states = (self, *others)
        inputs = SlotState.cat(*(_slots_of(state) for state in states))
        sizes = {(state.slots, state.read) for state in states}
        if len(sizes) == 1:
            pending = tuple(torch.cat(parts) for parts in zip(*(state.pending for state in states), strict=True))
            return type(self)(**vars(inputs), pending=pending, read=self.read)
        return type(self)(**vars(inputs))


class TapFilter(LongFilter):
    """Filters of `length` taps: the state keeps the last inputs, and a step is exact without reading all of them."""

    growth = "linear"
    length: int

    def tap_flops(self, count: int) -> tuple[int, int]:
        """Product and other FLOPs of forming the first `count` taps."""
        return 0, 0

    def init_state(
        self, batch: int, capacity: int | None, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> LongConvState:
        parameter = next(self.parameters())
        inputs = empty_slots(
            batch,
            min(capacity or 0, self.length),
            ((1, self.dim),) * self.streams,
            grows=capacity is None,
            device=parameter.device if device is None else device,
            dtype=dtype or parameter.dtype,
        )
        return LongConvState(**vars(inputs))

    def begin(self, state: State | None, placement: Placement, capacity: int | None) -> SequencePass:
        return SequencePass(self, _long_state(state), placement, capacity)

    def begin_step(self, state: State, x: Tensor) -> TokenPass:
        before = _long_state(state)
        assert before is not None
        return TokenPass(self, before, x)

    def state_bytes(self, batch: int, time: int, size: int) -> int:
        slots = min(time, self.length)
        numbers = slots * size + block_length(slots) * max(4, size)
        return batch * (self.streams * self.dim * numbers + BOOKKEEPING_BYTES)

    def flops(self, batch: int, time: int) -> tuple[int, int]:
        product, other = self.tap_flops(min(time, self.length))
        return product, other + batch * self.streams * self.dim * long_conv_flops(time)

    def step_flops(self, batch: int, position: int) -> tuple[int, int]:
        slots = min(position + 1, self.length)
        product, other = self.tap_flops(online_taps(slots))
        return product, other + batch * self.streams * self.dim * step_flops(slots)


class SequencePass:
    """Convolves the streams of a piece in turn, and gives the state after it."""

    def __init__(
        self, long_filter: TapFilter, state: LongConvState | None, placement: Placement, capacity: int | None
    ) -> None:
        self.filter, self.state, self.placement, self.capacity = long_filter, state, placement, capacity
        time = placement.positions.shape[1]
        self.count = 0 if state is None else _count(state, long_filter.length)
        self.taps = long_filter.taps(min(self.count + time, long_filter.length))
        self.inputs: list[Tensor] = []

    def convolve(self, u: Tensor) -> Tensor:
        """y (batch, time, dim) of the next stream."""
        stream = len(self.inputs)
        past = None if self.state is None else _latest(self.state, stream, self.count).to(u.dtype)
        self.inputs.append(u if past is None else torch.cat([past, u], dim=1))
        runs = self.placement.runs if self.placement.packed else None
        return long_conv(u, self.taps[stream], past=past, runs=runs)

    def finish(self) -> LongConvState:
        """The state after the piece, which keeps the precision of the one before.

        Raises:
            InputError: more positions in a row's last document than the capacity has room for.
        """
        state, placement, length = self.state, self.placement, self.filter.length
        time = placement.positions.shape[1]
        shortest, longest = (0, 0) if state is None else (state.shortest, state.longest)
        shortest, longest = 1 if placement.packed and time else shortest + time, longest + time
        grows = self.capacity is None and (state is None or state.grows)
        slots = min(max(0 if state is None else state.slots, self.capacity or 0), length)
        if slots < min(longest, length) and (not grows or state is not None):
            shortest, longest = _bounds(placement.position, shortest, longest)
        if grows:
            slots = min(max(slots, longest), length)
        elif slots < length:
            check_room(slots, longest)
        stored = []
        for stream, full in enumerate(self.inputs):
            kept = full if state is None else full.to(state.stored[stream].dtype)
            stored.append(_placed(kept, placement.position, shortest == longest == full.shape[1], slots))
        inputs = SlotState(placement.position, placement.document, tuple(stored), shortest, longest, grows)
        return LongConvState(**vars(inputs))


class TokenPass:
    """Convolves the streams of one more position in turn, and gives the state after it.

    In float64, under a compiler or a CUDA graph and where gradients are recorded, every position sums over its past.

    Raises:
        InputError: the capacity is full.
    """

    def __init__(self, long_filter: TapFilter, state: LongConvState, x: Tensor) -> None:
        self.filter = long_filter
        self.inputs: list[Tensor] = []
        self.state = state = _with_room(state, long_filter.length)
        self.is_direct = (
            torch.compiler.is_compiling()
            or x.dtype == torch.float64
            or torch.is_grad_enabled()
            or (x.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
        )
        self.count = _count(state, long_filter.length) if self.is_direct else state.read % NEAR
        if not self.is_direct and state.read == 0:
            _begin_block(state, long_filter)
        self.taps = long_filter.taps(min(self.count + 1, long_filter.length))

    def convolve(self, u: Tensor) -> Tensor:
        """y (batch, dim) of the next stream."""
        stream = len(self.inputs)
        self.inputs.append(u)
        taps = self.taps[stream]
        wide = torch.promote_types(u.dtype, torch.float32)
        y = u.to(wide) * taps[:, 0].to(wide)
        if not self.is_direct:
            y = y + self.state.pending[stream][:, self.state.read]
        if self.count:
            y = y + recent_sum(_latest(self.state, stream, self.count), taps)
        return y.to(u.dtype)

    def finish(self) -> LongConvState:
        """The state after the position; it was written to."""
        state, length = self.state, self.filter.length
        window = length if state.slots >= length else None
        after = append(_slots_of(state), tuple(u[:, None, None] for u in self.inputs), window=window)
        if self.is_direct:
            return LongConvState(**vars(after), pending=state.pending, read=0)
        read = state.read + 1
        block = block_length(state.slots)
        following = LongConvState(**vars(after), pending=state.pending, read=0 if read == block else read)
        tile = tile_length(read) if read < block else 0
        if tile:
            taps = self.filter.taps(min(2 * tile, length))
            for stream, pending in enumerate(following.pending):
                sent = ahead(_latest(following, stream, tile), taps[stream], tile)
                pending[:, read : read + tile] += sent.to(pending.dtype)
        return following


def _begin_block(state: LongConvState, long_filter: TapFilter) -> None:
    """Fills `pending` with what all the past sends to the positions of a block that begins."""
    count, block = _count(state, long_filter.length), block_length(state.slots)
    taps = long_filter.taps(min(count + block, long_filter.length)) if count else None
    for stream, pending in enumerate(state.pending):
        if taps is None:
            pending.zero_()
        else:
            pending.copy_(ahead(_latest(state, stream, count).to(pending.dtype), taps[stream], block))


def _count(state: LongConvState, length: int) -> int:
    """How many of the latest inputs a convolution of the next position looks at."""
    filled = state.slots if torch.compiler.is_compiling() else min(state.longest, state.slots)
    return min(filled, length - 1)


def _latest(state: LongConvState, stream: int, count: int) -> Tensor:
    """The last `count` inputs (batch, count, dim) in order of time, zero before a document's beginning."""
    stored, slots = state.stored[stream][:, 0], state.slots
    if count == 0:
        return stored[:, :0]
    if state.is_even and not torch.compiler.is_compiling():
        first = (state.longest - count) % slots
        if first + count <= slots:
            return stored[:, first : first + count]
        return torch.cat([stored[:, first:], stored[:, : first + count - slots]], dim=1)
    positions = state.position[:, None] - count + torch.arange(count, device=stored.device)
    found = stored.take_along_dim(positions.remainder(slots)[..., None], dim=1)
    return found.masked_fill((positions < 0)[..., None], 0)


def _placed(full_BTD: Tensor, position: Tensor, is_alone: bool, slots: int) -> Tensor:
    """Slots (batch, 1, slots, dim) that hold the end of inputs in order of time, the last one at position - 1.

    is_alone: whether every row's inputs are one document from its beginning on.
    """
    time = full_BTD.shape[1]
    if is_alone and time <= slots:
        return widen(full_BTD[:, None], slots).clone()
    held = held_positions(position - 1, slots, slots)
    index = (time - position[:, None] + held).clamp(min=0)
    found = full_BTD.take_along_dim(index[..., None], dim=1) if slots and time else full_BTD[:, :0]
    return found.masked_fill((held < 0)[..., None], 0)[:, None]


def _with_room(state: LongConvState, length: int) -> LongConvState:
    """The state with a slot for the next position; where slots are added, a block must begin anew.

    Raises:
        InputError: the capacity is full.
    """
    slots = state.slots
    if state.longest < slots or slots >= length:
        return state
    shortest, longest = _bounds(state.position, state.shortest, state.longest)
    if not state.grows:
        check_room(slots, longest + 1)
    inputs = _slots_of(state)
    inputs.shortest, inputs.longest = shortest, longest
    if longest < slots or not state.grows:
        return LongConvState(**vars(inputs), pending=state.pending, read=state.read)
    more = min(length, max(longest + 1, slots + slots // 2, FIRST_GROWTH))
    inputs.stored = tuple(widen(tensor, more) for tensor in state.stored)
    return LongConvState(**vars(inputs))


def _bounds(position: Tensor, shortest: int, longest: int) -> tuple[int, int]:
    """The exact bounds of the positions, for when the known ones are too loose; while compiling the known ones."""
    if torch.compiler.is_compiling() or shortest == longest:
        return shortest, longest
    least, greatest = position.aminmax()
    return int(least), int(greatest)


def _slots_of(state: SlotState) -> SlotState:
    return SlotState(state.position, state.document, state.stored, state.shortest, state.longest, state.grows)


def _long_state(state: State | None) -> LongConvState | None:
    """The state as the one that a long convolution makes."""
    if state is None or isinstance(state, LongConvState):
        return state
    raise InputError(
        f"the state is a {type(state).__name__}, which a long convolution did not make: begin with init_state"
    )
