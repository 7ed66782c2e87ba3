"""How a count grows: the polynomial it is, found from its values and held to further ones.

count(d, n, ...) = sum of coefficients * d^i n^j ...      exact, in fractions, or None where it is no polynomial
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

POWERS = {1: "", 2: "²", 3: "³"}


@dataclass(frozen=True, kw_only=True)
class Variable:
    """symbol: how it is written. points: degree + 1 values to fit through. check: a further value to be held to."""

    symbol: str
    points: tuple[int, ...]
    check: int


@dataclass(frozen=True, kw_only=True)
class Polynomial:
    """terms: coefficients by the powers of each variable, zeros left out; symbols: the variables."""

    symbols: tuple[str, ...]
    terms: Mapping[tuple[int, ...], Fraction]

    def at(self, values: Sequence[int]) -> Fraction:
        """Its value."""
        return sum(
            (c * math.prod(v**p for v, p in zip(values, powers, strict=True)) for powers, c in self.terms.items()),
            Fraction(0),
        )

    def leading(self, small: Sequence[str] = ()) -> Polynomial:
        """The terms that no other outgrows: those that matter when all variables are large.

        Of the `small` variables it is not known whether they are: a term is left out only if it is outgrown both when
        they grow with the others and when they stay.
        """
        outgrown = self._outgrown(self.symbols) & self._outgrown([s for s in self.symbols if s not in small])
        kept = {powers: c for powers, c in self.terms.items() if powers not in outgrown}
        return Polynomial(symbols=self.symbols, terms=kept)

    def _outgrown(self, growing: Sequence[str]) -> set[tuple[int, ...]]:
        """The terms beside which another one has no lower power of any growing variable, and a higher one of some."""
        places = [self.symbols.index(symbol) for symbol in growing]
        growth = {powers: [powers[place] for place in places] for powers in self.terms}
        return {
            powers
            for powers, own in growth.items()
            if any(other != own and all(b >= a for a, b in zip(own, other, strict=True)) for other in growth.values())
        }

    def degree(self, symbol: str) -> int:
        """The highest power of a variable; 0 where it does not occur."""
        place = self.symbols.index(symbol)
        return max((powers[place] for powers in self.terms), default=0)

    def __str__(self) -> str:
        ordered = sorted(self.terms, key=lambda powers: (-sum(powers), [-power for power in powers]))
        return " + ".join(self._term(powers) for powers in ordered).replace("+ -", "- ") or "0"

    def _term(self, powers: tuple[int, ...]) -> str:
        letters = "".join(
            symbol + POWERS.get(power, f"^{power}") for symbol, power in zip(self.symbols, powers, strict=True) if power
        )
        coefficient = self.terms[powers]
        number = "" if letters and abs(coefficient.numerator) == 1 else str(abs(coefficient.numerator))
        below = "" if coefficient.denominator == 1 else f"/{coefficient.denominator}"
        return ("-" if coefficient < 0 else "") + number + letters + below


def _solve(points: Sequence[int], values: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients, lowest power first, of the polynomial through the points, by Newton's divided differences."""
    table = list(values)
    for order in range(1, len(points)):
        for place in range(len(points) - 1, order - 1, -1):
            table[place] = (table[place] - table[place - 1]) / (points[place] - points[place - order])
    coefficients = [Fraction(0)] * len(points)
    for place in range(len(points) - 1, -1, -1):
        shifted = [Fraction(0), *coefficients[:-1]]
        coefficients = [up - points[place] * here for up, here in zip(shifted, coefficients, strict=True)]
        coefficients[0] += table[place]
    return coefficients


def fit(count: Callable[..., int], variables: Sequence[Variable]) -> Polynomial | None:
    """The polynomial that `count` is in these variables, given to it in their order; None where it is none.

    It goes through all combinations of the points, and must then give the count wherever one variable, and where all
    of them, take the value kept for checking.
    """
    sizes = [len(variable.points) for variable in variables]
    grid = {
        places: Fraction(count(*(v.points[i] for v, i in zip(variables, places, strict=True))))
        for places in itertools.product(*(range(size) for size in sizes))
    }
    for axis, variable in enumerate(variables):
        for rest in itertools.product(*(range(size) if a != axis else range(1) for a, size in enumerate(sizes))):
            line = [(*rest[:axis], place, *rest[axis + 1 :]) for place in range(sizes[axis])]
            solved = _solve(variable.points, [grid[places] for places in line])
            grid.update(zip(line, solved, strict=True))
    found = Polynomial(
        symbols=tuple(variable.symbol for variable in variables),
        terms={powers: coefficient for powers, coefficient in grid.items() if coefficient},
    )
    first = [variable.points[-1] for variable in variables]
    held_to = [variable.check for variable in variables]
    probes = [[*first[:axis], held_to[axis], *first[axis + 1 :]] for axis in range(len(variables))]
    if any(found.at(probe) != count(*probe) for probe in [*probes, held_to]):
        return None
    return found


def exponent(count: Callable[[int], float], at: int) -> float:
    """The local exponent of count(n): log2 of what doubling n does to it."""
    before, after = count(at), count(2 * at)
    return math.log2(after / before) if before > 0 and after > 0 else 0.0


def is_linearithmic(count: Callable[[int], float], at: int) -> bool:
    """Whether count(n) / n gains the same with each doubling of n, and not nothing: n log n."""
    rates = [count(at * 2**power) / (at * 2**power) for power in range(4)]
    gains = [after - before for before, after in itertools.pairwise(rates)]
    return gains[0] > 0 and max(gains) - min(gains) <= 0.02 * max(gains)
