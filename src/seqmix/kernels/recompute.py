"""Tensors that are cheap to compute again, so that they need not be held until the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


class _Again:
    """Gives one tensor to all of its readers in a backward pass: the first has it computed, the last lets it go."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute
        self._readers = self._served = 0
        self._held: Tensor | None = None

    def add_reader(self) -> None:
        self._readers += 1

    def read(self) -> Tensor:
        if self._held is None:
            with torch.no_grad():
                self._held = self._compute()
        held = self._held
        self._served += 1
        if self._served % self._readers == 0:
            self._held = None
        return held


def recomputed(tensor: Tensor, compute: Callable[[], Tensor]) -> AbstractContextManager[Any]:
    """Operations inside that keep `tensor`, or a view of it, for their backward have it computed again instead.

    Args:
        tensor: contiguous.
        compute: gives the same numbers in the same layout; it is called without gradients during the backward pass
            and must not hold the tensor.

    Other hooks on saved tensors, such as those of activation checkpointing, do not see what is kept inside.
    """
    storage, kept = tensor.untyped_storage().data_ptr(), _Again(compute)

    def pack(saved: Tensor) -> Any:
        if saved.untyped_storage().data_ptr() != storage or saved.dtype != tensor_type:
            return saved
        kept.add_reader()
        return saved.shape, saved.stride(), saved.storage_offset()

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else kept.read().as_strided(*packed)

    tensor_type = tensor.dtype
    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
