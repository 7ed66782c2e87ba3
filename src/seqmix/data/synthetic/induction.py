"""Induction heads (H3, arXiv 2212.14052, section 3.1; at growing lengths in Mamba, arXiv 2312.00752, section 4.1.2).

    w w w  <trigger> x  w w ... w  <trigger>          the last position asks for x, what followed the trigger before

The words w and x are drawn from `vocab` words; the trigger occurs nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from seqmix.data.synthetic.base import PAD, Examples, Task, no_targets, numbered

TRIGGER, FIRST = 1, 2


@dataclass(frozen=True, kw_only=True)
class InductionHeads(Task):
    """vocab: words beside the trigger."""

    name: ClassVar[str] = "induction_heads"
    length: int = 256
    vocab: int = 16

    def check(self) -> None:
        if self.length < 3:
            raise self.refuse("length", "the trigger, its answer and the trigger again need at least 3")

    @cached_property
    def words(self) -> list[str]:
        return [PAD, "<trigger>", *numbered("w", self.vocab)]

    def draw(self, random: np.random.Generator, rows: int) -> Examples:
        tokens = random.integers(FIRST, FIRST + self.vocab, (rows, self.length))
        places = random.integers(0, self.length - 2, rows)
        every = np.arange(rows)
        tokens[every, places] = TRIGGER
        tokens[:, -1] = TRIGGER
        targets = no_targets(tokens)
        targets[:, -1] = tokens[every, places + 1]
        return Examples(tokens, targets)
