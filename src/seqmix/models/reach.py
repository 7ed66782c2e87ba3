"""How far a stack of mixers sees, from what each of them says."""

from __future__ import annotations

from collections.abc import Sequence

from seqmix.mixer import Mixer
from seqmix.properties.paths import hops


def receptive_field(mixers: Sequence[Mixer]) -> int | None:
    """The span in positions that one output can depend on, itself included; None where it is unbounded."""
    spans = [mixer.receptive_field for mixer in mixers]
    return None if None in spans else 1 + sum(span - 1 for span in spans if span is not None)


def positions_seen(mixers: Sequence[Mixer]) -> int | None:
    """How many positions of the receptive field can really reach the output; None where it is unbounded."""
    if receptive_field(mixers) is None:
        return None
    # Bit d of a whole number stands for the position d back: a shift moves all of them at once.
    reached = 1
    for mixer in mixers:
        earlier = reached
        # The residual passes every position on, so lag 0 is always among the lags.
        for lag in mixer.lags or ():
            reached |= earlier << lag
    return reached.bit_count()


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
