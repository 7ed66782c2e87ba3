"""Tensors that are cheap to compute again, so that they need not be held until the backward pass.

    with recomputing():
        inner = norm(x)
        offer(inner, partial(norm, x.detach()))
        y = linear(inner)

Whoever opens the block decides whether what is offered inside is computed again; outside of one an offer does nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_BLOCKS = threading.local()


class _Again:
    """Gives one tensor to all of its readers in a backward pass: the first has it computed, the last lets it go."""

    def __init__(self, tensor: Tensor, compute: Callable[[], Tensor]) -> None:
        # While it lives, no other tensor has its memory.
        self._tensor = weakref.ref(tensor)
        self._dtype = tensor.dtype
        self._compute = compute
        self._readers = self._served = 0
        self._held: Tensor | None = None

    def is_in(self, saved: Tensor) -> bool:
        return self._tensor() is not None and saved.dtype == self._dtype

    def add_reader(self) -> None:
        self._readers += 1

    def read(self) -> Tensor:
        if self._held is None:
            _BLOCKS.is_computing = True
            try:
                with torch.no_grad():
                    self._held = self._compute()
            finally:
                _BLOCKS.is_computing = False
        held = self._held
        self._served += 1
        if self._served % self._readers == 0:
            self._held = None
        return held


def is_computing_again() -> bool:
    """Whether something that was offered is being computed again: work of the method, not of the model."""
    return getattr(_BLOCKS, "is_computing", False)


@contextmanager
def recomputing() -> Iterator[None]:
    """What is offered inside, and kept there for a backward pass, is computed again instead.

    Other hooks on saved tensors, such as those of activation checkpointing, do not see what is kept inside.
    """
    offers: dict[int, _Again] = {}

    def pack(saved: Tensor) -> Any:
        again = offers.get(saved.untyped_storage().data_ptr())
        if again is None or not again.is_in(saved):
            return saved
        again.add_reader()
        return again, saved.shape, saved.stride(), saved.storage_offset()

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed[0].read().as_strided(*packed[1:])

    before = getattr(_BLOCKS, "offers", None)
    _BLOCKS.offers = offers
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _BLOCKS.offers = before


def offer(tensor: Tensor, compute: Callable[[], Tensor]) -> None:
    """Says how a contiguous tensor can be computed again, for its readers that follow.

    Args:
        compute: gives the same numbers in the same layout; it is called without gradients during the backward pass
            and must not hold the tensor.
    """
    # A compiler decides for itself what it keeps.
    if torch.compiler.is_compiling():
        return
    offers = getattr(_BLOCKS, "offers", None)
    if offers is not None and tensor.is_contiguous():
        offers[tensor.untyped_storage().data_ptr()] = _Again(tensor, compute)
