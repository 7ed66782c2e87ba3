"""What every synthetic task is: rows of words, of which a few have an answer that the model must give.

A row is one example and one document. The target of a position is what the model should say after reading it, or
-100 where nothing is asked, so the loss and the accuracy are over the answers alone. Rows are drawn in blocks, and a
block depends on (seed, part, number of the block) alone: any row can be had without those before it.

Shapes: R rows, L tokens of a row.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from seqmix.errors import InputError

PAD = "<|pad|>"
"""Word 0 of every task: what fills a row up; also the tokenizer's begin and end, which no row holds otherwise."""

IGNORED = -100

Array = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, eq=False)
class Examples:
    """tokens, targets (R, L), whole numbers; a target is -100 where nothing is asked.

    distances: (R, L), for tasks that ask at different distances: how far back what decides each answer stands;
    0 where nothing is asked.
    """

    tokens: Array
    targets: Array
    distances: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task and its options, which are the fields.

    length: tokens of a row, which is the context of a model for it. examples: how many rows the training part holds,
    read again in a new order epoch after epoch; None draws new ones without end. valid: rows held out; no training
    row equals one of them. seed: of both parts.

    Raises:
        InputError: a value that the task cannot have.
    """

    name: ClassVar[str]
    length: int
    examples: int | None = None
    valid: int = 3000
    seed: int = 0

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value, least = getattr(self, one.name), 0 if one.name == "seed" else 1
            if isinstance(value, int) and value < least:
                raise self.refuse(one.name, f"it must be at least {least}")
        self.check()

    def refuse(self, option: str, reason: str) -> InputError:
        """The error for the value that an option has."""
        return InputError(f"{self.name}: {option} is {getattr(self, option)}, and {reason}")

    @abstractmethod
    def check(self) -> None:
        """Raises an InputError for options that do not go together."""

    @property
    @abstractmethod
    def words(self) -> list[str]:
        """The vocabulary by id, without white space in a word; the first is `PAD`."""

    @abstractmethod
    def draw(self, random: np.random.Generator, rows: int) -> Examples:
        """So many rows."""

    def spec(self) -> str:
        """NAME:key=value,... with every option."""
        return f"{self.name}:{','.join(f'{key}={value}' for key, value in self.options().items())}"

    def options(self) -> dict[str, Any]:
        """The options by name; those that are None are left out."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def distinct(random: np.random.Generator, rows: int, choices: int, count: int) -> Array:
    """(rows, count) numbers below `choices`, in random order and none twice in a row."""
    if count * count > choices:
        return np.argsort(random.random((rows, choices)), axis=1)[:, :count]
    drawn = random.integers(0, choices, (rows, count))
    while True:
        # Whole rows are drawn again, which leaves all that remain equally likely.
        ordered = np.sort(drawn, axis=1)
        again = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if not again.any():
            return drawn
        drawn[again] = random.integers(0, choices, (int(again.sum()), count))


def no_targets(tokens: Array) -> Array:
    """Targets (R, L) of rows that ask nothing yet."""
    return np.full(tokens.shape, IGNORED, dtype=np.int64)


def numbered(letter: str, count: int) -> list[str]:
    """letter0, letter1, ..."""
    return [f"{letter}{number}" for number in range(count)]
