"""What a training step reads, and the order that it comes in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """input_ids, targets: (rows, context) int64; a target is what follows the input, or -100 where nothing is asked.

    document_ids: (rows, context) int64, different for neighbouring documents, or None when no row holds a border.
    distances: (rows, context) int64, of a task: how far back what decides each answer stands; None where it has none.
    """

    input_ids: Tensor
    targets: Tensor
    document_ids: Tensor | None
    distances: Tensor | None = None


def permutation(key: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """A permutation that depends on the key alone.

    The raw output of a bit generator is stable across versions of numpy, which Generator.permutation need not be.
    """
    draws = np.random.PCG64(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(draws, kind="stable")
