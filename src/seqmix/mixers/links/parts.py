"""The parts that patterns of links (`pattern.py`) are unions of, each the rule by which two positions are linked.

Shapes: C links drawn for each position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from seqmix.errors import InputError


def at_least(name: str, value: int, least: int) -> None:
    """Refuses what is not a whole number or is too small."""
    # A bool is an int to Python, and means nothing here.
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}: it must be a whole number, at least {least}")


class Part(ABC):
    """One kind of links of a pattern."""

    @abstractmethod
    def joins(self, later: Tensor, earlier: Tensor) -> Tensor:
        """bool: whether there is a link between positions of a document, `earlier` at or before `later`; broadcast."""

    def joins_either(self, one: Tensor, other: Tensor) -> Tensor:
        """bool: whether there is a link between two positions, whichever is the later one; they broadcast."""
        return self.joins(one.maximum(other), one.minimum(other))

    @property
    @abstractmethod
    def lookback(self) -> int | None:
        """The most positions between a position and the first one it sees, itself included; None for no bound."""

    @property
    def kept(self) -> int:
        """The first positions of a document that are needed for good."""
        return 0

    def refusal(self, context: int) -> str | None:
        """Why sequences of up to `context` positions can never have these links; None where they can."""
        return None


@dataclass(frozen=True)
class Window(Part):
    """The last `size` positions, the present one included, every `dilation`-th; or the last `size` blocks."""

    size: int
    dilation: int = 1
    block: int = 1

    def __post_init__(self) -> None:
        for name in ("size", "dilation", "block"):
            at_least(f"{name} of a window", getattr(self, name), 1)
        if self.dilation > 1 and self.block > 1:
            raise InputError(
                f"a window has dilation {self.dilation} and block {self.block}: blocks stand side by side, so give one "
                "of the two"
            )

    def joins(self, later: Tensor, earlier: Tensor) -> Tensor:
        if self.block > 1:
            return later // self.block - earlier // self.block < self.size
        distance = later - earlier
        near = distance < self.size * self.dilation
        return near if self.dilation == 1 else near & (distance % self.dilation == 0)

    @property
    def lookback(self) -> int:
        return self.size * self.block if self.block > 1 else (self.size - 1) * self.dilation + 1

    def __str__(self) -> str:
        return _call("window", self.size, dilation=(self.dilation, 1), block=(self.block, 1))


@dataclass(frozen=True)
class Global(Part):
    """Positions that see all before them and are seen by all after them; `spans` are (first, last + 1), in order."""

    spans: tuple[tuple[int, int], ...]

    def joins(self, later: Tensor, earlier: Tensor) -> Tensor:
        return reduce(or_, ((at >= a) & (at < b) for a, b in self.spans for at in (later, earlier)))

    @property
    def lookback(self) -> None:
        return None

    def refusal(self, context: int) -> str | None:
        if self.spans[-1][1] <= context:
            return None
        return (
            f"{self} reaches position {self.spans[-1][1] - 1}, but the context is {context} positions long: "
            "name earlier ones, or make the context longer"
        )

    @property
    def kept(self) -> int:
        # The last global position will see all that stands before it.
        return self.spans[-1][1]

    def __str__(self) -> str:
        (first, last), *more = self.spans
        return (
            f"global_({last})" if not (first or more) else f"global_({[p for a, b in self.spans for p in range(a, b)]})"
        )


@dataclass(frozen=True)
class Random(Part):
    """`count` earlier positions (blocks) drawn for each position (block), a function of it and the seed alone.

    All of them where there are fewer.
    """

    count: int
    seed: int = 0
    block: int = 1

    def __post_init__(self) -> None:
        at_least("count of random links", self.count, 1)
        at_least("block of random links", self.block, 1)
        if not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**63:
            raise InputError(f"seed of random links is {self.seed!r}: it must be a whole number of 64 bits")

    def refusal(self, context: int) -> str | None:
        earlier = -(-context // self.block) - 1
        if self.count <= earlier:
            return None
        unit = "positions" if self.block == 1 else f"blocks of {self.block}"
        return (
            f"{self} draws {self.count} earlier {unit}, but a context of {context} positions has at most {earlier}: "
            "draw fewer, or make the context longer"
        )

    def draws(self, units: Tensor) -> list[Tensor]:
        """The units (positions, or blocks) that each of `units` (...) is linked to: C tensors (...), -1 for none.

        Floyd's sampling without replacement, with numbers from a hash of seed, unit and draw.
        """
        chosen: list[Tensor] = []
        for draw in range(self.count):
            top = units - self.count + draw
            pick = _hashed(self.seed, units, draw).remainder(top.clamp(min=0) + 1)
            if chosen:
                pick = torch.where(reduce(or_, (pick == one for one in chosen)), top, pick)
            few = torch.where(units > draw, draw, -1)
            chosen.append(torch.where(units > self.count, pick, few))
        return chosen

    def joins(self, later: Tensor, earlier: Tensor) -> Tensor:
        # What is drawn is earlier, so that the other way round nothing is found.
        return reduce(or_, (one == earlier // self.block for one in self.draws(later // self.block)))

    def joins_either(self, one: Tensor, other: Tensor) -> Tensor:
        return self.joins(one, other) | self.joins(other, one)

    @property
    def lookback(self) -> None:
        return None

    def __str__(self) -> str:
        return _call("random", self.count, seed=(self.seed, 0), block=(self.block, 1))


@dataclass(frozen=True)
class Full(Part):
    """All."""

    def joins(self, later: Tensor, earlier: Tensor) -> Tensor:
        return later >= earlier

    @property
    def lookback(self) -> None:
        return None

    def __str__(self) -> str:
        return "full()"


def _call(name: str, first: int, **options: tuple[int, int]) -> str:
    """A call as text; options are (value, default) and left out where equal."""
    given = [f"{key}={value}" for key, (value, default) in options.items() if value != default]
    return f"{name}({', '.join([str(first), *given])})"


def _hashed(seed: int, units: Tensor, draw: int) -> Tensor:
    """Numbers in 0 ... 2^62 - 1 that are as good as random: the finaliser of SplitMix64 over a counter."""
    x = units * _signed(0x9E3779B97F4A7C15) + _signed(seed * 0xD1342543DE82EF95 + draw * 0x2545F4914F6CDD1D)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    return _shifted(x ^ _shifted(x, 31), 2)


def _signed(value: int) -> int:
    """The number that the lowest 64 bits of a value mean as an int64."""
    return (value + 2**63) % 2**64 - 2**63


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A shift to the right that fills up with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
