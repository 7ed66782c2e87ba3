"""In-context recall (MAD, arXiv 2403.17844, section 3.1).

    k3 v1 k7 v4 k3 v1 k2 v4 k7 v4 ...          every key that has been there before asks for its value

Each row draws a value for every key, with replacement, and keys with replacement; the values are read as well, so the
memory is written again and again. The last key of a row has been there before, so that each row asks at least once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from seqmix.data.synthetic.base import PAD, Examples, Task, no_targets, numbered


@dataclass(frozen=True, kw_only=True)
class InContextRecall(Task):
    """vocab: keys and values together, half of each."""

    name: ClassVar[str] = "in_context_recall"
    length: int = 128
    vocab: int = 16

    def check(self) -> None:
        if self.length % 2 or self.length < 4:
            raise self.refuse("length", "it must be even and at least 4: a key and its value, twice")
        if self.vocab % 2:
            raise self.refuse("vocab", "it must be even: half of it are keys, half are values")

    @cached_property
    def words(self) -> list[str]:
        return [PAD, *numbered("k", self.vocab // 2), *numbered("v", self.vocab // 2)]

    def draw(self, random: np.random.Generator, rows: int) -> Examples:
        half, pairs, every = self.vocab // 2, self.length // 2, np.arange(rows)
        value_of = random.integers(0, half, (rows, half))
        keys = random.integers(0, half, (rows, pairs))
        keys[:, -1] = keys[every, random.integers(0, pairs - 1, rows)]
        values = np.take_along_axis(value_of, keys, axis=1) + 1 + half
        tokens = np.stack([keys + 1, values], axis=2).reshape(rows, self.length)
        targets = no_targets(tokens)
        is_known = np.zeros((rows, half), bool)
        for pair in range(pairs):
            here = keys[:, pair]
            targets[:, 2 * pair] = np.where(is_known[every, here], values[:, pair], targets[:, 2 * pair])
            is_known[every, here] = True
        return Examples(tokens, targets)
