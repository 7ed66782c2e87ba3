"""How far a stack of mixers sees, from what each of them says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from seqmix.mixer import Mixer
from seqmix.properties.paths import hops


def receptive_field(mixers: Sequence[Mixer]) -> int | None:
    """The span in positions that one output can depend on, itself included; None where it is unbounded."""
    spans = [mixer.receptive_field for mixer in mixers]
    if None in spans:
        return None
    if _period(mixers) == 1:
        return 1 + sum(span - 1 for span in spans if span is not None)
    # Where links are made of blocks, an output at the end of one is not at the end of the blocks below.
    reached = [_reached(mixers, position) for position in range(_period(mixers))]
    return max(bits.bit_length() - _lowest(bits) for bits in reached)


def positions_seen(mixers: Sequence[Mixer]) -> int | None:
    """How many positions of the receptive field can really reach the output; None where it is unbounded."""
    if None in [mixer.receptive_field for mixer in mixers]:
        return None
    return max(_reached(mixers, position).bit_count() for position in range(_period(mixers)))


def _period(mixers: Sequence[Mixer]) -> int:
    return math.lcm(*(mixer.period for mixer in mixers))


def _reached(mixers: Sequence[Mixer], position: int) -> int:
    """The positions that can reach the output at `position`, as bits of a whole number: the farther back, the higher.

    A shift moves all of them at once.
    """
    lags = [lag for mixer in mixers for lag in mixer.lags or ()]
    ahead = len(mixers) * max(0, -min(lags, default=0))
    reached, width = 1 << ahead, 1 + ahead + len(mixers) * max([0, *lags])
    for mixer in reversed(mixers):
        earlier = reached
        for kind in range(mixer.period):
            # Of what is reached so far, the positions of this kind; the residual passes every position on.
            here = earlier & _every(mixer.period, position + ahead - kind, width)
            for lag in mixer.lags_at(kind) or ():
                reached |= here << lag if lag >= 0 else here >> -lag
    return reached


def _every(period: int, first: int, width: int) -> int:
    """The bits first, first + period, ... below `width`, and before them as far as there are any."""
    if period == 1:
        return (1 << width) - 1
    return sum(1 << place for place in range(first % period, width, period))


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def path_length(mixers: Sequence[Mixer], distance: int) -> int | None:
    """The fewest mixers through which a position `distance` back can reach the output; None if it cannot."""
    if distance and any(mixer.sees_everything for mixer in mixers):
        return 1
    if distance and receptive_field(mixers) is None:
        return hops(mixers, distance)
    spans = sorted((mixer.receptive_field or 1 for mixer in mixers), reverse=True)
    reached = 0
    for count, span in enumerate(spans, start=1):
        reached += span - 1
        if reached >= distance:
            return count
    return None
