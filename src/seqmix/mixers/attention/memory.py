"""What attention keeps of a second sequence, its memory: keys and values that every target sees whole.

Shapes: B batch, S source, G groups of heads that share keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.errors import InputError
from seqmix.mixer import State
from seqmix.mixers.attention.slots import widen


@dataclass
class MemoryState(State):
    """keys, values: (batch, groups, source, head width) of the memory; mask: bool (batch, source), what is seen."""

    keys: Tensor
    values: Tensor
    mask: Tensor

    def cat(self, *others: Self) -> Self:
        states = (self, *others)
        source = max(state.mask.shape[1] for state in states)
        return type(self)(
            torch.cat([state.position for state in states]),
            torch.cat([state.document for state in states]),
            torch.cat([widen(state.keys, source) for state in states]),
            torch.cat([widen(state.values, source) for state in states]),
            torch.cat([F.pad(state.mask, (0, source - state.mask.shape[1])) for state in states]),
        )

    def at(self, position: Tensor, document: Tensor) -> Self:
        """The state at another place of the sequence that reads the memory."""
        return type(self)(position, document, self.keys, self.values, self.mask)


def memory_state(keys: Tensor, values: Tensor, mask: Tensor | None) -> MemoryState:
    """The state before any token, for keys and values (B, G, S, width) and bool (B, S), None for all."""
    batch, source = keys.shape[0], keys.shape[2]
    if mask is None:
        mask = torch.ones(batch, source, dtype=torch.bool, device=keys.device)
    if mask.shape != (batch, source):
        raise InputError(f"memory_mask has shape {tuple(mask.shape)}: it must be (batch, source) = {(batch, source)}")
    count = torch.zeros(batch, dtype=torch.int64, device=keys.device)
    return MemoryState(count, count.clone(), keys, values, mask.to(torch.bool))
