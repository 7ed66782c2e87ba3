"""A page with some sections alone, of real models, for tests of those sections in a browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from page_modules import write_page

from seqmix.inspection import Subject, mixing_matrices
from seqmix.inspection.page.blocks import make_block
from seqmix.inspection.page.bundle import embedded_json
from seqmix.inspection.structure import describe, structures

HARNESS = """
import { blockReader } from "page/blocks";
import { element, visible } from "page/dom";
import { makeStore } from "page/store";
const data = JSON.parse(document.getElementById("data").textContent);
const chosen = { text: 0, target: 20, source: 3, normalised: false };
data.models.forEach((_, model) => Object.assign(chosen, { [`mixer${model}`]: 0, [`head${model}`]: 0 }));
const page = {
  data,
  choice: makeStore(chosen),
  block: blockReader(data.blocks, (id) => data.packed[id]),
  token: (text, position) => visible(data.texts[text].tokens[position] ?? ""),
};
for (const name of data.sections) {
  const section = await import(`page/${name}`);
  const body = element("div");
  document.querySelector("main").append(element("section", { id: section.id }, element("h2", {}, section.title), body));
  section.mount(body, page);
}
window.page = page;
await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
document.body.dataset.ready = "";
"""


def sections_page(path: Path, sections: Sequence[str], subjects: Sequence[Subject], *, bits: int = 12) -> Path:
    """Writes the page; every head of every mixer on every text is in it."""
    blocks: dict[str, Any] = {}
    packed: dict[str, str] = {}
    models = []
    for subject in subjects:
        mixers: list[dict[str, Any]] = []
        for number, text in enumerate(subject.texts):
            for index, layer in enumerate(mixing_matrices(subject.model, text.input_ids)):
                name = str(len(blocks))
                blocks[name], packed[name] = make_block(layer.matrix).packed(bits)
                if not number:
                    mixers.append(
                        {
                            "layer": layer.layer,
                            "slot": layer.slot,
                            "name": layer.name,
                            "fixed": layer.fixed,
                            "jacobian": layer.jacobian,
                            "directions": layer.directions,
                            "causal": True,
                            "reach": 1,
                            "heads": len(layer.matrix),
                            "shown": None,
                            "blocks": [],
                            "structure": [],
                            "sentences": [],
                        }
                    )
                found = structures(layer.matrix)
                mixers[index]["blocks"].append(name)
                mixers[index]["structure"].append([asdict(structure) for structure in found])
                mixers[index]["sentences"].append(
                    [describe(structure, fixed=layer.fixed, jacobian=layer.jacobian) for structure in found]
                )
        models.append({"name": subject.name, "mixers": mixers})
    texts = [{"name": text.name, "tokens": text.tokens, "cut_from": text.cut_from} for text in subjects[0].texts]
    data = {"texts": texts, "models": models, "blocks": blocks, "packed": packed, "sections": list(sections)}
    body = (
        f"<main></main><script type='application/json' id='data'>{embedded_json(data)}</script>"
        f"<script type='module'>{HARNESS}</script>"
    )
    return write_page(path, body=body)
