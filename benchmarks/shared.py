"""What the benchmarks share: their arguments, the goals that they hold a measurement to, and how they print them.

`--quick` takes a small case in seconds, to see that a benchmark works; its numbers say nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seqmix.cli.output import print_table, progress
from seqmix.files import write_json

__all__ = ["Goal", "arguments", "finish", "progress"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A measured value beside what it must reach.

    unit: "×", "%" (of a share), or one that stands behind the number. smaller: whether less is better.
    """

    what: str
    value: float | None
    at_least: float
    aim: float
    unit: str = "×"
    smaller: bool = False

    def cells(self) -> tuple[str, ...]:
        """what, measured, the two thresholds, and whether they are met."""
        sign = "≤" if self.smaller else "≥"
        return (
            self.what,
            "-" if self.value is None else self._write(self.value),
            f"{sign} {self._write(self.at_least)}",
            f"{sign} {self._write(self.aim)}",
            "not measured" if self.value is None else self.verdict,
        )

    @property
    def verdict(self) -> str:
        """missed, reached (the least that is asked for), or aim."""
        assert self.value is not None
        direction = -1 if self.smaller else 1
        if direction * self.value >= direction * self.aim:
            return "aim"
        return "reached" if direction * self.value >= direction * self.at_least else "missed"

    def _write(self, value: float) -> str:
        return f"{100 * value:.0f} %" if self.unit == "%" else f"{value:.3g} {self.unit}"


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads [as many as torch takes]")
    parser.add_argument("--rounds", type=int, default=None, help="times that each side is measured")
    parser.add_argument("--quick", action="store_true", help="a small case in seconds, whose numbers say nothing")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON document")
    parser.add_argument("--json", action="store_true", help="print the JSON document instead of the table")
    return parser


def finish(
    given: argparse.Namespace, goals: Sequence[Goal], documents: Mapping[str, Any], lines: Sequence[str] = ()
) -> None:
    """Prints the goals, or the JSON document with them and all that was measured, and writes it where asked to."""
    whole = {"goals": [{**asdict(goal), "verdict": goal.cells()[-1]} for goal in goals], **documents}
    if given.out is not None:
        write_json(given.out, whole)
    if given.json:
        print(json.dumps(whole, indent=2))
        return
    print_table(["what", "measured", "at least", "aim", "verdict"], [goal.cells() for goal in goals], left=["verdict"])
    for line in lines:
        print(line)
