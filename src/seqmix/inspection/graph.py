"""The stack as a graph: positions are nodes, links carry |weights|, layer over layer; the residual stays in place.

A link is an entry of a mixer's matrix above a share of the largest of its row. What the values see through a short
convolution (`Traits.reach`) is no link here: `seqmix.properties.paths` counts it.

Shapes: H heads, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqmix.errors import InputError
from seqmix.properties.paths import fewest_layers, inputs_of

Layers = Sequence[NDArray[Any] | Tensor]
"""For each mixer, from the first to the last, its matrix or its bool links: (time, time) or (heads, time, time)."""


class Hop(NamedTuple):
    """One mixer's link: from `source` below it to `target` above it, with its |weight|."""

    layer: int
    source: int
    target: int
    weight: float


def steps(layers: Layers, source: int, target: int, threshold: float = 0.0) -> int | None:
    """The fewest mixers that a message needs from `source` below all of them to `target` above; None if none lead.

    Args:
        threshold: a link counts above this share of the largest |weight| of its row; the largest of all heads counts.

    Raises:
        InputError: no layers, unequal or not square ones, a position that they do not have, a threshold outside 0 … 1.
    """
    kept = [torch.from_numpy(weights > 0) for weights in _strong(layers, threshold, source, target)]
    fewest = float(fewest_layers(kept, torch.tensor([target]))[0, source])
    return None if fewest == float("inf") else int(fewest)


def reached(layers: Layers, source: int, threshold: float = 0.0) -> list[list[int]]:
    """The positions that hold something of `source` after 0, 1, … all mixers, in order; arguments as `steps`."""
    kept = _strong(layers, threshold, source)
    marked = torch.zeros(1, len(kept[0]), dtype=torch.bool)
    marked[0, source] = True
    found = [marked]
    for weights in kept:
        # Who depends on the marked ones are the inputs of the graph turned round.
        marked = marked | inputs_of(marked, torch.from_numpy(weights > 0).t())
        found.append(marked)
    return [level[0].nonzero()[:, 0].tolist() for level in found]


def strongest_path(layers: Layers, source: int, target: int, threshold: float = 0.0) -> list[Hop] | None:
    """The path with the greatest product of |weights| from `source` to `target`; None where no path leads.

    A residual has the weight 1 and is left out of the list, so that source to source is []. Arguments as `steps`.
    """
    kept = _strong(layers, threshold, source, target)
    time = len(kept[0])
    best = np.full(time, -np.inf)
    best[source] = 0.0
    came_from = []
    for weights in kept:
        # Sums of logarithms, because products over many layers leave the range of a float.
        through = np.log(weights, out=np.full((time, time), -np.inf), where=weights > 0) + best
        from_where = through.argmax(axis=1)
        strength = through[np.arange(time), from_where]
        moves = strength > best
        came_from.append(np.where(moves, from_where, -1))
        best = np.where(moves, strength, best)
    if best[target] == -np.inf:
        return None
    path: list[Hop] = []
    here = target
    for layer in reversed(range(len(kept))):
        below = int(came_from[layer][here])
        if below >= 0:
            path.append(Hop(layer, below, here, float(kept[layer][here, below])))
            here = below
    return path[::-1]


def _strong(layers: Layers, threshold: float, *positions: int) -> list[NDArray[np.float64]]:
    """|weights| (time, time) of each layer, the largest over its heads, zero where they are no link."""
    if not layers:
        raise InputError("there are no layers: a graph needs the matrix of at least one mixer")
    if not 0 <= threshold < 1:
        raise InputError(f"threshold is {threshold}: the share of a row's largest weight must be from 0 to below 1")
    kept = []
    time = layers[0].shape[-1]
    for number, layer in enumerate(layers):
        if layer.ndim not in (2, 3) or tuple(layer.shape[-2:]) != (time, time) or 0 in layer.shape:
            raise InputError(
                f"layer {number} has shape {tuple(layer.shape)}: give (time, time) or (heads, time, time), as many "
                "positions in every layer"
            )
        weights = np.abs(np.asarray(layer, dtype=np.float64)).reshape(-1, time, time).max(axis=0)
        kept.append(np.where(weights > threshold * weights.max(axis=1, keepdims=True), weights, 0.0))
    for position in positions:
        if not 0 <= position < time:
            raise InputError(f"position {position} is not in the text: choose one from 0 to {time - 1}")
    return kept
