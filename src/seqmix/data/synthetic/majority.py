"""Long-range majority: are there more ones or more zeros?

    0 1 1 0 1 ... 1 ?          the last position asks for the more frequent bit

The number of bits is odd, so there is always an answer. Every bit counts a little: a mean over the row is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from seqmix.data.synthetic.base import PAD, Examples, Task, no_targets

ZERO, ASK = 1, 3


@dataclass(frozen=True, kw_only=True)
class Majority(Task):
    """length - 1 bits and the question."""

    name: ClassVar[str] = "majority"
    length: int = 64

    def check(self) -> None:
        if self.length % 2:
            raise self.refuse("length", "it must be even: with the question, an odd number of bits")

    @cached_property
    def words(self) -> list[str]:
        return [PAD, "0", "1", "?"]

    def draw(self, random: np.random.Generator, rows: int) -> Examples:
        bits = random.integers(0, 2, (rows, self.length - 1))
        tokens = np.concatenate([bits + ZERO, np.full((rows, 1), ASK)], axis=1)
        targets = no_targets(tokens)
        targets[:, -1] = ZERO + (2 * bits.sum(axis=1) > self.length - 1)
        return Examples(tokens, targets)
