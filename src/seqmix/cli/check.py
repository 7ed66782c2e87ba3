"""`seqmix check`: the conformance kit on one mixer, on several, or on all."""

from __future__ import annotations

from typing import Annotated

import typer


def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="A mixer's name, module:Class or file.py:Class (a file you name is imported)."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every registered mixer.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Run this check alone; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check that mixers keep the contract: forward equals steps, the matrix is true, the costs are real.

    Example: seqmix check gated_conv        or        seqmix check my_mixer.py:MyMixer --only causality
    """
    import json

    from rich.console import Console
    from rich.progress import track

    from seqmix.conformance import check_mixer, summarize
    from seqmix.conformance.targets import find_mixers
    from seqmix.errors import InputError

    if every == bool(names):
        raise InputError("name a mixer to check, or give --all (and not both): seqmix list shows the names")
    messages = Console(stderr=True)
    mixers = find_mixers(names or [])
    shown = track(mixers.items(), "checking", console=messages, transient=True, disable=not messages.is_terminal)
    results = {name: check_mixer(mixer_class, checks=only) for name, mixer_class in shown}
    summaries = {name: summarize(found) for name, found in results.items()}
    counts = [status for summary in summaries.values() for status in summary.values()]
    passed, failed = counts.count("passed"), counts.count("failed")
    if as_json:
        typer.echo(json.dumps({"mixers": summaries, "passed": passed, "failed": failed}))
    else:
        _print_table(results)
        expected = counts.count("expected failure")
        typer.echo(f"{passed} passed, {failed} failed" + (f", {expected} expected to fail" if expected else ""))
    if failed:
        raise typer.Exit(1)


def _print_table(results: dict) -> None:
    """A line for each check, a column for each mixer, then what failed, in words."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from seqmix.conformance import CHECKS, summarize

    marks = {"passed": ("passed", "green"), "failed": ("failed", "bold red"), "expected failure": ("expected", "yellow")}
    summaries = {name: summarize(found) for name, found in results.items()}
    table = Table("check", *(Text(name) for name in results), box=None, pad_edge=False)
    for check_name in CHECKS:
        if any(check_name in summary for summary in summaries.values()):
            cells = [marks.get(summary.get(check_name, ""), ("–", "dim")) for summary in summaries.values()]
            table.add_row(check_name, *(Text(word, style=style) for word, style in cells))
    console = Console()
    console.print(table)
    for name, found in results.items():
        for result in found:
            if result.status != "passed":
                console.print(Text(f"\n{name}, {result.check} ({result.example}): {result.status}", style="bold"))
                console.print(Text(result.message))
