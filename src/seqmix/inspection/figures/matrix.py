"""Mixing matrices as heat maps. Shapes: T time (targets, rows), S source (columns)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seqmix.errors import InputError
from seqmix.inspection.figures.style import HALF_PAGE, check_tokens, label_positions, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# From white, which is "no link", to dark: lightness falls all the way. Signed: orange below zero, blue above, in an
# odd number of steps, so that zero is white.
_SEQUENTIAL = ("#ffffff", "#c6dbef", "#6baed6", "#2171b5", "#08306b")
_DIVERGING = ("#7f3b08", "#d9720f", "#fdd0a2", "#ffffff", "#c6dbef", "#4292c6", "#08306b")


def matrix_figure(
    matrices: np.ndarray | Mapping[str, np.ndarray],
    *,
    tokens: Sequence[str] | None = None,
    source_tokens: Sequence[str] | None = None,
    gamma: float = 1.0,
    label: str = "M",
    width: float | None = None,
) -> Figure:
    """A matrix (time, source), or several by name side by side on one scale of colours.

    Args:
        matrices: without a negative entry they are drawn from white to dark, otherwise on a scale with two sides.
        tokens: the labels of the targets, and of the sources where `source_tokens` is not given.
        gamma: the exponent of the scale: 0.5 shows small weights beside large ones.
        label: the name of what is drawn, beside its scale.
        width: of the figure in inches; None for half a page a matrix.

    Raises:
        InputError: an array that is not a matrix or has entries that are not finite, or labels of another length.
    """
    panels = dict(matrices) if isinstance(matrices, Mapping) else {"": matrices}
    if not panels:
        raise InputError("matrices is empty: give at least one")
    width = HALF_PAGE * len(panels) if width is None else width
    with styled():
        figure = new_figure(width, width / len(panels) * 0.82)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        scale = color_scale(panels.values(), gamma)
        side = width / len(panels) * 0.7
        for place, (name, matrix) in zip(axes, panels.items(), strict=True):
            image = draw_matrix(
                place, matrix, tokens=tokens, source_tokens=source_tokens, title=name, scale=scale, inches=side
            )
        add_scale(image, label)
    return figure


def color_scale(matrices: Any, gamma: float = 1.0) -> dict[str, Any]:
    """The colours and limits (keywords of `imshow`) that matrices share: two-sided where any entry is negative."""
    from matplotlib.colors import FuncNorm, LinearSegmentedColormap, PowerNorm

    if gamma <= 0:
        raise InputError(f"gamma is {gamma}: it must be greater than 0")
    arrays = [checked(matrix) for matrix in matrices]
    most = max((float(np.abs(matrix).max(initial=0.0)) for matrix in arrays), default=0.0) or 1.0
    if min(float(matrix.min(initial=0.0)) for matrix in arrays) < 0:

        def bend(values: np.ndarray) -> np.ndarray:
            return np.sign(values) * np.abs(values) ** gamma

        def straighten(values: np.ndarray) -> np.ndarray:
            return np.sign(values) * np.abs(values) ** (1 / gamma)

        return {
            "cmap": LinearSegmentedColormap.from_list("seqmix_signed", _DIVERGING, N=257),
            "norm": FuncNorm((bend, straighten), vmin=-most, vmax=most),
        }
    return {
        "cmap": LinearSegmentedColormap.from_list("seqmix", _SEQUENTIAL),
        "norm": PowerNorm(gamma, vmin=0.0, vmax=most),
    }


def checked(matrix: Any) -> np.ndarray:
    """A matrix as float64; an InputError for anything that cannot be drawn as one."""
    array = np.asarray(matrix, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise InputError(f"a matrix to draw has shape {array.shape}: give (time, source), both at least 1")
    if not np.isfinite(array).all():
        raise InputError("a matrix to draw has entries that are not finite: draw one without them")
    return array


def draw_matrix(
    axes: Axes,
    matrix: np.ndarray,
    *,
    tokens: Sequence[str] | None = None,
    source_tokens: Sequence[str] | None = None,
    title: str = "",
    scale: dict[str, Any] | None = None,
    inches: float = 2.4,
) -> AxesImage:
    """Draws one matrix into axes, the first target at the top; see `matrix_figure`.

    Args:
        scale: of `color_scale`, to share between matrices.
        inches: about the side of the axes, for the number of labels.
    """
    array = checked(matrix)
    time, source = array.shape
    columns = tokens if source_tokens is None else source_tokens
    check_tokens(tokens, time)
    check_tokens(columns, source, "source_tokens")
    # "none" keeps an SVG's picture at one pixel a cell.
    image = axes.imshow(array, interpolation="none", **(color_scale([array]) if scale is None else scale))
    label_positions(axes.yaxis, tokens, time, inches)
    label_positions(axes.xaxis, columns, source, inches)
    axes.tick_params(length=2)
    axes.set_xlabel("source")
    axes.set_ylabel("target")
    axes.set_title(title)
    for spine in axes.spines.values():
        spine.set_visible(True)
    return image


def add_scale(image: AxesImage, label: str = "") -> None:
    """The bar that says which colour is which weight, on the right of the image and as high."""
    from matplotlib.ticker import MaxNLocator

    bar = image.axes.inset_axes((1.04, 0.0, 0.05, 1.0))
    image.axes.figure.colorbar(image, cax=bar)
    bar.yaxis.set_major_locator(MaxNLocator(nbins=4))
    bar.tick_params(length=2)
    bar.set_ylabel(label)
