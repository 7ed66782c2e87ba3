"""How many processes train one model: what each reads, how gradients are averaged, and which one writes files.

The loop knows only this interface. With one process all of it is trivial; `distributed.py` has the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from seqmix.models.contenders import LanguageModel
from seqmix.training.checkpoint import CheckpointStore
from seqmix.training.progress import Progress
from seqmix.training.sharded_snapshot import is_sharded, read_sharded_snapshot
from seqmix.training.snapshot import read_snapshot, write_snapshot


class Processes(Protocol):
    """What the loop asks of the processes that train together. All of them make the same calls in the same order."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""

    @property
    def writes_files(self) -> bool:
        """Whether this process writes metrics, results and messages; exactly one does."""

    def together(self) -> AbstractContextManager[None]:
        """Around work that may fail in one process: all wait for each other, then it fails in all or in none."""

    def in_turn(self) -> AbstractContextManager[None]:
        """Around work that fills a cache: the first process of each machine does it before the others do."""

    def build(
        self,
        create: Callable[[], LanguageModel],
        initialise: Callable[[LanguageModel], None],
        device: torch.device,
    ) -> LanguageModel:
        """A model on its device, with the same weights for any number of processes.

        Args:
            create: draws a model. initialise: puts other weights into it, where the run starts from some.
        """

    def wrap(self, model: LanguageModel) -> nn.Module:
        """The module whose forward is called in training."""

    def rows(self, first: int, count: int) -> tuple[int, int]:
        """This process's part (first, count) of `count` rows that all processes share, equal in size."""

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one piece of a batch; after the last, gradients are means over processes."""

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all processes."""

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """The norm of some of the model's gradients, whole ones also where a process holds only a shard."""

    def clip(self, parameters: Iterable[Tensor], limit: float | None) -> Tensor:
        """Scales the gradients of all parameters so that their norm is at most `limit`; returns the norm before."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a CPU tensor."""

    def agree(self, *values: float) -> tuple[float, ...]:
        """The greatest of each value over all processes, so that a clock or a signal decides the same everywhere."""

    def save(
        self,
        store: CheckpointStore,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        metrics_length: int,
    ) -> None:
        """Makes a checkpoint of `progress.step`; arguments as `write_snapshot` takes them."""

    def newest(self, store: CheckpointStore, message: Callable[[str], None]) -> Path | None:
        """The newest good checkpoint, the same for all processes; arguments as `CheckpointStore.newest` takes them."""

    def load(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, int]:
        """Takes up a checkpoint, whichever number of processes made it; returns what `read_snapshot` does."""

    def whole(self, model: LanguageModel) -> LanguageModel | None:
        """A model with all weights, to be saved, in the process that writes files; None in the others."""


class OneProcess:
    """A single process: it reads all rows, writes all files, and agrees with itself."""

    rank = 0
    count = 1
    writes_files = True

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def in_turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def build(
        self,
        create: Callable[[], LanguageModel],
        initialise: Callable[[LanguageModel], None],
        device: torch.device,
    ) -> LanguageModel:
        model = create()
        initialise(model)
        nn.Module.to(model, device)
        return model

    def wrap(self, model: LanguageModel) -> nn.Module:
        return model

    def rows(self, first: int, count: int) -> tuple[int, int]:
        return first, count

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        return value

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        return torch.nn.utils.get_total_norm(gradients)

    def clip(self, parameters: Iterable[Tensor], limit: float | None) -> Tensor:
        # With an infinite limit the gradients are measured and multiplied by one.
        return torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)

    def sum(self, values: Tensor) -> Tensor:
        return values

    def agree(self, *values: float) -> tuple[float, ...]:
        return values

    def save(
        self,
        store: CheckpointStore,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        metrics_length: int,
    ) -> None:
        store.save(progress.step, lambda folder: write_snapshot(folder, model, optimizer, progress, metrics_length))

    def newest(self, store: CheckpointStore, message: Callable[[str], None]) -> Path | None:
        return store.newest(message)

    def load(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, int]:
        read = read_sharded_snapshot if is_sharded(folder) else read_snapshot
        return read(folder, model, optimizer)

    def whole(self, model: LanguageModel) -> LanguageModel | None:
        return model
