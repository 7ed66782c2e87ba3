"""The two parts of a task as stores of rows, and the stream that training reads."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqmix.data.batch import Batch, permutation
from seqmix.data.synthetic.base import IGNORED, Array, Examples, Task
from seqmix.errors import InputError

BLOCK = 128
"""Rows that are drawn together."""

_TRAIN, _VALID = 0, 1
_RUNS, _RUN_ROWS = 1 << 20, 1 << 42
"""Training seeds that read rows of their own of an endless part, and how many rows each has."""

_TRIES = 50
"""Times that rows which repeat held-out ones are drawn again."""


class ExampleStore:
    """The rows of one part.

    task: whose. rows: how many there are, None for no end. Rows are drawn when they are first read; those of a part
    with an end are kept.
    """

    def __init__(self, task: Task, part: int, rows: int | None, held_out: ExampleStore | None = None) -> None:
        self.task = task
        self.rows = rows
        self._part = part
        self._held_out = held_out
        self._blocks: dict[int, Examples] = {}

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.task.length

    @functools.cached_property
    def answers(self) -> int:
        """Targets of all rows of a part with an end."""
        assert self.rows is not None
        return int((self.read(np.arange(self.rows)).targets != IGNORED).sum())

    @functools.cached_property
    def _known(self) -> frozenset[bytes]:
        assert self.rows is not None
        numbers = range(0, self.rows, BLOCK)
        tokens = (self.read(np.arange(first, min(first + BLOCK, self.rows or 0))).tokens for first in numbers)
        return frozenset(_digest(row) for block in tokens for row in block)

    def read(self, index: NDArray[np.int64]) -> Examples:
        """The rows of these numbers, in this order."""
        tokens = np.empty((len(index), self.length), np.int64)
        targets = np.empty_like(tokens)
        distances: Array | None = None
        blocks = index // BLOCK
        for number in np.unique(blocks):
            block, here = self._block(int(number)), blocks == number
            places = index[here] % BLOCK
            tokens[here], targets[here] = block.tokens[places], block.targets[places]
            if block.distances is not None:
                distances = np.zeros_like(tokens) if distances is None else distances
                distances[here] = block.distances[places]
        return Examples(tokens, targets, distances)

    def _block(self, number: int) -> Examples:
        if number not in self._blocks:
            if self.rows is None and len(self._blocks) > 1:
                self._blocks.pop(next(iter(self._blocks)))
            self._blocks[number] = _compact(self._draw(number), len(self.task.words))
        return self._blocks[number]

    def _draw(self, number: int) -> Examples:
        entropy = np.random.SeedSequence((self.task.seed, self._part, number))
        random = np.random.Generator(np.random.PCG64(entropy))
        found = self.task.draw(random, BLOCK)
        if self._held_out is None:
            return found
        known = self._held_out._known
        for _ in range(_TRIES):
            repeated = [row for row, tokens in enumerate(found.tokens) if _digest(tokens) in known]
            if not repeated:
                return found
            fresh = self.task.draw(random, len(repeated))
            for old, new in ((found.tokens, fresh.tokens), (found.targets, fresh.targets)):
                old[repeated] = new
            if found.distances is not None and fresh.distances is not None:
                found.distances[repeated] = fresh.distances
        raise InputError(
            f"{self.task.name} with these options has too few different rows to hold {self.task.valid} out: "
            "give a larger length or vocabulary, or fewer rows with valid="
        )


def _digest(row: Array) -> bytes:
    return hashlib.blake2b(row.astype("<i8").tobytes(), digest_size=16).digest()


def _compact(found: Examples, vocabulary: int) -> Examples:
    """The same in types that hold no more than they must: all rows of a part with an end are kept."""
    largest = max(vocabulary, found.tokens.shape[1])
    kind: type[np.signedinteger[Any]] = np.int16 if largest < 1 << 15 else np.int32
    distances = None if found.distances is None else found.distances.astype(kind)
    return Examples(found.tokens.astype(kind), found.targets.astype(kind), distances)


@functools.lru_cache(maxsize=4)
def open_task(task: Task) -> tuple[ExampleStore, ExampleStore]:
    """The training part and the held-out part."""
    valid = ExampleStore(task, _VALID, task.valid)
    return ExampleStore(task, _TRAIN, task.examples, valid), valid


class ExampleStream:
    """The training rows of a task, without end.

    A part with an end is read epoch after epoch, each in an order of its own that depends on (seed, epoch) alone; of
    one without, every seed reads rows of its own.
    """

    def __init__(self, store: ExampleStore, seed: int = 0) -> None:
        if seed < 0:
            raise InputError(f"the seed is {seed}: it must not be negative")
        self.store = store
        self.seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._epoch)

    def epoch_of(self, row: int) -> int:
        """The epoch of row `row`, from 0; a part without end has one."""
        return 0 if self.store.rows is None else row // self.store.rows

    def rows(self, first: int, count: int) -> Batch:
        """Rows first to first + count - 1."""
        if first < 0 or count < 1:
            raise InputError(f"rows({first}, {count}): rows are counted from 0 and at least one is read")
        numbers = np.arange(first, first + count, dtype=np.int64)
        if self.store.rows is None:
            index = numbers + self.seed % _RUNS * _RUN_ROWS
        else:
            epochs, places = numbers // self.store.rows, numbers % self.store.rows
            index = np.concatenate([self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        return _batch(self.store.read(index))

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        assert self.store.rows is not None
        return permutation((self.seed, epoch), self.store.rows)


def example_batches(store: ExampleStore, batch_size: int, max_answers: int | None = None) -> Iterator[Batch]:
    """The rows of a part with an end, in order.

    With `max_answers` below the number of answers: about as many rows as hold so many, spread evenly over the part.
    """
    assert store.rows is not None
    if batch_size < 1 or (max_answers is not None and max_answers < 1):
        raise InputError(f"batch size {batch_size} and max_tokens {max_answers}: both must be at least 1")
    rows = rows_within(store, max_answers)
    chosen = np.arange(rows, dtype=np.int64) * store.rows // rows
    for first in range(0, rows, batch_size):
        yield _batch(store.read(chosen[first : first + batch_size]))


def rows_within(store: ExampleStore, max_answers: int | None) -> int:
    """How many rows `example_batches` gives."""
    assert store.rows is not None
    if max_answers is None or max_answers >= store.answers:
        return store.rows
    return max(1, max_answers * store.rows // store.answers)


def _batch(found: Examples) -> Batch:
    distances = None if found.distances is None else torch.from_numpy(found.distances)
    return Batch(torch.from_numpy(found.tokens), torch.from_numpy(found.targets), None, distances)
