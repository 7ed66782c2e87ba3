"""The states of a step program as plain arrays, which engines read and write in place.

They hold what the model's own state holds in the same layout: rings with the input of position p in slot p mod L,
caches with position p in slot p (mod the window). A cache without a window gets room in pieces.

Shapes: G groups of heads, S slots, K head width; one sequence.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqmix.errors import InputError, unknown_name
from seqmix.export.program import Cache, Program
from seqmix.generation.large_pages import LARGE_PAGE, empty_block
from seqmix.kernels.depthwise_conv.channels import Group
from seqmix.mixer import State
from seqmix.mixers.attention.slots import SlotState
from seqmix.models import ModelState, SeqmixForCausalLM

RingType = Literal["f32", "bf16"]
RING_TYPES: tuple[RingType, ...] = get_args(RingType)

SLOTS_AT_ONCE = 256
"""Slots that a cache without a window gets when it is full; a step reads the unused ones too."""


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of numbers rounded to bfloat16, to the nearest and ties to even."""
    return torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers that bits of bfloat16 stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@dataclasses.dataclass
class CacheArrays:
    """keys, values: (G, S, K) float32."""

    keys: NDArray[np.float32]
    values: NDArray[np.float32]

    @property
    def slots(self) -> int:
        """The positions there is room for."""
        return self.keys.shape[1]


class StepStates:
    """All states of one sequence.

    rings: for each ring of the program a flat array, the rings of its dilations one after another, float32 or the
    bits of bfloat16. caches, memories: as in the program. position: the tokens read.
    """

    def __init__(self, program: Program, ring_type: str = "f32") -> None:
        if ring_type not in RING_TYPES:
            raise unknown_name("ring type", ring_type, RING_TYPES)
        self.program = program
        self.ring_dtype = np.dtype(np.float32 if ring_type == "f32" else np.uint16)
        self.reset()

    def reset(self) -> None:
        """The states before the first token. Memory is touched now, so that no step waits for it."""
        self.position = 0
        self.rings = self._ring_arrays()
        self.caches = [_empty_cache(cache, cache.window or SLOTS_AT_ONCE) for cache in self.program.caches]
        self.memories = [np.zeros(memory.shape, np.float32) for memory in self.program.memories]

    def _ring_arrays(self) -> list[NDArray]:
        """Empty rings, one after another in one block, whose pages are taken now."""
        sizes = [ring.dilations.past_size for ring in self.program.rings]
        count = sum(sizes) * self.ring_dtype.itemsize
        block = (empty_block(count) if count >= LARGE_PAGE else np.empty(count, np.uint8))[:count]
        block.fill(0)
        return np.split(block.view(self.ring_dtype), np.cumsum(sizes)[:-1]) if sizes else []

    def copy(self) -> Self:
        """States of their own with the same content."""
        other = copy.copy(self)
        other.rings = self._ring_arrays()
        for mine, theirs in zip(other.rings, self.rings, strict=True):
            mine[:] = theirs
        other.caches = [CacheArrays(cache.keys.copy(), cache.values.copy()) for cache in self.caches]
        other.memories = [memory.copy() for memory in self.memories]
        return other

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays, unused slots included."""
        caches = sum(cache.keys.nbytes + cache.values.nbytes for cache in self.caches)
        return sum(ring.nbytes for ring in self.rings) + caches + sum(memory.nbytes for memory in self.memories)

    def make_room(self) -> bool:
        """Makes sure that every cache has a slot for the next position; says whether an array was replaced."""
        replaced = False
        for index, cache in enumerate(self.program.caches):
            slots = self.caches[index].slots
            if cache.window is None and self.position >= slots:
                self.caches[index] = _widened(cache, self.caches[index], slots, _room_for(self.position + 1))
                replaced = True
        return replaced

    def load(self, state: ModelState) -> None:
        """Takes over a model's state of one row.

        Raises:
            InputError: a state of several rows.
        """
        if len(state.position) != 1:
            raise InputError(f"the state has {len(state.position)} rows: an engine takes one, choose it with select")
        self.reset()
        self.position = int(state.position[0])
        for ring, own in zip(self.rings, self.program.rings, strict=True):
            past = _numbers(_field(state.layers[own.layer], "past")[0])
            ring[:] = past if ring.dtype == np.float32 else to_bfloat16(past)
        for memory, mine in zip(self.memories, self.program.memories, strict=True):
            memory[...] = _numbers(_field(state.layers[mine.layer], mine.field)[0]).reshape(mine.shape)
        for index, cache in enumerate(self.program.caches):
            slots = state.layers[cache.layer]
            assert isinstance(slots, SlotState)
            used = min(self.position, slots.slots)
            kept = _empty_cache(cache, cache.window or _room_for(used + 1))
            kept.keys[:, :used], kept.values[:, :used] = (_numbers(t[0, :, :used]) for t in slots.stored)
            self.caches[index] = kept

    def to_state(self, model: SeqmixForCausalLM) -> ModelState:
        """A copy as the model's own state, on the CPU."""
        empty = model.init_state(1, device="cpu", dtype=torch.float32)
        position = torch.full((1,), self.position)
        layers: list[State] = [dataclasses.replace(layer, position=position.clone()) for layer in empty.layers]
        for ring, own in zip(self.rings, self.program.rings, strict=True):
            past = ring.copy() if ring.dtype == np.float32 else from_bfloat16(ring)
            layers[own.layer] = _with(layers[own.layer], "past", torch.from_numpy(past)[None])
        for memory, mine in zip(self.memories, self.program.memories, strict=True):
            layers[mine.layer] = _with(layers[mine.layer], mine.field, torch.from_numpy(memory.copy())[None])
        for arrays, cache in zip(self.caches, self.program.caches, strict=True):
            slots = layers[cache.layer]
            assert isinstance(slots, SlotState)
            used = arrays.slots if cache.window is not None else self.position
            stored = tuple(torch.from_numpy(a[:, :used].copy())[None] for a in (arrays.keys, arrays.values))
            layers[cache.layer] = dataclasses.replace(
                slots, stored=stored, shortest=self.position, longest=self.position
            )
        return ModelState(position, empty.document, tuple(layers))

    def sum_rings(self, sums: list[NDArray[np.float32]]) -> None:
        """Writes what the next position gets from the past of each ring, bias included, into `sums` (width,)."""
        for index, (ring, total) in enumerate(zip(self.program.rings, sums, strict=True)):
            total[:] = 0 if ring.bias is None else ring.bias.numpy()
            taps = ring.taps.numpy()[:-1]
            back = np.arange(len(taps), 0, -1)
            for group in ring.dilations.groups:
                if group.length:
                    held = self._ring_of(index, group)[(self.position - back * group.dilation) % group.length]
                    inputs = held if held.dtype == np.float32 else from_bfloat16(held)
                    channels = slice(group.first, group.last)
                    total[channels] += (inputs * taps[:, channels]).sum(axis=0)

    def enter_rings(self, new: list[NDArray[np.float32]]) -> None:
        """Writes the inputs (width,) of the present position into the rings."""
        for index, (ring, inputs) in enumerate(zip(self.program.rings, new, strict=True)):
            for group in ring.dilations.groups:
                if group.length:
                    held = self._ring_of(index, group)
                    part = inputs[group.first : group.last]
                    held[self.position % group.length] = part if held.dtype == np.float32 else to_bfloat16(part)

    def _ring_of(self, index: int, group: Group) -> NDArray:
        size = group.length * group.width
        return self.rings[index][group.offset : group.offset + size].reshape(group.length, group.width)


def _empty_cache(cache: Cache, slots: int) -> CacheArrays:
    shape = (cache.groups, slots, cache.width)
    return CacheArrays(np.zeros(shape, np.float32), np.zeros(shape, np.float32))


def _room_for(positions: int) -> int:
    """Slots for so many positions, and some more: a quarter once there are many, so that copying stays rare."""
    wanted = positions + positions // 4
    return -(-wanted // SLOTS_AT_ONCE) * SLOTS_AT_ONCE


def _widened(cache: Cache, arrays: CacheArrays, used: int, slots: int) -> CacheArrays:
    wider = _empty_cache(cache, slots)
    wider.keys[:, :used], wider.values[:, :used] = arrays.keys[:, :used], arrays.values[:, :used]
    return wider


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor as float32 on the CPU."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def _field(state: State, name: str) -> Tensor:
    """The tensor of a name in a mixer's state."""
    tensor = vars(state)[name]
    assert isinstance(tensor, Tensor)
    return tensor


def _with(state: State, name: str, tensor: Tensor) -> State:
    """A mixer's state with another tensor under a name."""
    return dataclasses.replace(state, **{name: tensor})
