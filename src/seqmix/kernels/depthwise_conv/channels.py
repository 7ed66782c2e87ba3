"""Channels that share a dilation, and the ring buffers that hold their past.

Shapes: B batch, D channels, K kernel, L length of a ring, (K - 1) * dilation.

A channel of dilation d needs its last (K - 1) * d inputs. They stand in a ring: the input of position p in
slot p mod L, and zero in slots that the document has not reached. The rings of all groups follow one another
in one (batch, total) tensor, each as (L, channels of the group), so that the state is as small as it can be.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Group(NamedTuple):
    """Neighbouring channels first ... last - 1 of one dilation; their ring starts at `offset` in a row's past."""

    dilation: int
    first: int
    last: int
    length: int
    offset: int

    @property
    def width(self) -> int:
        return self.last - self.first


class Dilations(NamedTuple):
    """The channels of a convolution, grouped by dilation.

    order: a permutation (dim,) that brings equal dilations together, None where they are neighbours already.
    """

    kernel: int
    groups: tuple[Group, ...]
    order: tuple[int, ...] | None

    @property
    def past_size(self) -> int:
        """Numbers a row's past holds."""
        return sum(group.length * group.width for group in self.groups)

    @property
    def span(self) -> int:
        """How far back the farthest tap reaches."""
        return max(group.length for group in self.groups)


def group_channels(dilation: int | Sequence[int] | Tensor | Dilations, dim: int, kernel: int) -> Dilations:
    """Groups `dim` channels by dilation: one for all, or one for each channel."""
    if isinstance(dilation, Dilations):
        return dilation
    if isinstance(dilation, Tensor):
        dilation = dilation.tolist()
    per_channel = [dilation] * dim if isinstance(dilation, int) else [int(d) for d in dilation]
    if len(per_channel) != dim:
        raise ValueError(f"dilation has {len(per_channel)} entries: give one number, or one for each of {dim} channels")
    if min(per_channel) < 1:
        raise ValueError(f"dilation is {min(per_channel)}: it must be at least 1")
    order = None
    borders = sum(a != b for a, b in itertools.pairwise(per_channel))
    if borders + 1 > len(set(per_channel)):
        order = tuple(sorted(range(dim), key=lambda channel: per_channel[channel]))
        per_channel = sorted(per_channel)
    groups, first, offset = [], 0, 0
    for channel in range(1, dim + 1):
        if channel == dim or per_channel[channel] != per_channel[first]:
            length = (kernel - 1) * per_channel[first]
            groups.append(Group(per_channel[first], first, channel, length, offset))
            offset += length * (channel - first)
            first = channel
    return Dilations(kernel, tuple(groups), order)


def ring_of(past: Tensor, group: Group) -> Tensor:
    """The ring of a group as a view (batch, L, width) into past (batch, total)."""
    end = group.offset + group.length * group.width
    return past[:, group.offset : end].unflatten(1, (group.length, group.width))


def unroll(past: Tensor, position: Tensor, group: Group) -> Tensor:
    """The last L inputs of a group in order of time, (batch, L, width); zeros before the document."""
    ring = ring_of(past, group)
    if group.length == 0:
        return ring
    steps = torch.arange(group.length, device=past.device)
    slots = (position[:, None] + steps) % group.length
    return ring.gather(1, slots[:, :, None].expand(-1, -1, group.width))


def newest(recent: Tensor | None, part: Tensor, group: Group) -> Tensor:
    """The last L inputs in order of time, (batch, L, width), once `part` (batch, time, width) follows `recent`.

    Without `recent` there was nothing before: zeros.
    """
    tail = part[:, max(0, part.shape[1] - group.length) :]
    if recent is None:
        return F.pad(tail, (0, 0, group.length - tail.shape[1], 0))
    return torch.cat([recent, tail], dim=1)[:, tail.shape[1] :]


def roll(recent: Tensor, position: Tensor, group: Group) -> Tensor:
    """The ring, flat (batch, L * width), of the last L inputs in order of time before `position`.

    Inputs from before the document, that is more than `position` steps back, become zero.
    """
    if group.length == 0:
        return recent.flatten(1)
    steps = torch.arange(group.length, device=recent.device)
    in_document = steps >= group.length - position[:, None]
    recent = torch.where(in_document[:, :, None], recent, recent.new_zeros(()))
    slots = (steps - position[:, None]) % group.length
    return recent.gather(1, slots[:, :, None].expand(-1, -1, group.width)).flatten(1)


def roll_together(recent: Tensor, position: int, group: Group) -> Tensor:
    """As `roll` for rows that all stand at one position, with zeros for what was before the document: two copies."""
    return recent.roll(position % max(1, group.length), dims=1).flatten(1)
