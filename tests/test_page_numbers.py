"""What the page draws is what forward does: matrices read in the browser, put through values and readout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Opened, needs_browser

from seqmix.files import write_text
from seqmix.inspection import Subject, mixer_places, mixing_matrices, open_subject
from seqmix.inspection.page import make_page

pytestmark = needs_browser

READ = """async () => {
  const { blockReader } = await import("page/blocks");
  const data = JSON.parse(document.getElementById("data").textContent);
  const read = blockReader(data.blocks, (id) => document.getElementById(`block-${id}`).textContent);
  const found = [];
  for (const mixer of data.models[0].mixers) {
    const matrix = await read(mixer.blocks[0]);
    const heads = [...Array(matrix.heads).keys()];
    const targets = [...Array(matrix.time).keys()];
    found.push({
      rows: heads.map((head) => targets.map((target) => [...matrix.row(head, target)])),
      values: heads.map((head) => targets.map((target) => targets.map((source) => matrix.value(head, target, source)))),
      steps: heads.map((head) => targets.map((target) => matrix.step(head, target))),
      maxima: heads.map((head) => matrix.max(head)),
    });
  }
  return found;
}"""


@pytest.fixture(scope="module", params=["transformer", "gated_conv", "mixer:dynamic_conv", "mamba2", "mixer:lstm"])
def subject(request: pytest.FixtureRequest) -> Subject:
    return open_subject(request.param, params="12k", tokens=40, texts=["who listens to whom, and how far back?"])


@pytest.fixture(scope="module")
def read(subject: Subject, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the page's own reader gives for every mixer and head on the first text."""
    path: Path = tmp_path_factory.mktemp("page") / "page.html"
    write_text(path, make_page([subject]).html)
    opened = Opened(browser, path, ready="html[data-ready]")
    found = opened.page.evaluate(READ)
    assert opened.complaints == []
    opened.page.close()
    return found


def test_the_page_reads_the_matrices(subject: Subject, read: list[dict[str, Any]]) -> None:
    for one, shown in zip(mixing_matrices(subject.model, subject.texts[0].input_ids), read, strict=True):
        rows, values = np.array(shown["rows"]), np.array(shown["values"])
        steps = np.array(shown["steps"])[:, :, None]
        # The page computes in float32: 2^-23 of a value for the product and the scale.
        allowed = steps + np.abs(one.matrix) * 2.0**-22
        assert (np.abs(rows - one.matrix) <= allowed).all()
        assert (np.abs(values - one.matrix) <= allowed).all()
        assert np.abs(np.array(shown["maxima"]) - np.abs(one.matrix).max(axis=(1, 2))).max() <= allowed.max()


def test_what_the_page_draws_is_what_forward_does(subject: Subject, read: list[dict[str, Any]]) -> None:
    for place, shown in zip(mixer_places(subject.model, subject.texts[0].input_ids), read, strict=True):
        if place.mixer.traits.matrix == "jacobian":
            continue
        drawn = torch.tensor(shown["rows"], dtype=torch.float32)
        steps = torch.tensor(shown["steps"], dtype=torch.float32)[:, :, None]
        (part,) = place.mixing()
        assert part.values is not None
        mixed = (drawn[None] @ part.values).detach().requires_grad_()
        y = place.mixer.readout([mixed], place.x)
        # A product is off by at most a step times |value|, and by float32's rounding of the sum. The readout works
        # position by position: what it makes of that is its slope, taken twice for what bends.
        off = (steps.expand_as(drawn) + 2.0**-20 * drawn.abs()) @ part.values[0].abs()
        slopes = [torch.autograd.grad(one.sum(), mixed, retain_graph=True)[0] for one in y.unbind(dim=2)]
        allowed = torch.stack([(slope[0].abs() * off).sum(dim=(0, 2)) for slope in slopes], dim=1)
        with torch.no_grad():
            expected = place.mixer(place.x).y
        assert ((y - expected)[0].abs() <= 2 * allowed + 2.0**-18 * expected.abs().max()).all()
