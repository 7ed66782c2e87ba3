"""A page of some of the real sections or of one chart, from numbers made by hand, and what tests read from it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import page_modules
from browser import Opened

from seqmix.inspection.page.bundle import embedded_json

TIME = 64
LENGTHS = [2**power for power in range(4, 17)]

HARNESS = """
import { element, visible } from "page/dom";
import { makeStore } from "page/store";
const data = JSON.parse(document.getElementById("data").textContent);
const blocks = data.blocks;
const block = (id) => ({
  heads: 1, time: blocks[id].length, source: blocks[id][0].length,
  value: (h, t, s) => blocks[id][t][s], step: () => 0, row: (h, t) => Float32Array.from(blocks[id][t]),
});
const page = window.page = {
  data, choice: makeStore({ text: 0, target: 3, source: 0 }), block: async (id) => block(id),
  token: (text, at) => visible(data.texts[text].tokens[at] ?? ""),
};
for (const name of data.sections) {
  const section = await import(`page/${name}`);
  const body = element("div");
  document.querySelector("main").append(element("section", { id: section.id }, element("h2", {}, section.title), body));
  section.mount(body, page);
}
if (data.chart) {
  const { lineChart } = await import("page/charts");
  window.chart = lineChart(data.chart);
  document.querySelector("main").append(window.chart);
}
await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
document.body.dataset.ready = "";
"""


def write_page(folder: Path, data: dict[str, Any], sections: tuple[str, ...] = ()) -> Path:
    """A page with nothing but these sections, or the chart `data["chart"]`."""
    everything = embedded_json({**data, "sections": sections})
    body = (
        f"<main></main><script type='application/json' id=data>{everything}</script>"
        f"<script type=module>{HARNESS}</script>"
    )
    return page_modules.write_page(folder / "page.html", body=body)


def opened(browser: Any, path: Path, **how: Any) -> Opened:
    return Opened(browser, path, ready="body[data-ready]", **how)


def widths(half: int, ninety: int, most: int) -> dict[str, int]:
    return {"half": half, "ninety": ninety, "ninety_nine": most}


def share_curve(span: int) -> list[float]:
    weights = [math.exp(-distance / 5) if distance < span else 0.0 for distance in range(TIME)]
    return [weight / sum(weights) for weight in weights]


def model(name: str, span: int | None, trained: bool) -> dict[str, Any]:
    reach = span or TIME
    curve = share_curve(reach)
    head = {"formula": span, "measured": reach, "widths": widths(1, 2, 3)}
    other = {"formula": span, "measured": reach, "widths": widths(1, 2, 4)}
    layer = {
        "slot": "mixer",
        "name": "causal_conv1d",
        "formula": 5,
        "measured": 5,
        "stack_formula": 5,
        "stack_measured": 5,
        "curve": share_curve(5),
        "widths": widths(2, 4, 5),
        "heads": [head, head, other],
    }
    product = [[1 / (t + 1) if s <= t else 0.0 for s in range(TIME)] for t in range(TIME)]
    return {
        "name": name,
        "trained": trained,
        "parameters": 1000,
        "receptive_field": {
            "formula": span,
            "positions_seen": span,
            "measured": reach,
            "fills_text": reach >= TIME,
            "curve": curve,
            "targets": 8,
            "directions": 2,
            "widths": widths(4, 12, 21),
            "steps": {"distances": [1, 2, 4, 8], "mixers": [1, 1, 1, 1] if span is None else [1, 1, 2, None]},
            "layers": [{"layer": 0, **layer}, {"layer": 1, **layer, "slot": "feed_forward"}],
            "untrained": {"curve": share_curve(3), "widths": widths(1, 2, 3)} if trained else None,
        },
        "context": {
            "loss_by_position": {"positions": [0.0, 1.0, 2.5, 30.0], "bits": [5.0, 4.5, 4.25, 3.5]},
            "ablation": {
                "distances": [1, 2, 4, 8, 16],
                "bits": [5.0, 4.5, 4.125, 4.0625, 4.0],
                "low": [0.75, 0.25, 0.0, -0.125, -0.25],
                "high": [1.25, 0.75, 0.25, 0.25, 0.25],
                "whole": 4.0,
                "targets": 30,
                "blocks": 15,
            },
            "unit": "bits per token",
            "source": "Measured on the text.",
        },
        "positions": {
            "kind": "rope",
            "distances": list(range(TIME)),
            "curves": [
                {"name": f"pair {pair}", "values": [math.cos(distance / 4**pair) for distance in range(TIME)]}
                for pair in range(8)
            ],
            "note": "Rotary positions turn pairs of channels.",
            "scores": {
                "layers": [
                    {
                        "layer": 0,
                        "head_dim": 16,
                        "spread": 0.5,
                        "entropy": 4.5,
                        "spread_unscaled": 2.0,
                        "entropy_unscaled": 2.25,
                        "uniform_entropy": 5.5,
                    }
                ],
                "theory": {
                    "head_dims": [16, 64, 256],
                    "spread": [1.0, 1.0, 1.0],
                    "spread_unscaled": [4.0, 8.0, 16.0],
                    "entropy": [5.25, 5.25, 5.25],
                    "entropy_unscaled": [2.0, 1.0, 0.5],
                    "keys": 64,
                },
            },
        },
        "costs": {
            "lengths": LENGTHS,
            "forward_flops": [1e6 + (100.0 * length if span is None else 0.0) for length in LENGTHS],
            "step_flops": [1e6 + (200.0 * length if span is None else 0.0) for length in LENGTHS],
            "state_bytes": [512.0 * length if span is None else 65536.0 for length in LENGTHS],
            "parameters": 1000,
            "longest": None,
            "note": "The model is made for a context of 64 tokens.",
        },
        "rollout": {
            "block": f"{name}-product",
            "gradient_block": f"{name}-gradient",
            "targets": [7, 31, 63],
            "spearman": [0.25, 0.5, 0.75],
            "mean": 0.5,
            "blocks": {f"{name}-product": product, f"{name}-gradient": [product[7], product[31], product[5]]},
        },
    }


def payload(*models: dict[str, Any]) -> dict[str, Any]:
    blocks = {key: rows for one in models if one["rollout"] for key, rows in one["rollout"]["blocks"].items()}
    return {
        "texts": [{"name": "text", "tokens": ["<b>", " ", *"abcdefgh" * 8][:TIME], "cut_from": None}],
        "models": list(models),
        "crossovers": ["The state of conv is smaller from 128 tokens on."] if len(models) > 1 else [],
        "blocks": blocks,
    }


SECTIONS = ("field", "context", "positions", "rollout", "costs")


def axis_of(chart: Any, side: str) -> tuple[dict[str, float], dict[str, float]]:
    """The first and last tick of an axis: value and pixel."""
    ticks = chart.locator(f".chart-{side}-tick").evaluate_all(
        "nodes => nodes.map(({dataset}) => ({value: Number(dataset.value), at: Number(dataset.at)}))"
    )
    return ticks[0], ticks[-1]


def drawn_points(chart: Any, series: str) -> list[tuple[float, float]]:
    path = chart.locator(f'path[data-series="{series}"]').get_attribute("d")
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def expected_pixel(value: float, ticks: tuple[dict[str, float], dict[str, float]], warp: Any) -> float:
    first, last = ticks
    share = (warp(value) - warp(first["value"])) / (warp(last["value"]) - warp(first["value"]))
    return first["at"] + share * (last["at"] - first["at"])
