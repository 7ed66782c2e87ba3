"""Sizes that several mixers ask for in the same way: options of at least 1, and heads that divide the width."""

from __future__ import annotations

from typing import Any

from seqmix.errors import InputError

USUAL_HEAD_DIM = 64


def check_sizes(config: Any, *names: str) -> None:
    """Refuses the fields of a config that are below 1; None is not looked at."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")


def usual_heads(dim: int) -> int:
    """The number of heads that divides dim with widths near 64, even ones where dim is even."""
    divisors = [heads for heads in range(1, dim + 1) if dim % heads == 0]
    return min(divisors, key=lambda heads: (dim // heads % 2, abs(dim // heads - USUAL_HEAD_DIM)))


def heads_of(dim: int, heads: int | None) -> int:
    """The number of heads for a width; an InputError where they do not divide it."""
    if heads is None:
        return usual_heads(dim)
    if dim % heads:
        raise InputError(f"heads is {heads}, which does not divide dim {dim}: choose a divisor")
    return heads
