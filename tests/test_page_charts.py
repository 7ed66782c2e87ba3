"""The page's line charts in a browser: what is drawn is the data, and it is read by pointer and keyboard."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
from browser import LAPTOP, Opened, needs_browser
from page_sample import axis_of, drawn_points, expected_pixel, opened, write_page

pytestmark = needs_browser


@pytest.fixture(scope="module")
def bench(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A page with one chart, `chart` in its scripts, for all tests that draw another one in it."""
    empty = {"name": "Empty", "x": {"label": "x"}, "y": {"label": "y"}, "series": []}
    opened_page = opened(browser, write_page(tmp_path_factory.mktemp("bench"), {"chart": empty}))
    yield opened_page
    assert opened_page.complaints == []
    opened_page.page.close()


def draw(bench: Opened, **options: Any) -> Any:
    """Draws a chart on the bench; the locator of its figure."""
    chart = {"marks": [], "height": 230, **options}
    bench.page.evaluate("options => chart.update(options)", chart)
    return bench.page.locator(".chart")


AXES = {
    "linear": ({"log": False}, lambda value: value),
    "log": ({"log": True}, math.log),
    "log from zero": ({"log": True, "zero": True}, math.log1p),
    "powers of two": ({"log": True, "base": 2}, math.log),
}


@pytest.mark.parametrize("across", AXES)
@pytest.mark.parametrize("up", ["linear", "log"])
def test_a_line_goes_through_its_data(bench: Opened, across: str, up: str) -> None:
    first = 1 if across in ("log", "powers of two") else 0
    x = [first, 3, 10, 47, 200]
    y = [0.5, 0.03125, 0.25, 0.001, 0.9]
    values = {"one": y, "two": y[::-1]}
    chart = draw(
        bench,
        name="Test",
        x={"label": "distance", **AXES[across][0]},
        y={"label": "share", **AXES[up][0]},
        series=[{"name": name, "x": x, "y": values[name]} for name in values],
        marks=[{"x": 47, "label": "here"}],
    )
    ticks = axis_of(chart, "x"), axis_of(chart, "y")
    for name, wanted in values.items():
        points = drawn_points(chart, name)
        assert len(points) == len(x)
        for (left, top), wanted_x, wanted_y in zip(points, x, wanted, strict=True):
            # Paths are written to hundredths of a pixel.
            assert left == pytest.approx(expected_pixel(wanted_x, ticks[0], AXES[across][1]), abs=0.006)
            assert top == pytest.approx(expected_pixel(wanted_y, ticks[1], AXES[up][1]), abs=0.006)
    mark = float(chart.locator(".chart-mark").get_attribute("x1"))
    assert mark == pytest.approx(expected_pixel(47, ticks[0], AXES[across][1]), abs=0.006)
    looks = {chart.locator(f'path[data-series="{name}"]').get_attribute("stroke-dasharray") for name in values}
    assert len(looks) == 2, "lines are told apart by more than their colour"


def test_what_a_log_axis_cannot_show_falls_below_it(bench: Opened) -> None:
    x = list(range(6))
    chart = draw(
        bench,
        name="Zero",
        x={"label": "distance"},
        y={"label": "share", "log": True, "decades": 4},
        series=[{"name": "one", "x": x, "y": [1.0, 0.01, 0.0, None, 0.1, 1e-9]}],
    )
    points = drawn_points(chart, "one")
    base = float(chart.locator(".chart-base").first.get_attribute("y1"))
    assert [top > base for _, top in points] == [False, False, True, False, True]
    path = chart.locator('path[data-series="one"]').get_attribute("d")
    assert path.count("M") == 2, "a missing value leaves a gap"
    assert float(chart.locator(".chart-y-tick").first.get_attribute("data-value")) >= 1e-4


@pytest.mark.parametrize(
    ("x", "y"),
    [([], []), ([5], [2.0]), ([1, 2], [0.0, 0.0]), ([1, 2], [None, None]), ([1, 2], [-1.5, -1.5])],
    ids=["nothing", "one point", "zeros", "gaps", "a negative constant"],
)
@pytest.mark.parametrize("log", [False, True])
def test_little_data_is_drawn_without_complaint(bench: Opened, x: list[int], y: list[float | None], log: bool) -> None:
    chart = draw(
        bench,
        name="Little",
        x={"label": "x", "log": log},
        y={"label": "y", "log": log},
        series=[{"name": "one", "x": x, "y": y}],
    )
    assert "NaN" not in chart.inner_html()
    assert "Infinity" not in chart.inner_html()


def test_ticks_are_round_and_apart(bench: Opened) -> None:
    def labels(x: dict[str, Any], values: list[float]) -> list[str]:
        series = [{"name": "one", "x": values, "y": [1.0 for _ in values]}]
        chart = draw(bench, name="Ticks", x={"label": "x", **x}, y={"label": "y"}, series=series)
        nodes = chart.locator(".chart-x-tick")
        boxes = [node.bounding_box() for node in nodes.all()]
        for left, right in itertools.pairwise(boxes):
            assert left["x"] + left["width"] <= right["x"], "labels overlap"
        return list(nodes.all_text_contents())

    assert labels({}, [0, 255]) == ["0", "20", "40", "60", "80", "100", "120", "140", "160", "180", "200", "220", "240"]
    assert labels({"log": True}, [1, 1000]) == ["1", "2", "5", "10", "20", "50", "100", "200", "500", "1000"]
    assert labels({"log": True, "base": 2}, [16, 65536])[:3] == ["16", "32", "64"]
    assert labels({"log": True, "zero": True}, [0, 3])[0] == "0"
    assert labels({"whole": True}, [0, 2]) == ["0", "1", "2"]
    assert labels({"log": True}, [1e-12, 1])[0] == "10⁻¹²"


def test_values_are_read_by_pointer_and_keyboard(bench: Opened) -> None:
    x = [0, 1, 2, 3, 40]
    chart = draw(
        bench,
        name="Loss",
        x={"label": "distance"},
        y={"label": "loss"},
        series=[
            {"name": "one", "x": x, "y": [1.5, 2.5, 3.5, 4.5, 5.5], "low": [1, 2, 3, 4, 5], "high": [2, 3, 4, 5, 6]},
            {"name": "two", "x": [0, 2], "y": [7, 8]},
        ],
    )
    picture, readout = chart.locator(".chart-picture"), chart.locator(".chart-readout")
    assert readout.get_attribute("aria-live") == "polite"
    assert "Loss: loss over distance; one, two." in picture.get_attribute("aria-label")

    left, top = drawn_points(chart, "one")[2]
    box = picture.bounding_box()
    bench.page.mouse.move(box["x"] + left + 2, box["y"] + top + 30)
    assert readout.text_content() == "distance 2: one 3.5 (3 to 4); two 8"
    assert float(chart.locator(".chart-crosshair").get_attribute("x1")) == pytest.approx(left, abs=0.006)

    picture.focus()
    for key, reading in [
        ("ArrowRight", "distance 3: one 4.5 (4 to 5)"),
        ("ArrowRight", "distance 40: one 5.5 (5 to 6)"),
        ("ArrowRight", "distance 40: one 5.5 (5 to 6)"),
        ("Home", "distance 0: one 1.5 (1 to 2); two 7"),
        ("End", "distance 40: one 5.5 (5 to 6)"),
        ("ArrowLeft", "distance 3: one 4.5 (4 to 5)"),
    ]:
        bench.page.keyboard.press(key)
        assert readout.text_content() == reading
    bench.page.keyboard.press("Escape")
    assert chart.locator(".chart-crosshair").count() == 0
    assert "arrow keys" in readout.text_content()


def test_the_numbers_are_all_in_the_table(bench: Opened) -> None:
    chart = draw(
        bench,
        name="Loss",
        x={"label": "distance"},
        y={"label": "loss"},
        series=[{"name": "one", "x": [1, 2], "y": [0.5, None]}, {"name": "<i>two</i>", "x": [2, 9], "y": [0.25, 4]}],
    )
    chart.locator("summary").click()
    chart.locator("table").wait_for()
    rows = [row.locator("th, td").all_text_contents() for row in chart.locator("table tr").all()]
    assert rows == [["distance", "one", "<i>two</i>"], ["1", "0.5", "–"], ["2", "–", "0.25"], ["9", "–", "4"]]
    draw(bench, series=[{"name": "three", "x": [1], "y": [6]}])
    assert chart.locator("table tr").all_text_contents() == ["distancethree", "16"]
    chart.locator("summary").click()


def test_a_chart_takes_the_width_it_has(bench: Opened) -> None:
    chart = draw(
        bench, name="Wide", x={"label": "x"}, y={"label": "y"}, series=[{"name": "a", "x": [0, 9], "y": [1, 2]}]
    )
    for width in (1000, 500):
        bench.page.set_viewport_size({"width": width, "height": 700})
        bench.page.wait_for_function(
            "() => { const box = document.querySelector('.chart').clientWidth;"
            " return Number(document.querySelector('.chart-picture').getAttribute('width')) === box; }"
        )
        assert drawn_points(chart, "a")[-1][0] < width
    bench.page.set_viewport_size({"width": LAPTOP[0], "height": LAPTOP[1]})
