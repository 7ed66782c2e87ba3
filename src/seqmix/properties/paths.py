"""How far apart two positions are in the graph of who listens to whom, over layers of the same mixer or of a stack.

An edge is one layer: from an input to an output that depends on it, through a link of the matrix or, where values
reach further back than their own position, through that. The residual carries every position on at no cost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seqmix.mixer import Mixer

DISTANCES = (11, 37, 127)
"""The distances at which paths are measured, odd ones that no dilation divides; a mixer made for a longest length must
take twice the largest."""
TARGETS = 16
MARGIN = 256
"""Positions before the first source and after the first target, so that neither is a special one at the beginning."""

EDGES_AT_ONCE = 1024


def dependencies(mixer: Mixer, time: int) -> Tensor:
    """bool (time, time): the inputs that each output depends on, its own included."""
    near = mixer.links(time).cpu() | torch.eye(time, dtype=torch.bool)
    seen = near.clone()
    for shift in range(1, min(mixer.traits.reach, time)):
        seen[:, : time - shift] |= near[:, shift:]
    return seen


def hops(layers: Sequence[Mixer], distance: int, *, repeat: bool = False) -> int | None:
    """The fewest layers that carry something over a distance, for the worst of several targets; None if it cannot be.

    layers: from the first to the last. repeat: take one layer as often as needed instead of each once, in order.
    """
    time = distance + min(distance, MARGIN) + 1
    targets = torch.linspace(distance, time - 1, min(TARGETS, time - distance)).round().long()
    sources = (targets - distance)[:, None]
    kinds = [(type(mixer), repr(mixer.config)) for mixer in layers]
    edges = {kind: dependencies(mixer, time) for kind, mixer in dict(zip(kinds, layers, strict=True)).items()}
    if repeat:
        reached = torch.zeros(len(targets), time, dtype=torch.bool).scatter_(1, targets[:, None], True)
        for count in range(distance + 1):
            if bool(reached.gather(1, sources).all()):
                return count
            wider = inputs_of(reached, edges[kinds[0]])
            if torch.equal(wider, reached):
                return None
            reached = wider
        return None
    fewest = fewest_layers([edges[kind] for kind in kinds], targets)
    worst = float(fewest.gather(1, sources).max())
    return None if math.isinf(worst) else int(worst)


def fewest_layers(edges: Sequence[Tensor], targets: Tensor) -> Tensor:
    """(n, time): over how many layers at least something gets from an input to a target, inf where it cannot.

    edges: for each layer, from the first to the last, bool (time, time), as `dependencies`. targets: (n,) positions.
    """
    fewest = torch.full((len(targets), edges[0].shape[1]), torch.inf)
    fewest.scatter_(1, targets[:, None], 0.0)
    for links in reversed(edges):
        further = fewest
        for count in range(int(fewest[fewest.isfinite()].max()) + 1):
            here = inputs_of(fewest == count, links)
            further = torch.where(here & (further > count + 1), float(count + 1), further)
        fewest = further
    return fewest


def inputs_of(targets: Tensor, edges: Tensor) -> Tensor:
    """bool (n, time): the inputs that any of the marked targets (n, time) depends on."""
    found = torch.zeros(targets.shape)
    # The edges become numbers a few rows at a time, because those of a long context are many.
    for first in range(0, edges.shape[0], EDGES_AT_ONCE):
        rows = slice(first, first + EDGES_AT_ONCE)
        if bool(targets[:, rows].any()):
            found += targets[:, rows].float() @ edges[rows].float()
    return found > 0


def formula(lengths: dict[int, int | None]) -> str:
    """The hops by distance n in words: a constant, n / r, n to a power, or log n."""
    known = {n: count for n, count in lengths.items() if count is not None}
    if len(known) < len(lengths):
        return "never" if not known else "some never"
    counts = list(known.values())
    if len(set(counts)) == 1:
        return str(counts[0])
    (first, least), (last, most) = min(known.items()), max(known.items())
    for stride in range(1, first + 1):
        if all(count == math.ceil(n / stride) for n, count in known.items()):
            return "n" if stride == 1 else f"n/{stride}"
    steps = [after - before for before, after in itertools.pairwise(counts)]
    if max(steps) - min(steps) <= 1 and most - least <= 2 * math.log2(last / first):
        return "log n"
    return f"n^{math.log(most / least) / math.log(last / first):.2g}"


def span_by_layers(mixer: Mixer, layers: Sequence[int] = (1, 2, 4, 8)) -> dict[int, int | None]:
    """The receptive field of that many layers of the mixer, by adding up how far each looks; None for everything."""
    lags = mixer.lags
    if lags is None:
        return dict.fromkeys(layers)
    # The residual passes every position on, so lag 0 is always among the lags; only the ends matter for a span.
    back, ahead = max(0, *lags), min(0, *lags)
    return {count: count * back - count * ahead + 1 for count in layers}
