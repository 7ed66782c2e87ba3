"""The page's mixing matrix in a browser: what is read and drawn is what the model's own matrices say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import PHONE, Opened, needs_browser
from numpy.typing import NDArray
from page_sections import sections_page

from seqmix.inspection import Subject, mixing_matrices, normalise_rows, open_subject
from seqmix.inspection.structure import describe, structures

pytestmark = needs_browser

TIME = 24
TEXTS = ["the cat sat on the mat and", "the dog sat on the log"]
READY = "body[data-ready]"
NUMBER = r"(-?[\d.]+(?:e-?\d+)?)"
READ_OUT = re.compile(
    rf" at (\d+) listens to .* at (\d+) \((?:itself|(\d+) back|(\d+) ahead)\): {NUMBER}(?: ± {NUMBER})?$"
)


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    """An attention and a convolution, small, on the same two texts."""
    one = open_subject("transformer:hidden_size=128:num_hidden_layers=2", texts=TEXTS, tokens=TIME)
    return [one, open_subject("gated_conv:hidden_size=16:num_hidden_layers=2", tokens=TIME, like=one)]


@pytest.fixture(scope="module")
def matrices(subjects: list[Subject]) -> list[list[list[NDArray[np.float32]]]]:
    """By model, text and mixer: (heads, time, source)."""
    return [
        [[layer.matrix for layer in mixing_matrices(subject.model, text.input_ids)] for text in subject.texts]
        for subject in subjects
    ]


@pytest.fixture(scope="module")
def one_model(subjects: list[Subject], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sections_page(tmp_path_factory.mktemp("one") / "page.html", ["matrix"], subjects[:1])


@pytest.fixture(scope="module")
def two_models(subjects: list[Subject], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sections_page(tmp_path_factory.mktemp("two") / "page.html", ["matrix"], subjects)


@pytest.fixture
def opened(browser: Any, one_model: Path) -> Iterator[Opened]:
    page = Opened(browser, one_model, ready=READY)
    page.page.set_default_timeout(8000)
    yield page
    page.page.close()
    assert page.complaints == []


@pytest.fixture
def opened_two(browser: Any, two_models: Path) -> Iterator[Opened]:
    page = Opened(browser, two_models, ready=READY)
    page.page.set_default_timeout(8000)
    yield page
    page.page.close()
    assert page.complaints == []


def panel(opened: Opened, model: int = 0) -> Any:
    return opened.page.locator(".panel.matrix").nth(model)


def heat(opened: Opened, model: int = 0) -> Any:
    return panel(opened, model).locator("canvas.heat").first


def settle(opened: Opened) -> None:
    """Waits until what was asked for is drawn."""
    opened.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def hover(opened: Opened, across: float, down: float, model: int = 0) -> None:
    """Puts the pointer on a share of the picture's width and height."""
    canvas = heat(opened, model)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    opened.page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
    settle(opened)


def read(opened: Opened, model: int = 0) -> tuple[int, int, float, float]:
    """Target, source, value and error of the read-out; its distance is that of the two."""
    text = panel(opened, model).locator(".readout").first.text_content()
    found = READ_OUT.search(text)
    assert found is not None, text
    target, source = int(found[1]), int(found[2])
    assert target - source == int(found[3] or 0) - int(found[4] or 0)
    return target, source, float(found[5]), float(found[6] or 0.0)


def choose(opened: Opened, layer: int, head: int, model: int = 0) -> None:
    panel(opened, model).get_by_role("combobox", name="Layer").select_option(index=layer)
    panel(opened, model).get_by_role("combobox", name="Head").select_option(index=head)
    settle(opened)


PLACES = [(0.3, 0.4), (0.15, 0.95), (0.5, 0.6), (0.9, 0.95), (0.8, 0.3), (0.13, 0.13)]


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 1)])
def test_the_value_under_the_pointer_is_true(
    opened: Opened, matrices: list[list[list[NDArray[np.float32]]]], layer: int, head: int
) -> None:
    choose(opened, layer, head)
    truth = matrices[0][0][layer][head]
    seen = set()
    for across, down in PLACES:
        hover(opened, across, down)
        target, source, value, error = read(opened)
        assert abs(value - truth[target, source]) <= error + 1e-7
        assert error <= 0.001 * truth[target].max()
        seen.add((target, source))
    assert len(seen) == len(PLACES)


def test_a_cell_has_the_colour_of_its_value(opened: Opened) -> None:
    choose(opened, 0, 1)
    seen = 0
    for across, down in PLACES:
        around = []
        for shift in (-0.006, 0.006, 0):
            hover(opened, across + shift, down + shift)
            around.append(read(opened))
        if len(set(around)) > 1:
            continue  # the border of a cell, which the cursor is drawn on
        value = around[0][2]
        seen += 1
        drawn, wanted = heat(opened).evaluate(
            """async (canvas, [across, down, value]) => {
              const { place, ramp } = await import("page/shades");
              const pixel = (from, x, y) => {
                const one = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
                const context = one.getContext("2d", { willReadFrequently: true });
                context.drawImage(from, Math.floor(x), Math.floor(y), 1, 1, 0, 0, 1, 1);
                return [...context.getImageData(0, 0, 1, 1).data];
              };
              const shade = Math.round(place(value, { largest: 1, signed: false, root: true }) * 255);
              return [pixel(canvas, across * canvas.width, down * canvas.height), pixel(ramp(false), shade, 0)];
            }""",
            [across, down, value],
        )
        assert np.abs(np.subtract(drawn, wanted)).max() <= 2
    assert seen >= 3


def test_rows_that_sum_to_one(opened_two: Opened, matrices: list[list[list[NDArray[np.float32]]]]) -> None:
    opened_two.page.get_by_role("button", name="rows sum to 1").click()
    choose(opened_two, 0, 3, model=1)
    truth = normalise_rows(matrices[1][0][0][3])
    for across, down in [(0.5, 0.5), (0.55, 0.56), (0.7, 0.71), (0.9, 0.2)]:
        hover(opened_two, across, down, model=1)
        target, source, value, error = read(opened_two, 1)
        assert abs(value - truth[target, source]) <= error + 1e-6


def test_the_keyboard_moves_the_cell_and_chooses_it(opened: Opened) -> None:
    heat(opened).focus()
    press = opened.page.keyboard.press
    for keys, cell in [
        (["ArrowDown", "ArrowDown", "ArrowRight"], (2, 1)),
        (["End"], (2, TIME - 1)),
        (["Home", "ArrowLeft"], (2, 0)),
        (["Control+End"], (TIME - 1, TIME - 1)),
        (["Shift+ArrowUp", "ArrowLeft"], (TIME - 11, TIME - 2)),
        (["Control+Home"], (0, 0)),
        (["+", "+", "+", "PageDown"], None),
    ]:
        opened.page.evaluate("page.choice.set({ target: 0, source: 0 })")
        for key in keys:
            press(key)
        settle(opened)
        if cell is not None:
            assert read(opened)[:2] == cell
    target, source = read(opened)[:2]
    assert target > 0
    press("Enter")
    assert opened.page.evaluate("[page.choice.get('target'), page.choice.get('source')]") == [target, source]


def test_zoom_by_buttons_and_wheel_and_pan_by_drag(
    opened: Opened, matrices: list[list[list[NDArray[np.float32]]]]
) -> None:
    hover(opened, 0.5, 0.6)
    before = read(opened)
    scrolled = opened.page.evaluate("scrollY")
    opened.page.mouse.wheel(0, 40)
    opened.page.wait_for_function(f"scrollY > {scrolled}")  # the picture does not have the focus: the page scrolls
    hover(opened, 0.5, 0.6)
    opened.page.mouse.down()
    opened.page.mouse.up()
    assert opened.page.evaluate("[page.choice.get('target'), page.choice.get('source')]") == list(before[:2])
    scrolled = opened.page.evaluate("scrollY")
    for _ in range(4):
        opened.page.mouse.wheel(0, -100)
    settle(opened)
    assert opened.page.evaluate("scrollY") == scrolled
    hover(opened, 0.501, 0.601)
    assert read(opened)[:2] == before[:2]  # what was under the pointer stays there
    hover(opened, 0.6, 0.6)
    near = read(opened)[1] - before[1]
    assert 0 < near < 0.1 * TIME
    box = heat(opened).bounding_box()
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.6 * box["height"], steps=3)
    opened.page.mouse.up()
    settle(opened)
    assert opened.page.evaluate("page.choice.get('source')") == before[1]  # a drag chooses nothing
    hover(opened, 0.6, 0.6)
    target, source, value, error = read(opened)
    assert source < before[1]
    assert abs(value - matrices[0][0][0][0][target, source]) <= error + 1e-7
    panel(opened).get_by_role("button", name="Show the whole matrix").first.click()
    hover(opened, 0.5, 0.6)
    assert read(opened)[:2] == before[:2]


def test_two_models_share_the_cell(opened_two: Opened, matrices: list[list[list[NDArray[np.float32]]]]) -> None:
    choose(opened_two, 1, 0, model=0)
    choose(opened_two, 0, 2, model=1)
    hover(opened_two, 0.55, 0.6, model=1)
    values = [read(opened_two, model) for model in (0, 1)]
    assert values[0][:2] == values[1][:2]
    for (target, source, value, error), truth in zip(values, [matrices[0][0][1][0], matrices[1][0][0][2]], strict=True):
        assert abs(value - truth[target, source]) <= error + 1e-7
    assert "Changes with content" in panel(opened_two, 0).text_content()
    assert "Fixed: the same for every input" in panel(opened_two, 1).text_content()


def test_what_moves_with_another_text(opened_two: Opened, matrices: list[list[list[NDArray[np.float32]]]]) -> None:
    view = panel(opened_two).locator("details.moves")
    view.locator("summary").click()
    one, two = (matrices[0][text][0][0] for text in (0, 1))
    time = min(len(one), len(two))
    one, two = one[:time, :time], two[:time, :time]
    moved = np.abs(one - two).sum() / (np.abs(one).sum() + np.abs(two).sum())
    share = view.get_by_role("status")
    share.filter(has_text="%").wait_for()
    assert float(share.text_content().split(" %")[0]) == pytest.approx(100 * moved, rel=0.01)
    assert f"over the {time} positions" in share.text_content()
    view.locator("canvas.heat").focus()
    for key in ["Control+End", "Home", "ArrowRight"]:
        opened_two.page.keyboard.press(key)
    text = view.locator(".readout").text_content()
    found = re.search(rf"difference {NUMBER} ± {NUMBER}$", text)
    assert found is not None, text
    assert abs(float(found[1]) - (one - two)[time - 1, 1]) <= float(found[2]) + 1e-7
    fixed = panel(opened_two, 1).locator("details.moves")
    fixed.locator("summary").click()
    assert "Nothing moves" in fixed.text_content()
    assert not fixed.locator("canvas.heat").is_visible()


def test_another_text_has_its_own_matrix(opened: Opened, matrices: list[list[list[NDArray[np.float32]]]]) -> None:
    opened.page.get_by_role("combobox", name="Reads").select_option(index=1)
    settle(opened)
    hover(opened, 0.4, 0.9)
    target, source, value, error = read(opened)
    assert abs(value - matrices[0][1][0][0][target, source]) <= error + 1e-7
    assert abs(value - matrices[0][0][0][0][target, source]) > error


def test_the_small_pictures_choose_a_head(opened: Opened) -> None:
    panel(opened).get_by_text("All heads of this layer").click()
    button = panel(opened).locator(".heads button").nth(2)
    button.click()
    settle(opened)
    assert button.evaluate("(button) => button === document.activeElement")  # the reader's place is kept
    assert opened.page.evaluate("page.choice.get('head0')") == 2
    panel(opened).locator(".heads button").nth(2).and_(opened.page.locator("[aria-pressed=true]")).wait_for()
    opened.page.wait_for_function(
        """() => {
          const one = Object.assign(document.createElement("canvas"), { width: 72, height: 72 });
          const context = one.getContext("2d", { willReadFrequently: true });
          context.drawImage(document.querySelectorAll(".heads canvas")[2], 0, 0);
          return context.getImageData(0, 0, 72, 72).data.some((value) => value > 0);
        }"""
    )


def test_the_numbers_of_the_structure_are_those_of_python(opened_two: Opened, subjects: list[Subject]) -> None:
    choose(opened_two, 0, 1, model=1)
    layer = next(mixing_matrices(subjects[1].model, subjects[1].texts[0].input_ids))
    found = structures(layer.matrix)[1]
    text = panel(opened_two, 1).locator("table").text_content()
    assert f"Rank{found.rank}" in text
    assert f"Lags{found.nearest_lag} to {found.farthest_lag}" in text
    assert found.toeplitz > 0.9995
    assert "Toeplitz100.0 %" in text or "Toeplitzover 99.9 %" in text
    assert describe(found, fixed=True, jacobian=False) in panel(opened_two, 1).text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(browser: Any, two_models: Path, scheme: str) -> None:
    opened = Opened(browser, two_models, size=PHONE, scheme=scheme, ready=READY)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    hover(opened, 0.5, 0.6)
    read(opened)
    opened.page.close()
    assert opened.complaints == []


def test_two_fingers_zoom(browser: Any, one_model: Path) -> None:
    opened = Opened(browser, one_model, size=PHONE, ready=READY)
    canvas = heat(opened)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = (box["x"] + 0.5 * box["width"], box["y"] + 0.7 * box["height"])
    touch = opened.page.context.new_cdp_session(opened.page)

    def fingers(kind: str, *apart: float) -> None:
        points = [
            {"x": middle[0] + side * half, "y": middle[1], "id": number}
            for half in apart
            for number, side in enumerate((-1, 1))
        ]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", 20)
    for half in (40, 60, 80):
        fingers("touchMove", half)
    fingers("touchEnd")
    settle(opened)
    opened.page.mouse.move(*middle)
    settle(opened)
    first = read(opened)[1]
    opened.page.mouse.move(middle[0] + 60, middle[1])
    settle(opened)
    # Four times as far apart: 60 pixels are a quarter of the cells that they were.
    whole = 60 / (box["width"] - 46) * TIME
    assert read(opened)[1] - first == pytest.approx(whole / 4, abs=1)
    assert opened.page.evaluate("page.choice.get('source')") == 3  # nothing was chosen
    opened.page.close()
    assert opened.complaints == []


def test_a_jacobian_says_so(browser: Any, tmp_path: Path) -> None:
    subject = open_subject("lstm:hidden_size=8:num_hidden_layers=1", texts=["abcdefg"], tokens=8)
    opened = Opened(browser, sections_page(tmp_path / "page.html", ["matrix"], [subject]), ready=READY)
    assert "A Jacobian (exact)" in panel(opened).text_content()
    hover(opened, 0.3, 0.8)
    target, source, value, error = read(opened)
    truth = next(mixing_matrices(subject.model, subject.texts[0].input_ids)).matrix[0]
    assert abs(value - truth[target, source]) <= error + 1e-7
    opened.page.close()
    assert opened.complaints == []
