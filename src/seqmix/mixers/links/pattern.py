"""Patterns of links: which earlier positions a position of sparse attention listens to.

    window(256) | global_(4) | random(3)

A pattern is a union of parts. Each says which links lead from an earlier position s to a later one t of the same
document (s <= t); a position always sees itself. Causal attention uses these links, non-causal attention uses every
one of them both ways. With `block`, window and random links join whole blocks of positions (block b is positions
b * block to b * block + block - 1), of which causal attention uses what is not ahead.

Sparse Transformer arXiv 1904.10509 (strided and local links), Longformer arXiv 2004.05150 (windows, dilated windows,
global tokens), BigBird arXiv 2007.14062 (blocks: a window, global and random ones).

Shapes: T targets, S sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import lcm
from operator import or_

import torch
from torch import Tensor

from seqmix.errors import InputError
from seqmix.mixers.links.parts import Full, Global, Part, Random, Window, at_least


@dataclass(frozen=True)
class Pattern:
    """A union of parts. `a | b` joins two patterns, `str` writes one as `parse_pattern` reads it."""

    parts: tuple[Part, ...]

    def __or__(self, other: Pattern) -> Pattern:
        return Pattern(tuple(dict.fromkeys(self.parts + other.parts)))

    def __str__(self) -> str:
        return " | ".join(str(part) for part in self.parts)

    def allows(self, targets: Tensor, sources: Tensor, *, causal: bool) -> Tensor:
        """bool: whether targets see sources, both positions of one document; they broadcast against each other."""
        is_self = targets == sources
        if not causal:
            return reduce(or_, (part.joins_either(targets, sources) for part in self.parts), is_self)
        return reduce(or_, (part.joins(targets, sources) for part in self.parts), is_self) & (sources <= targets)

    def check_context(self, context: int) -> None:
        """Raises an InputError where a part names more links, or later positions, than `context` positions have."""
        for refusal in (part.refusal(context) for part in self.parts):
            if refusal is not None:
                raise InputError(refusal)

    @property
    def is_full(self) -> bool:
        """Whether every position sees all before it."""
        return any(isinstance(part, Full) for part in self.parts)

    @property
    def ring(self) -> int | None:
        """The latest positions that causal attention must keep, besides the first `kept`; None for all.

        A dilated window needs its whole span; random links may come back to any position.
        """
        spans = [part.lookback for part in self.parts if not isinstance(part, Global)]
        return None if None in spans else max((span for span in spans if span is not None), default=1)

    @property
    def kept(self) -> int:
        """The first positions of a document that causal attention must keep for good."""
        return max(part.kept for part in self.parts)

    @property
    def period(self) -> int:
        """After how many positions targets, far from the beginning, see the same again."""
        return lcm(*(part.block for part in self.parts if isinstance(part, Window)))

    def seen(self, *, causal: bool) -> tuple[Tensor, Tensor] | None:
        """Targets (T,) of every kind, far from both ends, and what they see, bool (T, S); None for no bound."""
        lookbacks = [part.lookback for part in self.parts]
        if None in lookbacks:
            return None
        span = max(lookback for lookback in lookbacks if lookback is not None)
        targets = torch.arange(self.period, device="cpu") + -(-span // self.period) * self.period
        sources = torch.arange(int(targets[-1]) + (1 if causal else span + 1), device="cpu")
        return targets, self.allows(targets[:, None], sources, causal=causal)

    def receptive_field(self, *, causal: bool) -> int | None:
        """The span from the first to the last position that one target sees; None for no bound."""
        found = self.seen(causal=causal)
        if found is None:
            return None
        seen = found[1].int()
        return int((seen.shape[1] - seen.flip(1).argmax(1) - seen.argmax(1)).max())

    def lags(self, *, causal: bool, position: int | None = None) -> Sequence[int] | None:
        """How far back the positions that targets see stand, negative for ahead; None for no bound.

        Args:
            position: of one kind of target, counted from where a period begins; None for all kinds.
        """
        found = self.seen(causal=causal)
        if found is None:
            return None
        targets, seen = found if position is None else (part[[position % self.period]] for part in found)
        back = targets[:, None] - torch.arange(seen.shape[1], device="cpu")
        return back[seen].unique().tolist()

    def positions_seen(self, *, causal: bool) -> int | None:
        """The most positions that one target sees; None for no bound."""
        found = self.seen(causal=causal)
        return None if found is None else int(found[1].sum(dim=1).max())

    @property
    def single_window(self) -> Window | None:
        """The window that is all of the pattern, of positions and not of blocks; None for another pattern."""
        only = self.parts[0]
        return only if len(self.parts) == 1 and isinstance(only, Window) and only.block == 1 else None


def window(size: int, *, dilation: int = 1, block: int = 1) -> Pattern:
    """The last `size` positions, the present one included; non-causal attention sees as many after it too.

    Args:
        dilation: every so many positions. block: positions of a block; `size` then counts blocks.
    """
    return Pattern((Window(size, dilation, block),))


def global_(positions: int | Sequence[int], *, block: int = 1) -> Pattern:
    """Positions that see all and are seen by all: the first so many of a document, or those given, counted from 0.

    Args:
        block: positions of a block; `positions` then counts, or names, blocks.
    """
    at_least("block of global positions", block, 1)
    if isinstance(positions, int):
        at_least("the number of global positions", positions, 1)
        return Pattern((Global(((0, positions * block),)),))
    if not positions:
        raise InputError("the list of global positions is empty: name at least one, or leave global_ out")
    for position in positions:
        at_least("a global position", position, 0)
    spans: list[tuple[int, int]] = []
    for first in sorted(set(positions)):
        begins = spans.pop()[0] if spans and spans[-1][1] == first * block else first * block
        spans.append((begins, (first + 1) * block))
    return Pattern((Global(tuple(spans)),))


def random(count: int, *, seed: int = 0, block: int = 1) -> Pattern:
    """`count` earlier positions, or blocks, drawn for each one; they may coincide with those of other parts."""
    return Pattern((Random(count, seed, block),))


def full() -> Pattern:
    """Every earlier position."""
    return Pattern((Full(),))


def longformer(size: int, global_positions: int | Sequence[int] = 1) -> Pattern:
    """A window and global positions (arXiv 2004.05150, whose window counts both sides: 2 * size - 1 is its w + 1)."""
    return window(size) | global_(global_positions)


def bigbird(
    *,
    block: int = 64,
    window_blocks: int = 2,
    global_blocks: int | Sequence[int] = 2,
    random_blocks: int = 3,
    seed: int = 0,
) -> Pattern:
    """Blocks: a window (2: the paper's 3 of a non-causal model), global ones and random ones (arXiv 2007.14062)."""
    return (
        window(window_blocks, block=block)
        | global_(global_blocks, block=block)
        | random(random_blocks, seed=seed, block=block)
    )
