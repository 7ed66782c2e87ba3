"""Measures what the stories tell and writes their tables: `python docs/measure_stories.py`.

Each table is a comparison by `seqmix compare` on data that every machine has, kept in --runs, so that an interrupted
measurement goes on where it stopped. `--only NAME` takes those whose name begins so; `--tables` writes the tables of
what is measured already. On two cores all of it takes about three quarters of an hour.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqmix.compare.results import read_results
from seqmix.compare.summary import accuracy_by_octave, is_task, mean_of, model_names, octave_name
from seqmix.files import write_text

TABLES = Path(__file__).parent / "stories" / "tables"
WIDTH_16 = "mixer:attention:pattern=window(16),mixer:depthwise_conv:kernel=16,mixer:gated_conv:kernel=16"
TEXT = ("--data", "python-stdlib", "--context", "256", "--batch-size", "8", "--params", "300k", "--seeds", "2")
STACKS = "transformer,local_transformer,bytenet,convsamba_short"
LONG = "mixer:attention,mixer:global_conv,mixer:gated_global_conv"
TASK = ("--params", "300k", "--seeds", "2", "--batch-size", "16")


@dataclass(frozen=True)
class Measured:
    """One comparison: its folder's name, the story it belongs to, what stands above its table, and the command."""

    name: str
    story: str
    title: str
    arguments: tuple[str, ...]


def _window(name: str, title: str, *arguments: str) -> Measured:
    return Measured(name, "window_and_kernel", title, ("--models", WIDTH_16, *TEXT, *arguments))


MEASURED = (
    _window("window_params", "Equal parameters", "--match", "params", "--budget", "tokens=500k"),
    _window("window_flops", "Equal FLOPs a token", "--match", "flops", "--budget", "tokens=500k"),
    _window(
        "window_train_money",
        "Equal training money",
        "--match",
        "train-money",
        "--budget",
        "money=0.0015",
        "--price",
        "0.1",
    ),
    _window("window_serving_money", "Equal serving money", "--match", "decode-money", "--budget", "tokens=500k"),
    Measured(
        "hops_copying",
        "dilation_and_hops",
        "Copying: what is asked for stands 54 positions back",
        ("--models", STACKS, "--data", "copying:length=64,symbols=10", *TASK, "--budget", "tokens=300k"),
    ),
    Measured("long_text", "as_long_as_the_sequence", "Text", ("--models", LONG, *TEXT, "--budget", "tokens=500k")),
    Measured(
        "long_copying",
        "as_long_as_the_sequence",
        "Copying: what is asked for stands at a fixed distance",
        ("--models", LONG, "--data", "copying:length=64,symbols=10", *TASK, "--budget", "tokens=1M"),
    ),
    Measured(
        "long_selective",
        "as_long_as_the_sequence",
        "Selective copying: only its content tells what is asked for",
        ("--models", LONG, "--data", "selective_copying:length=64,symbols=8", *TASK, "--budget", "tokens=1M"),
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="beginning of the names to measure")
    parser.add_argument("--runs", default="runs/stories", help="where the comparisons are kept")
    parser.add_argument("--threads", default="2", help="CPU threads of each training")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables of what there is")
    options = parser.parse_args(arguments)
    runs = Path(options.runs)
    chosen = [one for one in MEASURED if one.name.startswith(options.only)]
    for one in [] if options.tables else chosen:
        command = [*_command(one, runs), "--threads", options.threads]
        print(" ".join(command), file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", *command], check=True)
    for story in dict.fromkeys(one.story for one in MEASURED):
        write_story(story, runs)


def _command(one: Measured, runs: Path) -> list[str]:
    return ["seqmix", "compare", *one.arguments, "--out", str(runs / one.name)]


def write_story(story: str, runs: Path) -> None:
    """Writes the tables of a story whose comparisons are all finished."""
    parts = []
    for one in MEASURED:
        if one.story != story:
            continue
        results = read_results(runs / one.name)
        if results is None or results["status"] != "finished":
            print(f"{one.name} is not finished: the tables of {story} stay as they are", file=sys.stderr)
            return
        parts.append(_section(one, results))
    TABLES.mkdir(exist_ok=True)
    write_text(TABLES / f"{story}.md", "\n".join(parts))


def _section(one: Measured, results: Any) -> str:
    """The table of one comparison, its verdict, and how it was measured."""
    where = results["environment"]
    machine = where["hardware"]
    verdict = "\n".join(f"- {_escaped(sentence)}" for sentence in _said(results))
    measured = (
        f"Commit {(where['commit'] or 'unknown')[:7]}, torch {where['versions'].get('torch')}, "
        f"{machine['processor']}, {machine['cores']} cores, threads {where['threads']}, {where['date'][:10]}, "
        f"seeds 0 to {results['settings']['seeds'] - 1}."
    )
    command = "seqmix compare " + " ".join(_quoted(word) for word in one.arguments)
    return f"### {one.title}\n\n{_table(results)}\n{_distances(results)}{verdict}\n\n{measured}\n\n    {command}\n"


def _said(results: Any) -> list[str]:
    """The sentences of the verdict without where lines cross; of a task only those on quality, as in its table."""
    crossings = {crossing["text"] for crossing in results["crossovers"]}
    said = [sentence for sentence in results["verdict"] if sentence not in crossings]
    if not is_task(results):
        return said
    apart = (results["prices"]["unit"], "KV cache", "Not held equal", "The speed of")
    return [sentence for sentence in said if not any(word in sentence for word in apart)]


def _table(results: Any) -> str:
    """One row a model; times are those of the models on text, since a task asks for its answers alone."""
    context = str(results["settings"]["context"])
    columns = ["model", f"{'accuracy' if is_task(results) else 'bits a byte'}, by seed", "mean", "parameters"]
    columns += ["MFLOP a token", "tokens read", "receptive field", f"state at {context}"]
    if not is_task(results):
        columns += ["training seconds", f"tokens/s generated at {context}"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for model in model_names(results):
        cells = _cells(results, model, context)
        lines.append(f"| {' | '.join([f'`{model}`', *cells[: len(columns) - 1]])} |")
    return "\n".join(lines) + "\n"


def _cells(results: Any, model: str, context: str) -> list[str]:
    """What stands behind a model's name, the times last."""
    runs = [one for one in results["contenders"] if one["model"] == model and one["status"] == "finished"]
    if not runs:
        return ["failed", *[""] * 8]
    field = "accuracy" if is_task(results) else "bits_per_byte"
    summary = next(entry for entry in results["models"] if entry["model"] == model)
    first = runs[0]
    speed, state = (first[key].get(context) for key in ("decode_tokens_per_second", "state_bytes"))
    return [
        " / ".join(f"{one[field]:.3f}" for one in runs),
        f"{summary[field]:.3f}",
        f"{first['parameters']:,}",
        f"{first['flops_per_token'] / 1e6:.2f}",
        f"{mean_of(results, model, 'tokens') / 1e3:,.0f}k",
        "all" if first["receptive_field"] is None else f"{first['receptive_field']:,}",
        "–" if state is None else f"{state / 1024:,.1f} KiB",
        f"{mean_of(results, model, 'train_seconds'):.0f}",
        "–" if speed is None else f"{speed:,.0f}",
    ]


def _distances(results: Any) -> str:
    """Accuracy by distance, for a task that has distances; else nothing."""
    found = {model: octaves for model in model_names(results) if (octaves := accuracy_by_octave(results, model))}
    if not found:
        return ""
    octaves = sorted({octave for by_octave in found.values() for octave in by_octave})
    lines = [
        "| accuracy at a distance of | " + " | ".join(octave_name(octave) for octave in octaves) + " |",
        "|---" * (len(octaves) + 1) + "|",
    ]
    for model, by_octave in found.items():
        cells = [f"{by_octave[octave]:.3f}" if octave in by_octave else "–" for octave in octaves]
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def _escaped(sentence: str) -> str:
    return sentence.replace("*", "\\*").replace("_", "\\_")


def _quoted(word: str) -> str:
    return f"'{word}'" if "(" in word else word


if __name__ == "__main__":
    main()
