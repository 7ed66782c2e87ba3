"""Puts the report together: sentences and tables as HTML, figures drawn in the browser from the embedded numbers."""

from __future__ import annotations

import base64
import html
import json
import string
from importlib import resources
from pathlib import Path
from typing import Any

from seqmix.compare.report import tables
from seqmix.compare.results import Results
from seqmix.compare.summary import is_task
from seqmix.errors import SeqmixError
from seqmix.files import write_text

_DRAWN = (
    "model",
    "seed",
    "status",
    "bits_per_byte",
    "accuracy",
    "state_bytes",
    "decode_tokens_per_second",
    "prefill_tokens_per_second",
    "decode_money_per_million_tokens",
    "curve",
    "evaluations",
    "loss_by_position",
    "gradient_norm_by_depth",
)


def write_report(results: Results, path: Path) -> None:
    """Writes report.html for a comparison, atomically.

    Args:
        results: the contents of results.json; contenders that are not finished are shown as such.
        path: the file to write.

    Raises:
        SeqmixError: plotly is not installed, or the file cannot be written.
    """
    write_text(path, render_report(results))


def render_report(results: Results) -> str:
    """The whole page as text."""
    here = resources.files("seqmix.compare.report")
    style, script, template = (
        (here / name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "template.html")
    )
    return string.Template(template).substitute(
        title=html.escape(_title(results)),
        lead=html.escape(_lead(results)),
        verdict=_verdict(results),
        overview=tables.overview(results),
        comparisons=tables.comparisons(results),
        distances=tables.distances(results),
        measure=_MEASURES[is_task(results)],
        measured=tables.measure_name(results),
        matrices=tables.matrices(results),
        equality=tables.equality(results),
        runs=tables.runs(results),
        crossovers=tables.crossovers(results),
        tuning=tables.tuning(results),
        setting=tables.setting(results),
        command=html.escape(results["command"]),
        style=style,
        plotly=_plotly(),
        data=_embedded(results),
        script=script,
        icon=base64.b64encode(_ICON).decode(),
    )


_MEASURES = {
    False: "Bits per byte of held-out text: lower is better.",
    True: "The share of right answers on held-out rows: higher is better.",
}
_ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path d="M1 1v14h14z" fill="#0072b2"/>'
    b'<path d="M1 7v8h8z" fill="#d55e00"/></svg>'
)


def _verdict(results: Results) -> str:
    """The sentences; those that only tell where two lines cross are folded away."""
    crossings = {crossing["text"] for crossing in results["crossovers"]}
    first = [sentence for sentence in results["verdict"] if sentence not in crossings]
    folded = [sentence for sentence in results["verdict"] if sentence in crossings]

    def items(sentences: list[str]) -> str:
        return "\n".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)

    text = f'<ul class="verdict">{items(first)}</ul>'
    if folded:
        text += f"<details><summary>Where lines cross ({len(folded)})</summary><ul>{items(folded)}</ul></details>"
    return text


def _title(results: Results) -> str:
    names = [entry["model"] for entry in results["models"]]
    corpus = results["corpus"]["name"]
    if not corpus.startswith("hf:"):
        corpus = Path(corpus).name or corpus
    return f"{', '.join(names)} on {corpus}"


def _lead(results: Results) -> str:
    settings, matched = results["settings"], results["matched"]
    seeds = settings["seeds"]
    return (
        f"{len(results['models'])} sequence models at equal {matched['quantity']}, budget {settings['budget']}, "
        f"context {settings['context']}, {seeds} {'seed' if seeds == 1 else 'seeds'} each."
    )


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise SeqmixError("the report needs plotly, which is not installed: pip install 'seqmix[report]'") from None
    return get_plotlyjs()


def _embedded(results: Results) -> str:
    """The numbers that the figures need, safe inside a script element."""
    document: dict[str, Any] = {
        "models": [entry["model"] for entry in results["models"]],
        "unit": results["prices"]["unit"],
        "measure": "accuracy" if is_task(results) else "bits_per_byte",
        "context": results["settings"]["context"],
        "contenders": [{name: dict(contender)[name] for name in _DRAWN} for contender in results["contenders"]],
        "comparisons": results["comparisons"],
        "crossovers": results["crossovers"],
    }
    return json.dumps(document, allow_nan=False).replace("<", "\\u003c")
