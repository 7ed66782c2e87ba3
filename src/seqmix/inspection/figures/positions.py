"""Positions: encodings as phases over the distance, and what the division by sqrt(d) does to the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seqmix.errors import InputError
from seqmix.inspection.figures.style import HALF_PAGE, INK, SERIES, new_figure, powers_of_two, series_style, styled
from seqmix.inspection.positions import Positions
from seqmix.inspection.scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNITS = {"alibi": "added to the score, nats"}


def positions_figure(positions: Positions, *, title: str = "", width: float = HALF_PAGE) -> Figure:
    """The curves of an encoding over the distance, which is logarithmic: from fast pairs of channels, dark, to slow.

    Raises:
        InputError: the model has no encoding, so there is nothing over the distance.
    """
    if not positions.curves:
        raise InputError(f"there is no curve to draw for positions of kind {positions.kind!r}: choose another model")
    with styled():
        from matplotlib import colormaps

        rows = -(-len(positions.curves) // 2)
        figure = new_figure(width, width * 0.6 + 0.14 * rows)
        axes = figure.subplots()
        distances = np.asarray(positions.distances)
        first, *others = positions.curves
        shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(others)))
        # The fast ones fill the plane at far distances: what is drawn later stays visible above them.
        for curve, shade in zip(others, shades, strict=True):
            axes.plot(distances[1:], curve.values[1:], color=tuple(shade), linewidth=0.9, alpha=0.7, label=curve.name)
        axes.plot(distances[1:], first.values[1:], color=INK, linewidth=1.8, label=first.name)
        axes.set_xscale("log", base=2)
        powers_of_two(axes, float(distances[-1]))
        axes.grid()
        axes.set_xlabel("distance")
        axes.set_ylabel(_UNITS.get(positions.kind, "cosine"))
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2, fontsize=6, handlelength=1.2, columnspacing=1.0)
    return figure


def scores_figure(scores: Scores, *, width: float = 2 * HALF_PAGE) -> Figure:
    """Two panels against the width of a head: the spread of a row's scores, and the entropy of the row.

    Lines are random queries and keys of variance 1, with the division by sqrt(d) and without it; points are the layers
    of the model.
    """
    theory = scores.theory
    with styled():
        figure = new_figure(width, width * 0.36)
        panels = figure.subplots(1, 2)
        lines = {
            "divided by √d": (theory.spread, theory.entropy),
            "not divided": (theory.spread_unscaled, theory.entropy_unscaled),
        }
        for index, (name, values) in enumerate(lines.items()):
            for axes, curve in zip(panels, values, strict=True):
                axes.plot(theory.head_dims, curve, label=name if axes is panels[0] else None, **series_style(index))
        for layer in scores.layers:
            divided, plain = (layer.spread, layer.entropy), (layer.spread_unscaled, layer.entropy_unscaled)
            for sign, color, heights in (("o", SERIES[0], divided), ("s", SERIES[1], plain)):
                for axes, height in zip(panels, heights, strict=True):
                    axes.plot(layer.head_dim, height, sign, color=color, markersize=4, alpha=0.7)
        for axes, name in zip(panels, ("deviation of a row's scores, nats", "entropy of a row, bits"), strict=True):
            axes.set_xscale("log", base=2)
            powers_of_two(axes, max([*theory.head_dims, *(layer.head_dim for layer in scores.layers)]))
            axes.grid()
            axes.set_ylim(bottom=0)
            axes.set_xlabel("width of a head")
            axes.set_ylabel(name)
        figure.legend(loc="outside lower center", ncols=2)
    return figure
