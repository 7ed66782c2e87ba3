"""How many processes train one model: what each reads, how gradients are averaged, and which one writes files.

The loop knows only this interface. With one process all of it is trivial.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn


class Processes(Protocol):
    """What the loop asks of the processes that train together."""

    @property
    def writes_files(self) -> bool:
        """Whether this process writes metrics, results and messages; exactly one does."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module whose forward is called in training. The model's parameters may be replaced by shards."""

    def rows(self, first: int, count: int) -> tuple[int, int]:
        """This process's part (first, count) of `count` rows that all processes share, equal in size."""

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one piece of a batch; gradients are averaged over processes in the last."""

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all processes."""

    def clip(self, parameters: Iterable[Tensor], limit: float | None) -> Tensor:
        """Scales the gradients of all parameters so that their norm is at most `limit`; returns the norm before."""

    def agree(self, *values: float) -> tuple[float, ...]:
        """The values of the first process, so that a clock or a signal decides the same everywhere."""


class OneProcess:
    """A single process: it reads all rows, writes all files, and agrees with itself."""

    writes_files = True

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def rows(self, first: int, count: int) -> tuple[int, int]:
        return first, count

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        return value

    def clip(self, parameters: Iterable[Tensor], limit: float | None) -> Tensor:
        # With an infinite limit the gradients are measured and multiplied by one.
        return torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)

    def agree(self, *values: float) -> tuple[float, ...]:
        return values
