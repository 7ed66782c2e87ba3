"""What all figures share: their look, their labels, and how they are written.

Figures are `matplotlib.figure.Figure` objects that no window and no pyplot know of. Colours are told apart by readers
who see no red or green and keep their order of lightness in black and white; series differ in line style as well.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqmix.errors import InputError, SeqmixError
from seqmix.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HALF_PAGE = 3.4
"""Inches: a column of a page in two columns, for which the sizes of the letters are chosen."""

# Okabe and Ito's palette (2008), the four that differ most in lightness.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
INK, SOFT, LINE = "#1a1a1a", "#595959", "#c8c8c8"
SUFFIXES = {".png": "png", ".svg": "svg"}

_RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "path",
    "svg.hashsalt": "seqmix",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 7,
    "xtick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 7,
    "ytick.major.width": 0.6,
    "ytick.minor.width": 0.4,
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draws in seqmix's style whatever the user's own settings are, which stand again afterwards."""
    try:
        import matplotlib.style
    except ImportError as error:
        raise SeqmixError(
            "figures are drawn by matplotlib, which is not installed: pip install 'seqmix[figures]'"
        ) from error
    with matplotlib.style.context(["default", _RC]):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts are laid out so that no label is cut. Call it in `styled()`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def series_style(index: int) -> dict[str, Any]:
    """The colour and the line of the n-th of several curves."""
    return {"color": SERIES[index % len(SERIES)], "linestyle": LINES[index % len(LINES)]}


def powers_of_two(axes: Axes, last: float) -> None:
    """Puts the ticks of a logarithmic x axis at powers of two up to `last`, at most about eight of them."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    exponents = range(max(1, int(last)).bit_length())
    step = max(1, -(-len(exponents) // 8))
    axes.xaxis.set_major_locator(FixedLocator([2**exponent for exponent in exponents[::step]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_minor_locator(NullLocator())


def powers_of_ten(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers; tokens may hold dollar signs, so no label is read as mathematics."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def count(value: float) -> str:
    """A number in few letters: 512, 64k, 1.5M; of powers of two from 1024 on, k is 1024."""
    if value >= 1024 and value == 2 ** round(math.log2(value)):
        return f"{value / 1024:g}k" if value < 2**20 else f"{value / 2**20:g}M"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def printable(token: str, longest: int = 10) -> str:
    """A token as a label: blanks get a sign, what the font lacks its code, and the end of a long one is cut."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    signs = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    letters = [signs.get(letter, letter) for letter in token[: longest + 1]]
    shown = [
        letter if letter.isprintable() and ord(letter) in known else ascii(letter)[1:-1].replace("\\\\", "\\")
        for letter in letters
    ]
    return "".join(shown[:longest]) + ("…" if len(shown) > longest else "")


def label_positions(axis: Any, tokens: Sequence[str] | None, positions: int, inches: float) -> None:
    """Ticks of an axis of positions: the tokens while every one has room, otherwise round numbers.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        tokens: one for each position, or None for numbers.
        inches: the length of the axis, which decides how many labels fit.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator

    room = inches / 0.085
    if tokens is None or positions > room:
        axis.set_major_locator(MaxNLocator(nbins=max(2, min(6, int(inches * 3))), integer=True))
        return
    labels = [printable(token) for token in tokens]
    axis.set_major_locator(FixedLocator(range(positions)))
    axis.set_ticklabels(labels, fontsize=min(7.0, 62 * inches / positions))
    if axis.axis_name == "x" and any(len(label) > 1 for label in labels):
        axis.set_tick_params(labelrotation=90)


def check_tokens(tokens: Sequence[str] | None, positions: int, name: str = "tokens") -> None:
    """Refuses labels that do not fit the positions they are for."""
    if tokens is not None and len(tokens) != positions:
        raise InputError(f"{name} has {len(tokens)} labels for {positions} positions: give one for each")


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 200) -> None:
    """Writes a figure as PNG or SVG, atomically; the same figure always gives the same bytes.

    Args:
        path: a file ending in .png or .svg, in a folder that exists.
        dpi: pixels an inch of a PNG; an SVG has none.

    Raises:
        InputError: another suffix, or a place that may not be written to.
        SeqmixError: matplotlib is not installed, or the file cannot be written.
    """
    path = Path(path)
    write_bytes(path, rendered(figure, path.suffix.lower(), dpi=dpi))


def rendered(figure: Figure, suffix: str, *, dpi: int = 200) -> bytes:
    """The bytes of a figure as ".png" or ".svg", without dates and versions."""
    if suffix not in SUFFIXES:
        raise InputError(f"a figure cannot be written as {suffix!r}: give a file that ends in .png or .svg")
    nothing: dict[str, Any] = {"Software": None} if suffix == ".png" else {"Date": None, "Creator": None}
    stream = io.BytesIO()
    with styled():
        figure.savefig(stream, format=SUFFIXES[suffix], dpi=dpi, metadata=nothing)
    return stream.getvalue()
