"""What the commands share: one JSON document on stdout, progress on stderr, and numbers that people can read."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_json(document: Any) -> None:
    """Prints one JSON document to stdout; numbers that JSON does not have (NaN, infinities) become null."""
    json.dump(_finite(document), sys.stdout, ensure_ascii=False, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def console(*, to_stderr: bool = False) -> Console:
    """A rich console on the process's present stdout or stderr; into a pipe it writes plain text."""
    from rich.console import Console

    return Console(stderr=to_stderr, highlight=False)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    left: Sequence[str] = (),
    to_stderr: bool = False,
) -> None:
    """Prints a table as wide as its content, or as the terminal where that is narrower.

    Args:
        columns: the headings; the first column is aligned left, the others right.
        rows: the cells, as text without markup.
        left: headings of further columns that are aligned left.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    screen = console(to_stderr=to_stderr)
    gap = 2
    widths = _column_widths(columns, rows, left, screen.width - gap * (len(columns) - 1))
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, gap - 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if number == 0 or column in left else "right",
            width=widths[number],
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    screen.print(table)


def _column_widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str], room: int
) -> list[int | None]:
    """Widths at which numbers and names stay whole while headings and texts wrap between words; None is rich's choice.

    rich by itself narrows every column alike, and breaks numbers where a heading could have wrapped.
    """
    widest, narrowest = [], []
    for number, column in enumerate(columns):
        cells = [row[number] for row in rows]
        widest.append(max(map(len, [column, *cells])))
        words = [word for text in [column, *(cells if column in left else [])] for word in text.split()]
        narrowest.append(max(map(len, [*words, *([] if column in left else cells)]), default=1))
    spare = room - sum(narrowest)
    if sum(widest) <= room or spare < 0:
        return [None] * len(columns)
    widths: list[int | None] = []
    for wanted, needed in zip(widest, narrowest, strict=True):
        more = min(wanted - needed, spare)
        spare -= more
        widths.append(needed + more)
    return widths


class Progress:
    """A bar on stderr with the share done, a note and the time left; see `progress`.

    Without a terminal it writes a plain line now and then, so that a log shows that work goes on.
    """

    _SECONDS_BETWEEN_LINES = 30.0

    def __init__(self, label: str) -> None:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bar

        screen = console(to_stderr=True)
        self._label = label
        self._is_live = screen.is_terminal
        self._last_line = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=screen,
            transient=True,
            disable=not self._is_live,
        )
        self._task = self._bar.add_task(label, total=1.0, note="", left="")

    def update(self, share: float, note: str = "", time_left: float | None = None, label: str | None = None) -> None:
        """Shows how far the work is.

        Args:
            share: the part that is done, 0 to 1.
            note: a few words, such as the present loss.
            time_left: seconds; None where it is not known yet.
            label: a new name for what is going on, such as the next model of several.
        """
        self._label = self._label if label is None else label
        left = "" if time_left is None else f"{human_seconds(time_left)} left"
        self._bar.update(self._task, completed=min(share, 1.0), note=note, left=left, description=self._label)
        if not self._is_live and time.monotonic() - self._last_line >= self._SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(", ".join(part for part in (f"{self._label}: {share:.0%}", note, left) if part), file=sys.stderr)

    def message(self, text: str) -> None:
        """Writes a line that stays, above the bar."""
        if self._is_live:
            self._bar.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr)


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A progress bar for the length of a with block; it leaves nothing behind on the screen."""
    shown = Progress(label)
    with shown._bar:
        yield shown


def human_number(value: float) -> str:
    """Three digits and a unit: 940, 300k, 1.23M, 2.5B, 3.1T, 7e18."""
    if not math.isfinite(value):
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{unit}" if abs(value) < 999.5 * size else f"{value:.3g}"
    return f"{value:.3g}" if value != int(value) else f"{int(value)}"


def human_bytes(value: float) -> str:
    """Three digits and a binary unit: 512 B, 1.5 KiB, 20 MiB."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power * 0.9995:
            return f"{value / 1024**power:.3g} {unit}"
    return f"{value:.0f} B"


def human_seconds(value: float) -> str:
    """0.25 s, 48 s, 3 min 20 s, 2 h 05 min, 3 d 04 h."""
    if not math.isfinite(value):
        return "–"
    if value < 10:
        return f"{value:.2g} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 24 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
