"""`seqmix check`: the conformance kit on one mixer, on several, or on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from seqmix.cli.options import Imports

if TYPE_CHECKING:
    from seqmix.conformance import CheckResult


def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="A mixer's name, module:Class or file.py:Class (a file you name is imported)."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every registered mixer.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Run this check alone; may be repeated.")] = None,
    imports: Imports = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Holds mixers to the contract: forward equals steps, the matrix is true, the costs are real.

    Example: seqmix check my_mixer.py:MyMixer --only causality
    """
    from seqmix.cli.output import print_json, progress
    from seqmix.conformance import CHECKS, check_mixer, summarize
    from seqmix.conformance.targets import find_mixers
    from seqmix.errors import InputError
    from seqmix.mixers.user_code import import_all

    import_all(imports or [])
    if every == bool(names):
        raise InputError("name a mixer to check, or give --all (and not both): seqmix list shows the names")
    mixers = find_mixers(names or [])
    chosen = only or list(CHECKS)
    results: dict[str, list[CheckResult]] = {name: [] for name in mixers}
    with progress("checking") as bar:
        for number, (name, mixer_class) in enumerate(mixers.items()):
            for place, check_name in enumerate(chosen):
                bar.update((number + place / len(chosen)) / len(mixers), note=f"{name}: {check_name}")
                results[name] += check_mixer(mixer_class, checks=[check_name])
    summaries = {name: summarize(found) for name, found in results.items()}
    statuses = [status for summary in summaries.values() for status in summary.values()]
    passed, failed = statuses.count("passed"), statuses.count("failed")
    if as_json:
        print_json({"mixers": summaries, "passed": passed, "failed": failed})
    else:
        _print_results(results, summaries)
        expected = statuses.count("expected failure")
        typer.echo(f"{passed} passed, {failed} failed" + (f", {expected} expected to fail" if expected else ""))
    if failed:
        raise typer.Exit(1)


def _print_results(results: Mapping[str, Sequence[CheckResult]], summaries: Mapping[str, Mapping[str, str]]) -> None:
    """A row for each check and a column for each mixer, then each failure in words, once for all its examples."""
    from seqmix.cli.output import print_table
    from seqmix.conformance import CHECKS

    words = {"passed": "passed", "failed": "FAILED", "expected failure": "expected", "": "–"}
    rows = [
        [name, *(words[summary.get(name, "")] for summary in summaries.values())]
        for name in CHECKS
        if any(name in summary for summary in summaries.values())
    ]
    print_table(["check", *summaries], rows, left=list(summaries))
    for mixer, found in results.items():
        grouped: dict[tuple[str, str, str], list[str]] = {}
        for result in found:
            if result.status != "passed":
                grouped.setdefault((result.check, result.status, result.message), []).append(result.example)
        for (name, status, message), examples in grouped.items():
            typer.echo(f"{mixer}, {name}: {status} for {'; '.join(examples)}\n    {message}\n")
