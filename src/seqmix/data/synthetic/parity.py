"""Long-range parity: is the number of ones odd?

    0 1 1 0 1 ... 1 ?          the last position asks for the sum of all bits modulo 2

Every bit matters, wherever it stands, and no part of the row tells anything: the hardest of the long dependencies to
learn, and easy to keep for a recurrence once it is learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from seqmix.data.synthetic.base import PAD, Examples, Task, no_targets

ZERO, ASK, EVEN = 1, 3, 4


@dataclass(frozen=True, kw_only=True)
class Parity(Task):
    """length - 1 bits and the question."""

    name: ClassVar[str] = "parity"
    length: int = 64

    def check(self) -> None:
        if self.length < 2:
            raise self.refuse("length", "a bit and the question need at least 2")

    @cached_property
    def words(self) -> list[str]:
        return [PAD, "0", "1", "?", "even", "odd"]

    def draw(self, random: np.random.Generator, rows: int) -> Examples:
        bits = random.integers(0, 2, (rows, self.length - 1))
        tokens = np.concatenate([bits + ZERO, np.full((rows, 1), ASK)], axis=1)
        targets = no_targets(tokens)
        targets[:, -1] = EVEN + bits.sum(axis=1) % 2
        return Examples(tokens, targets)
