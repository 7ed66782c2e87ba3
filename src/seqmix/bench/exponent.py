"""How a measured quantity grows with the context: value = constant · context^exponent, fitted in logarithms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from seqmix.errors import InputError

CONSTANT_SHARE = 0.25
"""Values of which the constant part is at most this share are fitted."""

LEAST_POINTS = 3


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """A fitted exponent with its standard error, over the contexts from `first` to `last`.

    is_clear: whether in all of them the constant part was small; else the exponent is too low.
    """

    value: float
    error: float
    first: int
    last: int
    points: int
    is_clear: bool

    def to_dict(self) -> dict[str, float]:
        """All fields as a JSON value."""
        return asdict(self)


def fit(values: Mapping[int, float]) -> tuple[float, float]:
    """The least-squares slope of log value over log context, and its standard error (0 for two points)."""
    if len(values) < 2 or min(values.values()) <= 0:
        raise InputError(f"{len(values)} values: an exponent needs at least two contexts, with values above 0")
    points = [(math.log(context), math.log(value)) for context, value in values.items()]
    center = [sum(axis) / len(points) for axis in zip(*points, strict=True)]
    spread = sum((x - center[0]) ** 2 for x, _ in points)
    slope = sum((x - center[0]) * (y - center[1]) for x, y in points) / spread
    rest = sum((y - center[1] - slope * (x - center[0])) ** 2 for x, y in points)
    error = math.sqrt(rest / (len(points) - 2) / spread) if len(points) > 2 else 0.0
    return slope, error


def upper_range(values: Mapping[int, float]) -> tuple[list[int], bool]:
    """The contexts that an exponent is fitted over, and whether the constant part is small in all of them.

    The value at the shortest context bounds the constant part: what a call costs however little it has to do. Contexts
    at which it is at most `CONSTANT_SHARE` of the value are taken, and the longest `LEAST_POINTS` in any case.
    """
    contexts = sorted(values)
    constant = values[contexts[0]]
    clear = [context for context in contexts if constant <= CONSTANT_SHARE * values[context]]
    if len(clear) >= LEAST_POINTS:
        # The upper end of it: a dip in between is noise.
        return contexts[contexts.index(clear[0]) :], True
    return contexts[-LEAST_POINTS:], False


def exponent(values: Mapping[int, float]) -> Exponent:
    """The exponent over the upper contexts; see `upper_range`.

    Raises:
        InputError: fewer than two contexts, or a value that is not above 0.
    """
    contexts, is_clear = upper_range(values)
    slope, error = fit({context: values[context] for context in contexts})
    return Exponent(
        value=slope, error=error, first=contexts[0], last=contexts[-1], points=len(contexts), is_clear=is_clear
    )
