"""What the context is worth: the loss by position, and with all further back than a distance cut off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from seqmix.errors import InputError
from seqmix.inspection.context import ContextWorth
from seqmix.inspection.figures.style import HALF_PAGE, new_figure, powers_of_two, series_style, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def context_figure(worths: Mapping[str, ContextWorth], *, width: float = 2 * HALF_PAGE) -> Figure:
    """Two panels, one line a model: the loss by position, and the ablation with the 95 % interval of its difference.

    The dotted line at the height of a model's colour is its loss with the whole context.
    """
    if not worths:
        raise InputError("worths is empty: give at least one model's")
    with styled():
        figure = new_figure(width, width * 0.38)
        left, right = figure.subplots(1, 2, sharey=True)
        for index, (name, worth) in enumerate(worths.items()):
            look = series_style(index)
            by_position, ablation = worth.loss_by_position, worth.ablation
            left.plot(np.asarray(by_position.positions) + 1, by_position.bits, label=name, **look)
            right.plot(ablation.distances, ablation.bits, **look)
            right.axhline(ablation.whole, color=look["color"], linewidth=0.8, linestyle=":")
            low, high = (
                ablation.whole + np.array([np.nan if edge is None else edge for edge in edges])
                for edges in (ablation.low, ablation.high)
            )
            right.fill_between(ablation.distances, low, high, color=look["color"], alpha=0.18, linewidth=0)
        units = {worth.unit for worth in worths.values()}
        left.set_ylabel(" or ".join(sorted(units)))
        _log_axis(left, max(max(worth.loss_by_position.positions) + 1 for worth in worths.values()))
        _log_axis(right, max(max(worth.ablation.distances) for worth in worths.values()))
        left.set_title("loss by position")
        left.set_xlabel("tokens read")
        right.set_title("all further back cut off")
        right.set_xlabel("tokens left to predict from")
        if len(worths) > 1:
            figure.legend(loc="outside lower center", ncols=min(4, len(worths)))
    return figure


def _log_axis(axes: Axes, last: float) -> None:
    axes.set_xscale("log", base=2)
    powers_of_two(axes, last)
    axes.grid()
