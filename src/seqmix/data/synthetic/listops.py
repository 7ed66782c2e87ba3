"""ListOps as in the Long Range Arena (arXiv 2011.04006, section 2.1; after arXiv 1804.06028), with its brackets.

    [MAX 4 3 [MIN 2 3 ] 1 0 ] =  <pad> ...          "=" asks for the value, here 4

A node at a depth below `depth` is an operation with probability 1/4, else a digit. An operation has 2 to `arguments`
arguments and is one of MIN, MAX, MED (the median, cut to a whole number) and SM (the sum modulo 10), all equally
likely. Expressions are drawn until one has more than `shortest` and fewer than `length` tokens, brackets counted, so
that it fits into a row with its question. Published loaders dropped the closing brackets or gave them one id with
others, after which the arguments of nested operations run together; here each is a word.

Trees are drawn level by level, many at once, since few have the length asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import ClassVar

import numpy as np

from seqmix.data.synthetic.base import PAD, Array, Examples, Task, no_targets

OPERATIONS = ("MIN", "MAX", "MED", "SM")
OPERATION_SHARE = 0.25
FIRST_DIGIT, FIRST_OPERATION, CLOSE, ASK = 1, 11, 15, 16

_CANDIDATES = 2048
"""Trees that are drawn at once."""

_BATCHES = 200
"""How often that is done for a row before it is given up."""


@dataclass(frozen=True, kw_only=True)
class ListOps(Task):
    """shortest: fewer tokens than any expression has. depth: of nesting, arguments: of an operation, at most."""

    name: ClassVar[str] = "listops"
    length: int = 2000
    shortest: int = 500
    depth: int = 10
    arguments: int = 10

    def check(self) -> None:
        if self.arguments < 2:
            raise self.refuse("arguments", "an operation has at least 2")
        if self.shortest + 2 > self.length:
            raise self.refuse("shortest", f"nothing lies between it and the length, {self.length}: give a smaller one")
        longest = 1
        for _ in range(self.depth - 1):
            longest = min(2 + self.arguments * longest, self.length)
        if longest <= self.shortest:
            raise self.refuse("shortest", f"this depth gives at most {longest} tokens: give more depth or arguments")

    @cached_property
    def words(self) -> list[str]:
        return [PAD, *map(str, range(10)), *(f"[{name}" for name in OPERATIONS), "]", "="]

    def draw(self, random: np.random.Generator, rows: int) -> Examples:
        tokens = np.zeros((rows, self.length), np.int64)
        targets = no_targets(tokens)
        row, tries = 0, 0
        while row < rows:
            trees = _Trees(random, self.depth, self.arguments, self.length)
            lengths = trees.lengths
            found = np.flatnonzero((lengths > self.shortest) & (lengths < self.length))[: rows - row]
            for tree in found:
                words, value = trees.write(int(tree))
                tokens[row, : len(words)] = words
                tokens[row, len(words)] = ASK
                targets[row, len(words)] = FIRST_DIGIT + value
                row += 1
            tries = 0 if len(found) else tries + 1
            if tries == _BATCHES:
                raise self.refuse(
                    "shortest",
                    f"of {_BATCHES * _CANDIDATES:,} expressions none had a length between it and {self.length}: "
                    "widen that range",
                )
        return Examples(tokens, targets)


class _Trees:
    """Expressions, level by level: what each node is, and where its arguments begin in the next level.

    A tree that grows to `limit` tokens is cut off, and has a length that nobody asks for.
    """

    def __init__(self, random: np.random.Generator, depth: int, arguments: int, limit: int) -> None:
        self.lengths: Array = np.ones(_CANDIDATES, np.int64)
        self._nodes: list[Array] = []
        self._counts: list[Array] = []
        self._firsts: list[Array] = []
        owners = np.arange(_CANDIDATES)
        for level in range(1, depth + 1):
            size = len(owners)
            grows = (random.random(size) < OPERATION_SHARE) & (level < depth) & (self.lengths[owners] < limit)
            digits = random.integers(FIRST_DIGIT, FIRST_DIGIT + 10, size)
            operations = random.integers(FIRST_OPERATION, FIRST_OPERATION + len(OPERATIONS), size)
            counts = np.where(grows, random.integers(2, arguments + 1, size), 0)
            self._nodes.append(np.where(grows, operations, digits))
            self._counts.append(counts)
            self._firsts.append(np.cumsum(counts) - counts)
            # An operation is two brackets instead of one digit, and its arguments.
            self.lengths += np.bincount(owners, np.where(grows, counts + 1, 0), _CANDIDATES).astype(np.int64)
            owners = np.repeat(owners, counts)

    def write(self, tree: int) -> tuple[list[int], int]:
        """The tokens of one expression, and its value."""
        words: list[int] = []
        return words, self._write(0, tree, words)

    def _write(self, level: int, node: int, words: list[int]) -> int:
        word, count = int(self._nodes[level][node]), int(self._counts[level][node])
        words.append(word)
        if not count:
            return word - FIRST_DIGIT
        first = int(self._firsts[level][node])
        values = [self._write(level + 1, argument, words) for argument in range(first, first + count)]
        words.append(CLOSE)
        return _apply(OPERATIONS[word - FIRST_OPERATION], values)


def _apply(operation: str, values: list[int]) -> int:
    if operation == "MIN":
        return min(values)
    if operation == "MAX":
        return max(values)
    return int(median(values)) if operation == "MED" else sum(values) % 10
