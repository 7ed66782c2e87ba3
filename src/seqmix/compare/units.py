"""Numbers as people read them: three significant digits, with the unit."""

from __future__ import annotations

import math


def number(value: float | None) -> str:
    """Three significant digits with k, M, G, T, P or E for thousands; "-" for None."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    for power, letter in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 0.9995 * 10**power:
            return _digits(value / 10**power) + letter
    return _digits(value)


def _digits(value: float) -> str:
    """Three significant digits without an exponent while that stays readable."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    places = 2 - math.floor(math.log10(abs(rounded)))
    return f"{value:.2e}" if places > 8 else f"{rounded:.{max(0, places)}f}"


def count(value: float) -> str:
    """A whole number with thousands apart, such as a context."""
    return f"{round(value):,}"


def size(value: float | None) -> str:
    """Bytes, in units of 1024."""
    if value is None:
        return "-"
    for power, letter in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{_digits(value / 1024**power)} {letter}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds below two minutes, else minutes or hours."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{_digits(seconds)} s"
    if seconds < 7200:
        return f"{_digits(seconds / 60)} min"
    return f"{_digits(seconds / 3600)} h"


def money(value: float | None, unit: str) -> str:
    """Three significant digits and the unit of the price."""
    return "-" if value is None else f"{_digits(value)} {unit}"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{value * 100:.3g} %"


def listed(words: list[str]) -> str:
    """a; a and b; a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
