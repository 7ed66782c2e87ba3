"""The page's graph in a browser: its searches are those of Python, and what it says of a model is what they find."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import PHONE, Opened, needs_browser
from numpy.typing import NDArray
from page_modules import write_page
from page_sections import sections_page

from seqmix.inspection import Subject, graph, mixing_matrices, open_subject

pytestmark = needs_browser

TIME = 40
TEXT = "The neighbours, the earlier words, the sum"
READY = "body[data-ready]"


def random_layers(seed: int) -> tuple[list[NDArray[np.float32]], float]:
    """1 to 4 layers over 1 to 12 positions, sparse, causal or not, and a threshold."""
    draw = np.random.default_rng(seed)
    time, depth = int(draw.integers(1, 13)), int(draw.integers(1, 5))
    layers = []
    for _ in range(depth):
        matrix = draw.exponential(size=(time, time)) * (draw.random((time, time)) < draw.uniform(0.1, 0.8))
        layers.append((np.tril(matrix) if seed % 2 else matrix).astype(np.float32))
    return layers, float(draw.choice([0.0, 0.3, 0.7]))


@pytest.fixture(scope="module")
def modules(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    opened = Opened(browser, write_page(tmp_path_factory.mktemp("modules") / "page.html"))
    yield opened.page
    opened.page.close()
    assert opened.complaints == []


SEARCH = """
async ([layers, time, threshold]) => {
  const { keepStrong, leading, reached, steps, strongestPath } = await import("page/paths");
  const kept = layers.map((weights) => keepStrong(Float32Array.from(weights), time, threshold));
  const all = [...Array(time).keys()];
  return {
    steps: all.map((source) => all.map((target) => steps(kept, time, source, target))),
    paths: all.map((source) => all.map((target) => strongestPath(kept, time, source, target))),
    reached: all.map((source) => reached(kept, time, source).map((nodes) => [...nodes])),
    leading: all.map((target) => leading(kept, time, target).map((nodes) => [...nodes])),
  };
}
"""


@pytest.mark.parametrize("seed", range(12))
def test_searches_are_those_of_python(modules: Any, seed: int) -> None:
    layers, threshold = random_layers(seed)
    time = len(layers[0])
    found = modules.evaluate(SEARCH, [[matrix.ravel().tolist() for matrix in layers], time, threshold])
    for source in range(time):
        reached = graph.reached(layers, source, threshold)
        assert [list(np.nonzero(nodes)[0]) for nodes in found["reached"][source]] == reached
        for target in range(time):
            assert found["steps"][source][target] == graph.steps(layers, source, target, threshold)
            path = graph.strongest_path(layers, source, target, threshold)
            assert found["paths"][source][target] == (None if path is None else [hop._asdict() for hop in path])
    for target in range(time):
        *below, top = found["leading"][target]
        assert list(np.nonzero(top)[0]) == [target]
        for level, nodes in enumerate(below):
            can = [target in graph.reached(layers[level:], source, threshold)[-1] for source in range(time)]
            assert [bool(node) for node in nodes] == can


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    one = open_subject("transformer:hidden_size=128:num_hidden_layers=2", texts=[TEXT], tokens=TIME)
    return [one, open_subject("gated_conv:hidden_size=8:num_hidden_layers=6", tokens=TIME, like=one)]


@pytest.fixture(scope="module")
def layers(subjects: list[Subject]) -> list[list[NDArray[np.float32]]]:
    """By model and mixer: (heads, time, source)."""
    ids = subjects[0].texts[0].input_ids
    return [[layer.matrix for layer in mixing_matrices(subject.model, ids)] for subject in subjects]


@pytest.fixture(scope="module")
def page_path(subjects: list[Subject], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sections_page(tmp_path_factory.mktemp("graph") / "page.html", ["graph"], subjects, bits=16)


@pytest.fixture
def opened(browser: Any, page_path: Path) -> Iterator[Opened]:
    page = Opened(browser, page_path, ready=READY)
    page.page.set_default_timeout(8000)
    page.page.locator(".found.whole", has_text="mixer").nth(1).wait_for()
    yield page
    page.page.close()
    assert page.complaints == []


def settle(opened: Opened) -> None:
    opened.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def panel(opened: Opened, model: int = 0) -> Any:
    return opened.page.locator(".panel.graph").nth(model)


def count(opened: Opened, kind: str, model: int = 0) -> int | None:
    """The number of mixers that the page states; None where it says that no links lead there."""
    text = panel(opened, model).locator(f".found.{kind}").text_content()
    if "no links lead there" in text:
        return None
    found = re.search(r"(\d+) mixers?", text)
    assert found is not None, text
    return int(found[1])


def set_ends(opened: Opened, source: int, target: int) -> None:
    for label, value in [("From input", source), ("to output", target)]:
        field = panel(opened).get_by_role("spinbutton", name=label)
        field.fill(str(value))
        field.press("Enter")
    settle(opened)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.6])
def test_the_fewest_mixers_are_those_of_python(
    opened: Opened, layers: list[list[NDArray[np.float32]]], threshold: float
) -> None:
    opened.page.get_by_role("slider", name="Links above").fill(str(threshold))
    for source, target in [(3, 20), (0, 39), (19, 20), (7, 7), (12, 5)]:
        set_ends(opened, source, target)
        for model, matrices in enumerate(layers):
            assert count(opened, "whole", model) == graph.steps(matrices, source, target, threshold)


def test_the_picture_searches_its_own_window(opened: Opened, layers: list[list[NDArray[np.float32]]]) -> None:
    opened.page.get_by_role("slider", name="Links above").fill("0.6")
    set_ends(opened, 9, 30)
    for model, matrices in enumerate(layers):
        assert count(opened, "seen", model) == graph.steps([matrix[:, :32, :32] for matrix in matrices], 9, 30, 0.6)
    first = panel(opened).get_by_role("slider", name="First position")
    first.fill("5")
    opened.page.get_by_role("slider", name="Links above").fill("0.3")
    settle(opened)
    assert first.input_value() == "5"  # it stays where the reader put it
    set_ends(opened, 0, 39)
    assert "does not show both ends" in panel(opened).locator(".found.seen").text_content()


def test_the_strongest_path_is_in_words(opened: Opened, layers: list[list[NDArray[np.float32]]]) -> None:
    set_ends(opened, 2, 31)
    for model, matrices in enumerate(layers):
        path = graph.strongest_path(matrices, 2, 31, 0.1)
        text = panel(opened, model).locator(".found.strongest").text_content()
        found = [tuple(map(int, pair)) for pair in re.findall(r"(\d+) → (\d+)", text)]
        assert found == [(source, target) for _layer, source, target, _weight in path]
        product = float(re.search(r"Product of its weights: ([\d.e-]+?)\.?$", text)[1])
        assert product == pytest.approx(np.prod([weight for *_, weight in path]), rel=0.01)


def test_ends_are_chosen_by_pointer_and_keyboard(opened: Opened) -> None:
    canvas = panel(opened).locator("canvas.graph")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    opened.page.evaluate("page.choice.set({ source: 2, target: 3 })")
    for share, height, key in [(0.9, 0.2, "target"), (0.3, 0.8, "source")]:
        canvas.click(position={"x": share * box["width"], "y": height * box["height"]})
        settle(opened)
        assert opened.page.evaluate(f"page.choice.get('{key}')") > 3
    source, target = opened.page.evaluate("[page.choice.get('source'), page.choice.get('target')]")
    assert source < target
    canvas.focus()
    for key in ["ArrowUp", "ArrowLeft", "ArrowDown", "ArrowRight", "ArrowRight"]:
        opened.page.keyboard.press(key)
    assert "move the input" in panel(opened).locator(".hint").text_content()
    assert opened.page.evaluate("[page.choice.get('source'), page.choice.get('target')]") == [source + 2, target - 1]
    assert f" at {source + 2} to " in panel(opened).locator(".found.whole").text_content()


def test_one_head_has_its_own_links(opened: Opened, layers: list[list[NDArray[np.float32]]]) -> None:
    opened.page.get_by_role("slider", name="Links above").fill("0.6")
    panel(opened).get_by_role("combobox", name="Head").select_option(index=3)
    for source, target in [(3, 20), (5, 31), (30, 33)]:
        set_ends(opened, source, target)
        opened.page.wait_for_function("!document.querySelector('.found.whole').textContent.includes('Reading')")
        assert count(opened, "whole") == graph.steps([matrix[2] for matrix in layers[0]], source, target, 0.6)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(browser: Any, page_path: Path, scheme: str) -> None:
    opened = Opened(browser, page_path, size=PHONE, scheme=scheme, ready=READY)
    opened.page.locator("canvas.graph").first.scroll_into_view_if_needed()
    opened.page.locator(".found.whole", has_text="mixer").first.wait_for()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    opened.page.get_by_role("slider", name="First position").first.fill(str(TIME - 16))  # 16 positions have room
    opened.page.evaluate(f"page.choice.set({{ source: {TIME - 16}, target: {TIME - 1} }})")
    opened.page.locator(".found.seen", has_text="at the fewest").first.wait_for()
    opened.page.close()
    assert opened.complaints == []
