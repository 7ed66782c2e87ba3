"""The tables of the report as HTML, with every text escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from seqmix.compare import units
from seqmix.compare.results import Contender, MatrixImage, ModelSummary, Results
from seqmix.compare.summary import (
    accuracy_by_octave,
    by_context,
    common_contexts,
    finished,
    is_task,
    mean_of,
    octave_name,
    score,
)

HEADS_SHOWN = 4
"""Pictures beside each other in a row."""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """A table whose first column heads its rows; cells are HTML already."""
    if not rows:
        return ""
    columns = "".join(f'<th scope="col">{title}</th>' for title in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in row[1:])
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(label)}">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _ranked(results: Results) -> list[ModelSummary]:
    return sorted(results["models"], key=lambda entry: (score(entry) is None, score(entry) or 0.0))


def _name(results: Results, model: str) -> str:
    """A model's name with the colour of its lines."""
    index = [entry["model"] for entry in results["models"]].index(model)
    return f'<span class="swatch" data-model="{index}"></span>{html.escape(model)}'


def _mark_best(cells: list[str], values: list[float | None], lower_is_better: bool) -> list[str]:
    """Cells in which the best value stands out."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return cells
    best = min(known) if lower_is_better else max(known)
    return [
        f'<td class="best">{cell}</td>' if value == best else cell for cell, value in zip(cells, values, strict=True)
    ]


def overview(results: Results) -> str:
    """One row a model: what it reached and what it costs, the best of each column marked."""
    models = [entry["model"] for entry in _ranked(results)]
    contexts = common_contexts(results, [m for m in models if finished(results, m)], "decode_tokens_per_second")
    ends = [contexts[0], contexts[-1]] if len(contexts) > 1 else contexts
    unit = html.escape(results["prices"]["unit"])
    columns: list[tuple[str, list[float | None], Any, bool]] = [
        (
            measure_name(results),
            [_reached(results, model) for model in models],
            lambda v: f"{v:.4f}",
            not is_task(results),
        ),
        ("parameters", [mean_of(results, model, "parameters") for model in models], None, True),
        ("training", [mean_of(results, model, "train_seconds") for model in models], units.duration, True),
        (f"training {unit}", [mean_of(results, model, "train_money") for model in models], units.number, True),
        ("memory", [mean_of(results, model, "peak_memory_bytes") for model in models], units.size, True),
    ]
    for context in ends:
        speeds = [by_context(results, model, "decode_tokens_per_second").get(context) for model in models]
        columns.append((f"tokens/s at {units.count(context)}", speeds, units.number, False))
    for context in ends[-1:]:
        sizes = [by_context(results, model, "state_bytes").get(context) for model in models]
        columns.append((f"state at {units.count(context)}", sizes, units.size, True))
    written = []
    for title, values, form, lower in columns:
        cells = ["–" if value is None else (form or units.number)(value) for value in values]
        written.append(cells if title == "parameters" else _mark_best(cells, values, lower))
    fields = [_field(results, model) for model in models]
    rows = [
        [_name(results, model), *(cells[index] for cells in written), fields[index]]
        for index, model in enumerate(models)
    ]
    head = ["model", *(title for title, *_ in columns), "receptive field"]
    return _table(head, rows, "Overview") + '<p class="note">Means over the seeds; the best of a column is marked.</p>'


def measure_name(results: Results) -> str:
    """What the models are ranked by."""
    return "accuracy" if is_task(results) else "bits per byte"


def _reached(results: Results, model: str) -> float | None:
    entry = next(entry for entry in results["models"] if entry["model"] == model)
    return entry["accuracy"] if is_task(results) else entry["bits_per_byte"]


def distances(results: Results) -> str:
    """Accuracy by distance, where the task has distances: one row a model, one column an octave."""
    lines = {entry["model"]: accuracy_by_octave(results, entry["model"]) for entry in _ranked(results)}
    octaves = sorted({octave for line in lines.values() for octave in line})
    rows = [
        [_name(results, model), *(f"{line[octave]:.3f}" if octave in line else "–" for octave in octaves)]
        for model, line in lines.items()
        if line
    ]
    table = _table(["distance", *map(octave_name, octaves)], rows, "Accuracy by distance")
    return f"<h3>Accuracy by distance</h3>{table}" if rows else ""


def _field(results: Results, model: str) -> str:
    done = finished(results, model)
    if not done:
        return "–"
    if not done[0].get("is_reach_known", True):
        return "not known"
    span, seen = done[0]["receptive_field"], done[0]["positions_seen"]
    if span is None:
        return "all"
    return units.count(span) if seen in (None, span) else f"{units.count(span)} ({units.count(seen or 0)} seen)"


def comparisons(results: Results) -> str:
    """The differences of every pair with their intervals."""
    rows = []
    sign = 1 if is_task(results) else -1
    for pair in results["comparisons"]:
        interval = "–"
        verdict = "one seed: no interval"
        if pair["low"] is not None and pair["high"] is not None:
            low, high = sorted((sign * pair["low"], sign * pair["high"]))
            interval = f"{low:+.4f} to {high:+.4f}"
            verdict = "separable" if pair["separable"] else "not separable"
        rows.append(
            [
                f"{_name(results, pair['a'])} before {_name(results, pair['b'])}",
                f"{sign * pair['difference']:+.4f}",
                interval,
                str(pair["seeds"]),
                verdict,
            ]
        )
    if not rows:
        return ""
    head = ["pair", "difference", "95 % interval", "seeds", ""]
    return (
        "<details><summary>Every pair, with its interval</summary>"
        + _table(head, rows, f"Differences in {measure_name(results)}")
        + f'<p class="note">By how much the second is behind the first, in {measure_name(results)}.</p></details>'
    )


def matrices(results: Results) -> str:
    """The pictures of each model's matrices."""
    parts = []
    for entry in _ranked(results):
        one = next((c for c in finished(results, entry["model"]) if c["matrix_images"]), None)
        if one is None:
            continue
        figures = "".join(_picture(image) for image in one["matrix_images"])
        path = one["path_length"]
        reach = (
            "the first token of the context never reaches the last output"
            if path is None
            else f"{path} {'layer' if path == 1 else 'layers'} from the first token of the context to the last output"
        )
        parts.append(
            f'<div class="model"><h3>{_name(results, one["model"])}</h3><p>Receptive field '
            f"{_field(results, one['model'])}; {reach}.</p>"
            f'<div class="heads">{figures}</div></div>'
        )
    return f'<div class="models">{"".join(parts)}</div>' if parts else "<p>No pictures were made.</p>"


def _picture(image: MatrixImage) -> str:
    mixer, place = html.escape(image["mixer"]), f"layer {image['layer'] + 1}, head {image['head'] + 1}"
    source = f"data:image/png;base64,{html.escape(image['png'])}"
    return (
        f'<figure><img alt="Mixing matrix of {place}: {mixer}" title="{mixer}" src="{source}">'
        f"<figcaption>{place.replace(', ', '<br>')}</figcaption></figure>"
    )


def equality(results: Results) -> str:
    """The matched quantity by model, then the ranges of everything else."""
    matched = results["matched"]
    rows = [
        [_name(results, model), units.number(value) + _unit(matched["unit"])]
        for model, value in matched["reached"].items()
    ]
    spread = "" if matched["spread"] is None else f" (spread {units.share(matched['spread'])})"
    others = [
        [
            html.escape(entry["quantity"]),
            f"{_quantity(entry['low'], entry['unit'])}",
            _name(results, entry["low_model"]),
            f"{_quantity(entry['high'], entry['unit'])}",
            _name(results, entry["high_model"]),
            f"{entry['high'] / entry['low']:.2f} ×" if entry["low"] else "–",
        ]
        for entry in results["not_matched"]
    ]
    text = f"<h3>Held equal: {html.escape(matched['quantity'])}{spread}</h3>" + _table(
        ["model", html.escape(matched["quantity"])], rows, "What was held equal"
    )
    if others:
        head = ["quantity", "lowest", "", "highest", "", "ratio"]
        text += "<h3>Not held equal</h3>" + _table(head, others, "What was not held equal")
    return text


def _unit(unit: str) -> str:
    return f" {html.escape(unit)}" if unit else ""


def _quantity(value: float, unit: str) -> str:
    if unit == "bytes":
        return units.size(value)
    if unit == "seconds":
        return units.duration(value)
    return units.number(value) + _unit("" if unit in ("", "forward", "without the embedding") else unit)


def runs(results: Results) -> str:
    """One row a contender."""
    unit = html.escape(results["prices"]["unit"])
    head = [
        "model", "seed", "status", measure_name(results), "best", "perplexity", "per word", "parameters",
        "with embedding", "layers × width", "learning rate", "tokens", "FLOPs", "time", unit, "tokens/s", "memory",
    ]  # fmt: skip
    rows = [[_name(results, c["model"]), str(c["seed"]), _status(c), *_run_cells(c)] for c in results["contenders"]]
    return _table(head, rows, "All runs")


def _status(contender: Contender) -> str:
    if contender["error"] is None:
        return html.escape(contender["status"])
    return f'<td class="text">{html.escape(contender["status"])}: {html.escape(contender["error"])}</td>'


def _run_cells(contender: Contender) -> list[str]:
    def fixed(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    rate = contender["learning_rate"]
    return [
        fixed(contender["bits_per_byte"] if contender["accuracy"] is None else contender["accuracy"], 4),
        fixed(contender["best_bits_per_byte"] if contender["accuracy"] is None else contender["best_accuracy"], 4),
        fixed(contender["perplexity"], 3),
        units.number(contender["word_perplexity"]),
        "–" if contender["parameters"] is None else units.count(contender["parameters"]),
        "–" if contender["total_parameters"] is None else units.count(contender["total_parameters"]),
        f"{contender['depth']} × {contender['width']}" if contender["depth"] else "–",
        "–" if rate is None else f"{rate:.2g}",
        units.number(contender["tokens"]),
        units.number(contender["train_flops"]),
        units.duration(contender["train_seconds"]),
        units.number(contender["train_money"]),
        units.number(contender["tokens_per_second"]),
        units.size(contender["peak_memory_bytes"]),
    ]


def crossovers(results: Results) -> str:
    """Where lines cross, in sentences."""
    if not results["crossovers"]:
        return '<p class="note">No lines cross within what was measured.</p>'
    items = "".join(
        f"<li>{html.escape(crossing['text'])} <small>({html.escape(crossing['source'])})</small></li>"
        for crossing in results["crossovers"]
    )
    return f"<details><summary>Where the lines cross</summary><ul>{items}</ul></details>"


def tuning(results: Results) -> str:
    """The trials of learning rates, where there were any."""
    rows = [
        [
            _name(results, trial["model"]),
            f"{trial['learning_rate']:.2g}",
            units.number(trial["tokens"]),
            units.duration(trial["train_seconds"]),
            "–" if (found := score(trial)) is None else f"{1 - found if is_task(results) else found:.4f}",
            "chosen" if trial["chosen"] else html.escape(trial["error"] or ""),
        ]
        for trial in results["tuning"]
    ]
    head = ["model", "learning rate", "tokens", "time", measure_name(results), ""]
    return f"<h3>Trials of learning rates</h3>{_table(head, rows, 'Trials')}" if rows else ""


def setting(results: Results) -> str:
    """Corpus, prices, hardware, versions, seeds and every setting."""
    corpus, environment = results["corpus"], results["environment"]
    entries: dict[str, Any] = {
        "corpus": _corpus(results),
        "corpus fingerprint": corpus["fingerprint"],
        "tokens evaluated": corpus["evaluated_tokens"],
        "price": results["prices"],
        "hardware": environment["hardware"],
        "threads": environment["threads"],
        "versions": environment["versions"],
        "commit": environment["commit"],
        "date": environment["date"],
        **{name.replace("_", " "): value for name, value in results["settings"].items()},
    }
    rows = [[html.escape(key), f'<td class="text">{html.escape(_plain(value))}</td>'] for key, value in entries.items()]
    return _table(["", ""], rows, "Setting")


def _corpus(results: Results) -> str:
    corpus = results["corpus"]
    if is_task(results):
        train = (
            "rows without end" if corpus["train_tokens"] is None else f"{units.count(corpus['train_tokens'])} tokens"
        )
        return f"{corpus['name']}, {train} to train on, {units.count(corpus['valid_tokens'])} tokens held out"
    return (
        f"{corpus['name']}, {units.size(corpus['train_bytes'])} to train on, "
        f"{units.size(corpus['valid_bytes'])} held out, tokens: {corpus['tokenizer']}"
    )


def _plain(value: Any) -> str:
    """A value in words: no brackets of Python's."""
    if value is None or value == "":
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value) or "–"
    return value if isinstance(value, str) else json.dumps(value)
