"""Multi-query associative recall (Zoology, arXiv 2312.04927, section 4 and appendix; its code's `multiquery_ar`).

    k1 v1 k2 v2 ... kn vn  f f k2 f f f k1 f ...        at each repeated key the target is that key's value

Keys are drawn from [1, V/2), values from [V/2, V), both without replacement. Query i stands at an even offset g_i
behind the pairs; the g_i / 2 are drawn without replacement with probability proportional to a g^(a - 1), in the order
of the pairs. The other positions hold fillers f.

The original draws fillers from the whole vocabulary, so a filler may be one of the keys, which then looks like a
query that has no target: 92 % of rows at length 512 with 64 pairs have such a one. Here fillers come from the values
alone; `fillers=any` draws them as the original does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from seqmix.data.synthetic.base import PAD, Examples, Task, distinct, no_targets
from seqmix.errors import unknown_name

FILLERS = ("values", "any")


@dataclass(frozen=True, kw_only=True)
class MQAR(Task):
    """pairs: of key and value, each asked for once. vocab: V. power: a, how strongly near queries are preferred.
    fillers: "values", or "any" for the original's, which may collide with keys."""

    name: ClassVar[str] = "mqar"
    length: int = 64
    pairs: int = 4
    vocab: int = 8192
    power: float = 0.01
    fillers: str = "values"

    def check(self) -> None:
        if self.length % 2:
            raise self.refuse("length", "it must be even: keys and values come in pairs")
        if 4 * self.pairs > self.length:
            raise self.refuse("pairs", f"4 tokens for each do not fit into a length of {self.length}: give fewer pairs")
        if self.vocab < 2 * self.pairs + 2:
            raise self.refuse("vocab", f"{self.pairs} pairs need at least {2 * self.pairs + 2} words")
        if not 0 < self.power <= 1:
            raise self.refuse("power", "it must be above 0 and at most 1")
        if self.fillers not in FILLERS:
            raise unknown_name("fillers of mqar", self.fillers, FILLERS)

    @cached_property
    def words(self) -> list[str]:
        half = self.vocab // 2
        return [PAD, *(f"k{key}" for key in range(1, half)), *(f"v{value}" for value in range(half, self.vocab))]

    def draw(self, random: np.random.Generator, rows: int) -> Examples:
        half, head = self.vocab // 2, 2 * self.pairs
        keys = 1 + distinct(random, rows, half - 1, self.pairs)
        values = half + distinct(random, rows, self.vocab - half, self.pairs)
        tokens = random.integers(half if self.fillers == "values" else 0, self.vocab, (rows, self.length))
        tokens[:, 0:head:2], tokens[:, 1:head:2] = keys, values
        places = head + 2 * self._gaps(random, rows)
        targets = no_targets(tokens)
        np.put_along_axis(tokens, places, keys, axis=1)
        np.put_along_axis(targets, places, values, axis=1)
        return Examples(tokens, targets)

    def _gaps(self, random: np.random.Generator, rows: int) -> np.ndarray:
        """(rows, pairs), each row without replacement: the first arrivals of a race, as fast as each is probable."""
        space = (self.length - 2 * self.pairs) // 2
        rates = self.power * np.arange(1, space + 1) ** (self.power - 1.0)
        arrivals = random.exponential(size=(rows, space)) / rates
        return np.argsort(arrivals, axis=1)[:, : self.pairs]
