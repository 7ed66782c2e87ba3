"""Mixing matrices as a graph: positions as nodes, layer over layer, links as edges. Shapes: T time, H heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seqmix.errors import InputError
from seqmix.inspection.figures.matrix import checked
from seqmix.inspection.figures.style import (
    HALF_PAGE,
    INK,
    LINE,
    SERIES,
    check_tokens,
    label_positions,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_EDGES = 20_000
LEVELS = 6
Step = tuple[int, int, int, float]


def links_figure(
    layers: Sequence[np.ndarray],
    *,
    tokens: Sequence[str] | None = None,
    target: int | None = None,
    path: Iterable[Step] = (),
    threshold: float = 0.0,
    names: Sequence[str] | None = None,
    title: str = "",
    width: float = HALF_PAGE,
) -> Figure:
    """The links of a stack of mixers, the input at the bottom.

    Args:
        layers: for each mixer, from the first to the last, its weights of any sign or its bool links: (time, time), or
            (heads, time, time), of which the largest counts. A position also keeps what it has, which is not drawn.
        tokens: labels of the positions.
        target: a position of the last layer's output; every edge over which it hears of an input is drawn in colour.
        path: the hops of one path, as `strongest_path` gives them.
        threshold: a link counts above this share of the largest |weight| of its row.
        names: labels of the layers.

    Raises:
        InputError: matrices of other shapes, a target, path or threshold out of range, or more than 20,000 edges.
    """
    with styled():
        figure = new_figure(width, 0.75 + 0.62 * len(layers))
        axes = figure.subplots()
        draw_links(
            axes,
            layers,
            tokens=tokens,
            target=target,
            path=path,
            threshold=threshold,
            names=names,
            inches=width * 0.85,
        )
        axes.set_title(title)
    return figure


def draw_links(
    axes: Axes,
    layers: Sequence[np.ndarray],
    *,
    tokens: Sequence[str] | None = None,
    target: int | None = None,
    path: Iterable[Step] = (),
    threshold: float = 0.0,
    names: Sequence[str] | None = None,
    inches: float = 2.9,
) -> None:
    """Draws the graph into axes; see `links_figure`. `inches` is about their width, for the labels."""
    weights = [_sizes(layer) for layer in layers]
    if not weights:
        raise InputError("layers is empty: give the matrix of at least one layer")
    positions = len(weights[0])
    for matrix in weights:
        if matrix.shape != (positions, positions):
            raise InputError(
                f"a layer has shape {matrix.shape}: a graph needs {positions} x {positions} in every layer"
            )
    if not 0 <= threshold < 1:
        raise InputError(f"threshold is {threshold}: give a share of the largest weight, from 0 to below 1")
    steps = list(path)
    _check_places(target, steps, weights)
    check_tokens(tokens, positions)
    if names is not None and len(names) != len(weights):
        raise InputError(f"names has {len(names)} labels for {len(weights)} layers: give one for each")

    drawn = [matrix > threshold * matrix.max(axis=1, keepdims=True) for matrix in weights]
    edges = sum(int(links.sum()) for links in drawn)
    if edges > MOST_EDGES:
        raise InputError(f"the graph has {edges} edges: raise threshold or draw fewer positions, at most {MOST_EDGES}")
    heard = _heard(drawn, target)
    # In a dense graph thinner lines keep the single link visible.
    width = min(1.1, max(0.3, 4 * positions * len(weights) / max(edges, 1)))
    for layer, links in enumerate(drawn):
        strength = weights[layer] / (weights[layer].max() or 1.0)
        for is_lit in (False, True):
            _draw_edges(axes, layer, strength, links & (heard[layer + 1][:, None] == is_lit), width, is_lit)
    _draw_path(axes, steps, len(weights))
    size = min(14.0, (20 * inches / positions) ** 2)
    for layer, lit in enumerate(heard):
        places = np.arange(positions)
        axes.scatter(places, np.full(positions, layer), s=size, c="white", edgecolors=INK, linewidths=0.5, zorder=4)
        axes.scatter(places[lit], np.full(int(lit.sum()), layer), s=size, c=SERIES[0], linewidths=0, zorder=5)

    axes.set_xlim(-0.7, positions - 0.3)
    axes.set_ylim(-0.25, len(weights) + 0.25)
    label_positions(axes.xaxis, tokens, positions, inches)
    axes.set_xlabel("position")
    axes.set_yticks(range(len(weights) + 1), ["input", *(names or [f"layer {n + 1}" for n in range(len(weights))])])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _sizes(layer: np.ndarray) -> np.ndarray:
    """|weights| (time, time), the largest over the heads."""
    array = np.abs(np.asarray(layer, dtype=np.float64))
    return checked(array.max(axis=0) if array.ndim == 3 and len(array) else array)


def _check_places(target: int | None, steps: list[Step], weights: list[np.ndarray]) -> None:
    """Refuses a target outside, and a path that is not one: steps in turn, each where a link is."""
    layers, positions = len(weights), len(weights[0])
    if target is not None and not 0 <= target < positions:
        raise InputError(f"target is {target}: choose a position from 0 to {positions - 1}")
    here, last = None, -1
    for layer, source, heard, _ in steps:
        if not (0 <= layer < layers and 0 <= source < positions and 0 <= heard < positions):
            raise InputError(
                f"path has the step from {source} to {heard} in layer {layer}: the graph has {layers} layers and "
                f"{positions} positions, counted from 0"
            )
        if layer <= last:
            raise InputError(f"path goes through layer {layer} twice or backwards: give its steps from the input up")
        if here is not None and source != here:
            raise InputError(
                f"path goes on from {source} in layer {layer} where it stands at {here}: give joined steps"
            )
        if not weights[layer][heard, source]:
            raise InputError(
                f"path goes from {source} to {heard} in layer {layer}, which has no such link: leave it out"
            )
        here, last = heard, layer


def _draw_edges(axes: Axes, layer: int, strength: np.ndarray, links: np.ndarray, width: float, is_lit: bool) -> None:
    """The links from one layer to the next; links of about one strength are a single line with gaps."""
    level = np.ceil(strength * LEVELS).astype(int)
    for shade in np.unique(level[links]):
        targets, sources = np.nonzero(links & (level == shade))
        gap = np.full(len(targets), np.nan)
        share = shade / LEVELS
        axes.plot(
            np.stack([sources, targets, gap], axis=1).ravel(),
            np.stack([np.full(len(targets), layer), np.full(len(targets), layer + 1), gap], axis=1).ravel(),
            color=SERIES[0] if is_lit else LINE,
            linewidth=width * (0.3 + 0.7 * share),
            alpha=0.2 + 0.8 * share,
            zorder=2 if is_lit else 1,
        )


def _heard(drawn: list[np.ndarray], target: int | None) -> list[np.ndarray]:
    """bool (time,) for the input and each layer: the places that the target hears of, itself included."""
    lit = np.zeros(len(drawn[0]), dtype=bool)
    if target is not None:
        lit[target] = True
    heard = [lit]
    for links in reversed(drawn):
        lit = lit | links[lit].any(axis=0)
        heard.append(lit)
    return heard[::-1]


def _draw_path(axes: Axes, steps: list[Step], layers: int) -> None:
    """The path as one line from the input to the last layer; where it waits in place, the line is vertical."""
    if not steps:
        return
    links = {layer: (source, target) for layer, source, target, _ in steps}
    here = links[min(links)][0]
    line = [(here, 0)]
    for layer in range(layers):
        here = links.get(layer, (here, here))[1]
        line.append((here, layer + 1))
    x, y = zip(*line, strict=True)
    axes.plot(x, y, color=SERIES[1], linewidth=2.2, zorder=6, solid_capstyle="round")
    axes.scatter(x, y, s=18, c=SERIES[1], linewidths=0, zorder=7)
