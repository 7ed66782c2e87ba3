"""How many answers of a synthetic task a model gives right: in all, by whole row, by distance.

An answer is the most probable word of the whole vocabulary. The head is applied where an answer is asked for, and
nowhere else: of a large vocabulary it would be most of the work.

Shapes: R rows, T time, N answers of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.data import IGNORED, Batch
from seqmix.models import SeqmixForCausalLM


@dataclass(frozen=True, kw_only=True)
class Answers:
    """accuracy: the share of answers that are right. example_accuracy: of rows whose answers are all right.

    accuracy_by_distance: the share by the distance of what decides the answer; None for tasks without distances.
    error_by_block: the share of wrong answers in consecutive parts of the held-out rows, equal in answers.
    """

    accuracy: float
    example_accuracy: float
    accuracy_by_distance: dict[int, float] | None
    error_by_block: list[float]

    def to_dict(self) -> dict[str, Any]:
        """The accuracies as a JSON value, by distance where there are distances."""
        found: dict[str, Any] = {"accuracy": self.accuracy, "example_accuracy": self.example_accuracy}
        if self.accuracy_by_distance is not None:
            found["accuracy_by_distance"] = {str(key): value for key, value in self.accuracy_by_distance.items()}
        return found


def give_answers(model: nn.Module, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """(-ln p of each target in at least float32, 0 where none is; whether the answer is right), both (R, T)."""
    asked = (batch.targets != IGNORED).to(device)
    targets_N = batch.targets.to(device)[asked]
    with _head_where(model, asked):
        logits = model(input_ids=batch.input_ids.to(device), use_cache=False).logits
    logits_NV = logits if logits.dim() == 2 else logits[asked]
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    losses = torch.zeros(asked.shape, dtype=wide_NV.dtype, device=device)
    losses[asked] = F.cross_entropy(wide_NV, targets_N, reduction="none")
    right = torch.zeros_like(asked)
    right[asked] = wide_NV.argmax(dim=1) == targets_N
    return losses, right


@contextmanager
def _head_where(model: nn.Module, asked: Tensor) -> Iterator[None]:
    """Lets the head of a model of ours see those positions alone; the model's forward is the same, sharded or not."""
    if not isinstance(model, SeqmixForCausalLM):
        yield
        return
    handle = model.lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0][asked],))
    try:
        yield
    finally:
        handle.remove()


class AnswerSums:
    """Counts right answers.

    Args:
        length: tokens of a row, which no distance exceeds.
        expected: how many answers will come. blocks: into how many parts they are divided.
    """

    def __init__(self, length: int, expected: int, blocks: int) -> None:
        self._expected = max(1, expected)
        self._blocks = np.zeros((2, min(blocks, self._expected)))
        self._rows = np.zeros((2, 1))
        self._distances = np.zeros((2, length + 1))

    def add(self, right: Tensor, batch: Batch, order: Tensor) -> None:
        """Adds the answers (R, T) of a batch; order (R, T) is the place of each among all that are asked for."""
        asked = (batch.targets != IGNORED).numpy()
        is_right = right.cpu().numpy()
        rows = asked.any(axis=1)
        self._rows[:, 0] += rows.sum(), (is_right | ~asked).all(axis=1)[rows].sum()
        last = self._blocks.shape[1] - 1
        _count(self._blocks, np.minimum(order.numpy()[asked] * (last + 1) // self._expected, last), is_right[asked])
        if batch.distances is not None:
            _count(self._distances, batch.distances.numpy()[asked], is_right[asked])

    def arrays(self) -> list[np.ndarray]:
        """What is added up over processes."""
        return [self._blocks, self._rows, self._distances]

    def result(self) -> Answers:
        """The shares."""
        asked, right = self._blocks
        rows, whole = self._rows[:, 0]
        far, found = self._distances
        places = np.flatnonzero(far)
        return Answers(
            accuracy=float(right.sum() / asked.sum()),
            example_accuracy=float(whole / rows),
            accuracy_by_distance={int(at): float(found[at] / far[at]) for at in places} if len(places) else None,
            error_by_block=(1 - right[asked > 0] / asked[asked > 0]).tolist(),
        )


def _count(table: np.ndarray, index: np.ndarray, right: np.ndarray) -> None:
    """Adds one to the first row at each index, and to the second where it is right."""
    table[0] += np.bincount(index, minlength=table.shape[1])
    table[1] += np.bincount(index, right, minlength=table.shape[1])
