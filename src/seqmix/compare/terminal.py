"""A comparison as tables and sentences in the terminal, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from seqmix.compare import units
from seqmix.compare.results import Results
from seqmix.compare.summary import (
    accuracy_by_octave,
    by_context,
    common_contexts,
    is_task,
    mean_of,
    model_names,
    octave_name,
    score,
)

WIDTH = 100
_SHOWN_CONTEXTS = 4


def print_results(results: Results, console: Console) -> None:
    """Prints the verdict, then what each model reached and what it costs."""
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    console.print()
    sentences = Table.grid(padding=(0, 1))
    for sentence in results["verdict"]:
        sentences.add_row("•", Text(sentence))
    console.print(sentences)
    for table in (_quality(results), *_distances(results), _training(results), *_serving(results)):
        console.print()
        console.print(table)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _ranked(results: Results) -> list[str]:
    scores = {entry["model"]: found for entry in results["models"] if (found := score(entry)) is not None}
    return sorted(model_names(results), key=lambda model: scores.get(model, float("inf")))


def _quality(results: Results) -> Table:
    measure = "accuracy" if is_task(results) else "bits/byte"
    table = _table("Quality", ["model", measure, "seeds", "to the best", "95 % interval", "separable"])
    entries = {entry["model"]: entry for entry in results["models"]}
    ranked = _ranked(results)
    for model in ranked:
        entry = entries.get(model)
        reached = None if entry is None else entry["accuracy"] if is_task(results) else entry["bits_per_byte"]
        if entry is None or reached is None:
            table.add_row(model, "-", "failed" if entry and entry["failed"] else "pending", "", "", "")
            continue
        pair = next((p for p in results["comparisons"] if p["a"] == ranked[0] and p["b"] == model), None)
        behind = interval = separable = ""
        if pair is not None:
            # Behind means more bits, or less accuracy.
            sign = 1 if is_task(results) else -1
            behind = f"{sign * pair['difference']:+.4f}"
            if pair["low"] is None or pair["high"] is None:
                interval, separable = "-", "one seed"
            else:
                low, high = sorted((sign * pair["low"], sign * pair["high"]))
                interval = f"{low:+.4f} to {high:+.4f}"
                separable = "yes" if pair["separable"] else "no"
        ran = f"{entry['finished']}" + (f" ({entry['failed']} failed)" if entry["failed"] else "")
        table.add_row(model, f"{reached:.4f}", ran, behind, interval, separable)
    return table


def _distances(results: Results) -> list[Table]:
    """Accuracy by distance, where the task has distances; the mean of octaves."""
    lines = {model: accuracy_by_octave(results, model) for model in _ranked(results)}
    octaves = sorted({octave for line in lines.values() for octave in line})
    if not octaves:
        return []
    table = _table("Accuracy by distance", ["model", *(octave_name(octave) for octave in octaves)])
    for model, line in lines.items():
        table.add_row(model, *(f"{line[octave]:.3f}" if octave in line else "-" for octave in octaves))
    return [table]


def _training(results: Results) -> Table:
    unit = results["prices"]["unit"]
    columns = ["model", "size", "layers", "lr", "tokens", "FLOPs", "time", unit, "tokens/s", "memory"]
    table = _table("Training, one run", columns)
    for model in _ranked(results):
        contenders = [contender for contender in results["contenders"] if contender["model"] == model]
        one = contenders[0]
        table.add_row(
            model,
            units.number(one["parameters"]),
            f"{one['depth']} × {one['width']}",
            f"{one['learning_rate']:.2g}" if one["learning_rate"] else "-",
            units.number(mean_of(results, model, "tokens")),
            units.number(mean_of(results, model, "train_flops")),
            units.duration(mean_of(results, model, "train_seconds")),
            units.number(mean_of(results, model, "train_money")),
            units.number(mean_of(results, model, "tokens_per_second")),
            units.size(mean_of(results, model, "peak_memory_bytes")),
        )
    return table


def _serving(results: Results) -> list[Table]:
    models = [model for model in _ranked(results) if by_context(results, model, "state_bytes")]
    contexts = common_contexts(results, models, "decode_tokens_per_second")
    if not contexts:
        return []
    shown = sorted({contexts[round(i * (len(contexts) - 1) / (_SHOWN_CONTEXTS - 1))] for i in range(_SHOWN_CONTEXTS)})
    unit = results["prices"]["unit"]
    tables = []
    for title, field, form in (
        ("Generated tokens/s by context", "decode_tokens_per_second", units.number),
        (f"{unit} per million generated tokens by context", "decode_money_per_million_tokens", units.number),
        ("Prompt tokens/s by context", "prefill_tokens_per_second", units.number),
        ("State by context", "state_bytes", units.size),
    ):
        table = _table(title, ["model", *(units.count(context) for context in shown)])
        for model in models:
            values = by_context(results, model, field)
            table.add_row(model, *(form(values.get(context)) for context in shown))
        tables.append(table)
    return tables
