"""Receptive fields: the share of the gradient over the distance, and the spans that hold most of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from seqmix.errors import InputError
from seqmix.inspection.figures.style import (
    HALF_PAGE,
    INK,
    new_figure,
    powers_of_ten,
    powers_of_two,
    series_style,
    styled,
)
from seqmix.inspection.receptive_field import Widths

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Field(Protocol):
    """A `ReceptiveField`, one of its `layers`, or its `untrained` curve."""

    @property
    def curve(self) -> list[float]: ...
    @property
    def widths(self) -> Widths: ...


_MARKS = {"half": ("o", "50 %"), "ninety": ("s", "90 %"), "ninety_nine": ("^", "99 %")}


def receptive_field_figure(fields: Mapping[str, Field], *, title: str = "", width: float = HALF_PAGE) -> Figure:
    """The share of the gradient's norm at each distance, one line a field, both axes logarithmic.

    The distance is counted with the output itself as 1, so that a mark stands at the number of positions, back from the
    output, that hold 50, 90 or 99 % of the norm.

    Args:
        fields: what to draw, by name: models, layers, or trained and untrained weights.

    Raises:
        InputError: nothing to draw, or a curve without a positive value.
    """
    if not fields:
        raise InputError("fields is empty: give at least one receptive field")
    with styled():
        figure = new_figure(width, width * 0.72)
        axes = figure.subplots()
        for index, (name, field) in enumerate(fields.items()):
            shares = np.asarray(field.curve, dtype=np.float64)
            if not (shares > 0).any():
                raise InputError(f"the curve of {name!r} has no positive share: measure it on a text that is seen")
            distances = np.arange(1, len(shares) + 1)
            seen = np.where(shares > 0, shares, np.nan)
            look = series_style(index)
            axes.plot(distances, seen, label=name, **look)
            for attribute, (sign, _) in _MARKS.items():
                at = max(1, getattr(field.widths, attribute))
                axes.plot(at, seen[at - 1], sign, color=look["color"], markersize=5, markeredgecolor="white", zorder=4)
        for sign, label in _MARKS.values():
            axes.plot([], [], sign, color=INK, markersize=5, label=label)
        axes.set_xscale("log", base=2)
        powers_of_ten(axes)
        powers_of_two(axes, max(len(field.curve) for field in fields.values()))
        axes.grid()
        axes.set_xlabel("positions back (itself: 1)")
        axes.set_ylabel("share of the gradient")
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=3)
    return figure
