"""The page's sections drawn as charts, in a browser: field, context, positions, rollout, costs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import LAPTOP, PHONE, Opened, needs_browser
from page_sample import (
    LENGTHS,
    axis_of,
    drawn_points,
    expected_pixel,
    model,
    opened,
    payload,
    share_curve,
    widths,
    write_page,
)

from seqmix.inspection import Subject, mixing_matrices, normalise_rows, open_subject
from seqmix.inspection.page import make_page
from seqmix.inspection.receptive_field import receptive_fields
from seqmix.inspection.rollout import rollout

pytestmark = needs_browser

SECTIONS = ("field", "context", "positions", "rollout", "costs")


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = payload(model("conv", 9, trained=True), model("transformer", None, trained=False))
    return write_page(tmp_path_factory.mktemp("two"), data, SECTIONS)


@pytest.fixture(scope="module")
def scripts(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A page without sections, whose modules can be called."""
    page = opened(browser, write_page(tmp_path_factory.mktemp("words"), payload()))
    yield page
    assert page.complaints == []
    page.page.close()


def test_words_about_the_receptive_field(scripts: Opened) -> None:
    def said(*arguments: Any) -> str:
        return scripts.page.evaluate("async (all) => (await import('page/field')).agreement(...all)", arguments)

    assert said(9, 9, 64) == "The formula gives 9 positions and the gradient reaches as many: they agree."
    assert said(64, 64, 64).endswith("they agree.")
    assert said(100, 64, 64) == "The formula gives 100 positions; the gradient fills the text of 64, too short to tell."
    assert said(9, 8, 64) == "The formula gives 9 positions, but the gradient reaches 8: they differ."
    assert said(9, 10, 64).endswith("they differ.")
    assert said(None, 64, 64) == "The formula gives no bound; the gradient reaches all 64 positions of the text."
    assert said(None, 1, 64) == "The formula gives no bound; the gradient reaches 1 position of the text's 64."


def test_equal_heads_are_one_row(scripts: Opened) -> None:
    def head(span: int) -> dict[str, Any]:
        return {"formula": span, "measured": span, "widths": widths(1, 2, span)}

    rows = scripts.page.evaluate(
        "async (heads) => (await import('page/field')).headRows(heads)", [head(4), head(4), head(4), head(9), head(4)]
    )
    assert [row[0] for row in rows] == ["heads 1–3", "head 4", "head 5"]
    assert [row[1] for row in rows] == ["4", "9", "4"]


def test_words_about_the_context(scripts: Opened) -> None:
    def said(bits: list[float], low: list[float | None], whole: float) -> tuple[int | None, str]:
        ablation = {"distances": [1, 2, 4], "bits": bits, "low": low, "high": low, "whole": whole, "targets": 5}
        return tuple(
            scripts.page.evaluate(
                """async (ablation) => {
                  const { ninetyPercent, worthInWords } = await import("page/context");
                  return [ninetyPercent(ablation), worthInWords({ ablation, unit: "bits per token" })];
                }""",
                ablation,
            )
        )

    last, words = said([5.0, 4.25, 4.0625], [0.5, 0.1, 0.0], 4.0)
    assert last == 4
    assert words.endswith("90 % of what the context is worth lies within the last 4 tokens.")
    assert words.startswith("The whole context is worth 1 bits per token more than the last token (95 % interval 0.5")
    last, words = said([5.0, 4.5, 4.25], [None, None, None], 4.0)
    assert last is None
    assert words.endswith("(over 5 targets). No cut that was measured keeps 90 % of that.")
    for bits, low in ([3.5, 4.0, 4.0], [-0.6, 0.0, 0.0]), ([4.25, 4.0, 4.0], [-0.1, 0.0, 0.0]):
        last, words = said(bits, low, 4.0)
        assert last is None
        assert "worth nothing that can be told from 0" in words


@pytest.mark.parametrize(("size", "scheme"), [(LAPTOP, "light"), (PHONE, "dark")])
def test_sections_of_two_models(browser: Any, two_models: Path, size: tuple[int, int], scheme: str) -> None:
    seen = opened(browser, two_models, size=size, scheme=scheme)
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    rights = "nodes => nodes.map(node => node.getBoundingClientRect().right)"
    assert max(page.locator(".chart-picture").evaluate_all(rights)) <= size[0]

    field = page.locator("#field .panel").first
    words = field.locator(".field-words")
    assert words.text_content().startswith(
        "The formula gives 9 positions and the gradient reaches as many: they agree."
    )
    assert "With untrained weights, half of the gradient comes from the nearest 1 position" in words.text_content()
    assert field.locator("path[data-series]").count() == 2
    points = drawn_points(field.locator(".chart"), "trained weights")
    ticks = axis_of(field.locator(".chart"), "y")
    for (_, top), share in zip(points[:9], share_curve(9), strict=False):
        assert top == pytest.approx(expected_pixel(share, ticks, math.log), abs=0.006)
    assert field.locator(".chart-mark").count() == 3
    field.locator("select").select_option("Layer 2: causal_conv1d (feed-forward)")
    assert words.text_content().startswith("The formula gives 5 positions")
    assert field.locator("path[data-series]").count() == 1

    linear = field.get_by_role("button", name="linear distance")
    linear.focus()
    page.keyboard.press("Enter")
    assert linear.get_attribute("aria-pressed") == "true"
    ticks = axis_of(field.locator(".chart"), "x")
    points = drawn_points(field.locator(".chart"), "trained weights")
    assert points[4][0] == pytest.approx(expected_pixel(4, ticks, float), abs=0.006)
    field.get_by_text("By head").click()
    fold = field.locator("details", has_text="Layer 1: causal_conv1d, 3 heads").last
    fold.locator("summary").click()
    fold.locator("tbody").wait_for()
    assert fold.locator("tbody th").all_text_contents() == ["heads 1–2", "head 3"]

    steps = page.locator("#field .chart").last
    assert len(drawn_points(steps, "conv")) == 3
    assert "conv: a message from 4 positions back needs 2 mixers; farther ones it cannot bring." in page.content()

    ablation = page.locator("#context .chart").first
    assert ablation.locator(".chart-band").count() == 2
    assert page.locator("#context").get_by_text("90 % of what the context is worth lies within the last 8").count() == 2

    positions = page.locator("#positions .panel").first
    assert positions.locator("path[data-series^=pair]").count() == 4
    box = positions.get_by_label("pair 1", exact=True)
    box.focus()
    page.keyboard.press("Space")
    assert positions.locator("path[data-series^=pair]").count() == 5
    positions.get_by_label("pair 0", exact=True).uncheck()
    shown = positions.locator("path[data-series^=pair]").evaluate_all("paths => paths.map(p => p.dataset.series)")
    assert shown == ["pair 1", "pair 2", "pair 5", "pair 7"]

    costs = page.locator("#costs")
    ticks = axis_of(costs.locator(".chart").nth(2), "y")
    points = drawn_points(costs.locator(".chart").nth(2), "transformer")
    for (_, top), length in zip(points, LENGTHS, strict=True):
        assert top == pytest.approx(expected_pixel(512 * length, ticks, math.log), abs=0.006)
    assert costs.locator(".crossovers li").all_text_contents() == ["The state of conv is smaller from 128 tokens on."]
    assert seen.complaints == []
    page.close()


def test_rollout_rows_follow_the_target(browser: Any, two_models: Path) -> None:
    seen = opened(browser, two_models)
    panel = seen.page.locator("#rollout .panel").first
    panel.locator(".strip").first.wait_for()
    assert "At 7 the rank correlation (Spearman) of rollout and gradient is 0.25" in panel.inner_text()
    assert "Over 3 targets it is 0.5 on average." in panel.inner_text()
    panel.locator("select").select_option("63: f")
    assert "At 63 the rank correlation (Spearman) of rollout and gradient is 0.75" in panel.inner_text()
    seen.page.evaluate("page.choice.set({ target: 9 })")
    assert panel.locator(".strip.chosen .strip-name").text_content() == "7: f"
    chart = panel.locator(".chart")
    ticks = axis_of(chart, "y")
    for series in ("rollout", "gradient"):
        points = drawn_points(chart, series)
        assert len(points) == 8
        for _, top in points:
            assert top == pytest.approx(expected_pixel(1 / 8, ticks, float), abs=0.006)
    panel.locator("canvas.heat").focus()
    seen.page.keyboard.press("Home")
    assert panel.locator(".chart-readout").first.text_content() == "“f” at 7 from “<b>” at 0: 0.125"
    assert seen.complaints == []
    seen.page.close()


def test_what_was_not_measured_is_said(browser: Any, tmp_path: Path) -> None:
    parts = ("receptive_field", "context", "positions", "costs", "rollout")
    bare = {**model("bare", 9, trained=False), **dict.fromkeys(parts)}
    seen = opened(browser, write_page(tmp_path, payload(bare), SECTIONS))
    for section in SECTIONS:
        assert len(seen.page.locator(f"#{section} .note").last.text_content()) > 20
        assert seen.page.locator(f"#{section} .chart").count() == 0
    silent = model("silent", 9, trained=False)
    silent["positions"] = {"kind": "none", "distances": [], "curves": [], "note": "", "scores": None}
    seen.page.close()
    seen = opened(browser, write_page(tmp_path, payload(silent), SECTIONS))
    assert "This model has no position encoding." in seen.page.locator("#positions").inner_text()
    assert "This model has no softmax scores." in seen.page.locator("#positions").inner_text()
    assert seen.complaints == []
    seen.page.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Subject]:
    """The whole page of a small convolution, as `seqmix inspect` makes it."""
    subject = open_subject("light_conv:hidden_size=16:num_hidden_layers=2", texts=["a cat sat on the mat, and sat"])
    path = tmp_path_factory.mktemp("real") / "page.html"
    path.write_text(make_page([subject]).html, encoding="utf-8")
    return path, subject


def test_a_real_page_draws_what_python_measures(browser: Any, real: tuple[Path, Subject]) -> None:
    path, subject = real
    input_ids = subject.texts[0].input_ids
    seen = Opened(browser, path, ready="html[data-ready]")
    page = seen.page

    field = receptive_fields(subject, input_ids)
    assert field.formula == field.measured < len(field.curve), "the text is long enough to see the bound"
    panel = page.locator("#field .panel")
    words = panel.locator(".field-words").text_content()
    assert words.startswith(
        f"The formula gives {field.formula} positions and the gradient reaches as many: they agree."
    )
    assert f"90 % from {field.widths.ninety}, 99 % from {field.widths.ninety_nine}." in words
    chart = panel.locator(".chart")
    across, up = axis_of(chart, "x"), axis_of(chart, "y")
    points = drawn_points(chart, "drawn weights")
    for distance, share in enumerate(field.curve[: field.formula]):
        left, top = points[distance]
        assert left == pytest.approx(expected_pixel(distance, across, math.log1p), abs=0.006)
        # The page holds seven digits.
        assert top == pytest.approx(expected_pixel(share, up, math.log), abs=0.01)
    base = float(chart.locator(".chart-base").first.get_attribute("y1"))
    assert all(top > base for _, top in points[field.formula :]), "nothing comes from beyond the receptive field"

    product = rollout(
        [normalise_rows(layer.matrix).mean(axis=0) for layer in mixing_matrices(subject.model, input_ids)]
    )
    heat = page.locator("#rollout canvas.heat")
    heat.scroll_into_view_if_needed()
    page.locator("#rollout .strip").first.wait_for()
    heat.focus()
    page.keyboard.press("Control+End")
    last = len(product) - 1
    reading = page.locator("#rollout .chart-readout").first.text_content()
    value, error = re.search(r": ([\d.]+) ± ([\d.]+)$", reading).groups()
    assert f"at {last} from" in reading
    assert abs(float(value) - product[last, last]) <= float(error) < 0.01 * product.max()

    parameters = subject.model.num_parameters()
    assert f"{parameters / 1000:.3g}k parameters" in page.locator("#costs").inner_text()
    assert seen.complaints == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_real_page_fits_a_phone(browser: Any, real: tuple[Path, Subject], scheme: str) -> None:
    seen = Opened(browser, real[0], size=PHONE, scheme=scheme, ready="html[data-ready]")
    seen.page.locator("#rollout .strip").first.wait_for()
    rights = "nodes => nodes.map(node => node.getBoundingClientRect().right)"
    for section in SECTIONS:
        assert max(seen.page.locator(f"#{section} :is(svg, canvas, p, fieldset)").evaluate_all(rights)) <= PHONE[0]
    assert seen.page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    assert seen.complaints == []
    seen.page.close()
