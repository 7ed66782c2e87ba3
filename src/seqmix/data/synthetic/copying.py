"""Copying memory (arXiv 1511.06464, section 5.1; after Hochreiter and Schmidhuber 1997).

    s1 s2 ... sn  _ _ ... _  <copy> _ ... _          the last n positions ask for s1 ... sn

`copy` stands n positions before the end, so what is asked for first stands length - n positions back, and so does
each of the others: a fixed distance, which a long enough kernel solves without looking at the content.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from seqmix.data.synthetic.base import PAD, Examples, Task, no_targets, numbered

BLANK, COPY, FIRST = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Copying(Task):
    """symbols: to remember, drawn with replacement from `vocab` of them."""

    name: ClassVar[str] = "copying"
    length: int = 64
    symbols: int = 10
    vocab: int = 8

    def check(self) -> None:
        if 2 * self.symbols > self.length:
            raise self.refuse("symbols", f"twice as many do not fit into a length of {self.length}: give fewer of them")

    @cached_property
    def words(self) -> list[str]:
        return [PAD, "_", "<copy>", *numbered("s", self.vocab)]

    def draw(self, random: np.random.Generator, rows: int) -> Examples:
        tokens = np.full((rows, self.length), BLANK, np.int64)
        tokens[:, : self.symbols] = random.integers(FIRST, FIRST + self.vocab, (rows, self.symbols))
        tokens[:, self.length - self.symbols] = COPY
        targets = no_targets(tokens)
        targets[:, self.length - self.symbols :] = tokens[:, : self.symbols]
        return Examples(tokens, targets)
