"""Selective copying (Mamba, arXiv 2312.00752, section 4.1.1; after arXiv 1908.00213).

    _ s1 _ _ s2 s3 _ ... sn _  <copy> <copy> ... <copy>          the last n positions ask for s1 ... sn

The symbols stand at random places among blanks, so their distances differ: what is to be kept has to be told by its
content, which no fixed kernel does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from seqmix.data.synthetic.base import PAD, Examples, Task, distinct, no_targets, numbered

BLANK, COPY, FIRST = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """symbols: to remember, drawn with replacement from `vocab` of them."""

    name: ClassVar[str] = "selective_copying"
    length: int = 256
    symbols: int = 16
    vocab: int = 16

    def check(self) -> None:
        if 2 * self.symbols > self.length:
            raise self.refuse("symbols", f"twice as many do not fit into a length of {self.length}: give fewer of them")

    @cached_property
    def words(self) -> list[str]:
        return [PAD, "_", "<copy>", *numbered("s", self.vocab)]

    def draw(self, random: np.random.Generator, rows: int) -> Examples:
        read = self.length - self.symbols
        symbols = random.integers(FIRST, FIRST + self.vocab, (rows, self.symbols))
        places = np.sort(distinct(random, rows, read, self.symbols), axis=1)
        tokens = np.full((rows, self.length), BLANK, np.int64)
        np.put_along_axis(tokens, places, symbols, axis=1)
        tokens[:, read:] = COPY
        targets = no_targets(tokens)
        targets[:, read:] = symbols
        return Examples(tokens, targets)
