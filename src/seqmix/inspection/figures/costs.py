"""Costs against the length of the context, and where two models cross."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from seqmix.errors import InputError, unknown_name
from seqmix.inspection.costs import Costs
from seqmix.inspection.figures.style import (
    HALF_PAGE,
    INK,
    count,
    new_figure,
    powers_of_ten,
    powers_of_two,
    series_style,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Quantity = Literal["forward_flops", "step_flops", "state_bytes"]
LABELS: dict[str, str] = {
    "forward_flops": "FLOPs a token read",
    "step_flops": "FLOPs a generated token",
    "state_bytes": "bytes of the state",
}


def costs_figure(
    costs: Mapping[str, Costs],
    quantity: Quantity,
    *,
    crossings: Iterable[float] = (),
    title: str = "",
    width: float = HALF_PAGE,
) -> Figure:
    """One quantity against the length, one line a model, both axes logarithmic.

    Args:
        costs: of `cost_curves`, by the model's name; a line ends where a model's documents must end.
        crossings: lengths at which two lines cross, as `seqmix.models.crossings.all_crossings` finds them exactly; each
            is marked by a line and its number.

    Raises:
        InputError: no model, a quantity that does not exist, or a crossing below 1.
    """
    if not costs:
        raise InputError("costs is empty: give at least one model's")
    if quantity not in LABELS:
        raise unknown_name("quantity", quantity, LABELS)
    with styled():
        figure = new_figure(width, width * 0.72)
        axes = figure.subplots()
        for index, (name, cost) in enumerate(costs.items()):
            values = {"forward_flops": cost.forward_flops, "step_flops": cost.step_flops}.get(
                quantity, cost.state_bytes
            )
            known = np.array([value if value else np.nan for value in values], dtype=np.float64)
            axes.plot(cost.lengths, known, label=name, **series_style(index))
        axes.set_xscale("log", base=2)
        powers_of_ten(axes)
        for length in crossings:
            if length < 1:
                raise InputError(f"a crossing is at {length}: give lengths of at least 1")
            axes.axvline(length, color=INK, linewidth=0.7, linestyle=":")
            axes.annotate(
                f" {count(length)}", (length, 1), xycoords=("data", "axes fraction"), va="top", fontsize=7, color=INK
            )
        powers_of_two(axes, max(cost.lengths[-1] for cost in costs.values()))
        axes.grid()
        axes.set_xlabel("tokens of context")
        axes.set_ylabel(LABELS[quantity])
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=min(3, len(costs)))
    return figure
