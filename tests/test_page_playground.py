"""The playground in a browser: presets, fields, pictures, costs and crossovers, held to the mixers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import LAPTOP, PHONE, Opened, needs_browser
from page_modules import write_page
from playwright.sync_api import expect

import seqmix
from seqmix.models import reach

pytestmark = needs_browser

BODY = """<main><section><h2>Playground</h2><div id="root"></div></section></main>
<script type="module">
  import { mount } from "page/playground";
  mount(document.getElementById("root"), { data: { models: [] } });
  requestAnimationFrame(() => requestAnimationFrame(() => { document.documentElement.dataset.ready = "true"; }));
</script>"""

PRESETS = [
    "two_of_three", "kernel_five", "window_five", "bytenet", "wavenet", "convsamba", "strided", "bigbird", "longformer",
    "dilated_window", "mistral", "both_ways", "full", "global", "lstm", "mamba2",
]  # fmt: skip
FIELDS = {
    "two_of_three": 5, "kernel_five": 5, "window_five": 5, "bytenet": 63, "wavenet": 1024,
    "convsamba": 1 + 6 * 31 * 256, "strided": 31, "dilated_window": 46,
    "mistral": 131041, "both_ways": 17, "global": 1024,
}  # fmt: skip


class Playground:
    """A playground that is open in a browser."""

    def __init__(self, browser: Any, path: Path, **how: Any) -> None:
        self.opened = Opened(browser, path, ready="html[data-ready]", **how)
        self.page = self.opened.page
        self.page.set_default_timeout(5000)

    def panel(self, index: int = 0) -> Any:
        return self.page.locator(".scheme").nth(index)

    def fact(self, name: str, index: int = 0) -> str:
        """What a panel says, once everything asked for is drawn."""
        self.settle()
        return str(self.panel(index).locator(f"[data-fact={name}]").inner_text())

    def settle(self) -> None:
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_role("combobox", name=label, exact=True).select_option(label=option)

    def set(self, label: str, value: int, index: int | None = 0) -> None:
        root = self.page if index is None else self.panel(index)
        root.get_by_label(f"{label}, exactly", exact=True).fill(str(value))

    def pick(self, preset: str, index: int = 0) -> None:
        label = self.page.evaluate("async (name) => (await import('page/presets')).SCHEMES[name].label", preset)
        self.choose(("First scheme", "Second scheme")[index], label)

    def field(self, index: int = 0) -> str:
        self.settle()
        return str(self.panel(index).locator("[data-fact=field] strong").inner_text())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("playground") / "playground.html", body=BODY)


@pytest.fixture
def playground(browser: Any, path: Path) -> Iterator[Playground]:
    opened = Playground(browser, path)
    yield opened
    assert opened.opened.complaints == []
    opened.page.close()


def mixers_of(page: Any, preset: str, width: int = 64) -> list[seqmix.Mixer]:
    """The layers of a preset as the library builds them."""
    layers = page.evaluate(
        """async ([name, width]) => {
          const [{ SCHEMES }, rules, { libraryOptions }] =
            await Promise.all(["page/presets", "page/rules", "page/schemes"].map((from) => import(from)));
          return rules.stackOf(rules.withDefaults(SCHEMES[name].settings), width).layers.map(libraryOptions);
        }""",
        [preset, width],
    )
    mixers = []
    for layer in layers:
        if isinstance(layer.get("dilation"), list):
            layer["dilation"] = tuple(layer["dilation"])
        mixers.append(seqmix.create_mixer(layer.pop("name"), width, **layer))
    return mixers


def span_of_links(mixers: list[seqmix.Mixer], length: int) -> int:
    """The widest span of inputs that reach an output through the links alone, layer by layer."""
    reached = torch.eye(length)
    for mixer in mixers:
        reached = mixer.links(reached.shape[0]).float() @ reached
    seen = [row.nonzero()[:, 0] for row in reached]
    return max(int(row.max() - row.min()) + 1 for row in seen)


def test_the_presets_are_all_tested(playground: Playground) -> None:
    assert playground.page.evaluate("async () => Object.keys((await import('page/presets')).SCHEMES)") == PRESETS


def test_every_preset_states_the_field_of_the_library(playground: Playground) -> None:
    for preset in PRESETS:
        playground.pick(preset)
        stated = playground.field()
        mixers = mixers_of(playground.page, preset)
        if preset == "strided":
            expected: int | None = span_of_links(mixers, 256)
        else:
            expected = reach.receptive_field(mixers)
        assert expected == FIELDS.get(preset), preset
        if expected is not None:
            assert stated == f"{expected:,}", preset
            assert playground.fact("field").startswith(f"{expected:,} = 1 + Σ")
        else:
            sees_all = any(mixer.sees_everything for mixer in mixers)
            assert stated == ("every earlier position" if sees_all else "no bound"), preset
        counted = playground.panel().locator("[data-fact=counted]")
        whole = preset in (
            "two_of_three",
            "kernel_five",
            "window_five",
            "bytenet",
            "dilated_window",
            "both_ways",
            "strided",
        )
        assert counted.get_attribute("data-agrees") == ("true" if whole else "null"), preset
        assert ("too few to show" in counted.inner_text()) == (expected is not None and not whole), preset


def test_the_positions_seen_are_the_librarys(playground: Playground) -> None:
    for preset in ("bytenet", "dilated_window", "mistral", "convsamba"):
        playground.pick(preset)
        seen, field = reach.positions_seen(mixers_of(playground.page, preset)), FIELDS[preset]
        playground.page.wait_for_function(
            "text => document.querySelector('[data-fact=seen]').textContent.startsWith(text)",
            arg=f"{seen:,} of {field:,}",
        )
    assert "skipped" in playground.fact("seen")


def test_a_slider_moves_the_field_and_the_links(playground: Playground) -> None:
    playground.choose("Begin with", "Dilation and depth beside one global hop")
    assert playground.fact("field") == "63 = 1 + Σ (K − 1) · d = 1 + 2 · 1 + 2 · 2 + 2 · 4 + 2 · 8 + 2 · 16"
    assert playground.fact("counted") == "63 positions from the first to the last reached, as the formula says"
    kernel = playground.panel().get_by_role("slider", name="Kernel", exact=True)
    kernel.focus()
    kernel.press("ArrowRight")
    assert playground.field() == "94"
    assert kernel.get_attribute("aria-valuetext") == "4"
    assert "too few to show the field of 94" in playground.fact("counted")
    playground.set("Positions drawn", 100, index=None)
    assert playground.fact("counted") == "94 positions from the first to the last reached, as the formula says"
    kernel.press("Home")
    assert playground.field() == "1"
    assert playground.page.get_by_role("combobox", name="First scheme", exact=True).evaluate(
        "(box) => box.selectedOptions[0].text"
    ) == ("A scheme of your own")


def test_growing_dilations_and_lists(playground: Playground) -> None:
    playground.pick("two_of_three")
    playground.set("Layers", 6)
    playground.set("Dilation × by layer", 3)
    assert playground.field() == str(1 + 2 * sum(3**i for i in range(6)))
    playground.set("Begin again after (0: never)", 2)
    assert playground.field() == str(1 + 2 * 3 * (1 + 3))
    playground.panel().get_by_label("Dilations by layer").fill("1, 10")
    assert playground.field() == str(1 + 2 * 3 * 11)
    playground.panel().get_by_label("Dilations by layer").fill("1, x")
    assert playground.field() == "25"
    assert "whole numbers" in playground.panel().locator("p[role=status]").inner_text()


def test_a_number_that_cannot_be_leaves_all_as_it_was(playground: Playground) -> None:
    playground.pick("two_of_three")
    box = playground.panel().get_by_label("Kernel, exactly", exact=True)
    for bad in ("0", "", "2.5", "100000"):
        box.fill(bad)
        assert box.get_attribute("aria-invalid") == "true"
        assert playground.field() == "5"
    box.blur()
    assert (box.input_value(), box.get_attribute("aria-invalid")) == ("3", "false")


def test_layers_until_the_first_token_reaches_the_last(playground: Playground) -> None:
    playground.set("Sequence length", 1000, index=None)
    playground.pick("window_five")
    assert playground.fact("needed") == "250 layers"
    assert playground.fact("path") == "none: the stack does not span 1,000 tokens"
    playground.set("Dilation", 2)
    assert playground.fact("needed") == "125 would span 1,000 tokens, but skip the first one, as a few more do"
    playground.set("Window", 1)
    assert playground.fact("needed") == "never, however many layers"
    playground.pick("bytenet")
    # 62 positions a turn of five layers: 16 turns are 992, and the next three layers add 14.
    assert playground.fact("needed") == "83 layers"
    playground.pick("full")
    assert (playground.fact("needed"), playground.fact("path")) == ("1 layer", "1 layer")
    playground.pick("mistral")
    assert (playground.fact("needed"), playground.fact("path")) == ("9 layers", "9 layers, by their spans")
    playground.pick("bigbird")
    assert playground.fact("needed") == "1 layer"


def test_the_matrix_shows_the_links_of_the_library(playground: Playground) -> None:
    playground.pick("bigbird")
    playground.settle()
    (mixer, _) = mixers_of(playground.page, "bigbird", 512)
    links = mixer.links(64)
    shown = playground.page.evaluate(
        """() => {
          const canvas = document.querySelector("canvas.cells"), context = canvas.getContext("2d");
          const { width, data } = context.getImageData(0, 0, canvas.width, canvas.height), colors = [];
          const middle = (cell) => Math.floor(((cell + 0.5) * width) / 64);
          for (let t = 0; t < 63; t++) for (let s = 0; s < 64; s++) {
            const at = 4 * (middle(t) * width + middle(s));
            colors.push([...data.slice(at, at + 3)].join());
          }
          return colors;
        }"""
    )
    assert shown == ["8,48,107" if link else "255,255,255" for link in links[:63].flatten().tolist()]
    assert f"{int(links.sum()):,} links" in playground.panel().locator("canvas.cells").get_attribute("aria-label")


def test_a_click_and_a_key_choose_the_output(playground: Playground) -> None:
    playground.pick("two_of_three")
    playground.settle()
    graph = playground.panel().locator("canvas.stack")
    assert "output 15 is reached by 5" in graph.get_attribute("aria-label")
    graph.click(position={"x": 14, "y": 20})
    playground.settle()
    assert "output 0 is reached by 1 of" in graph.get_attribute("aria-label")
    slider = playground.panel().get_by_label("Output whose cone is lit")
    slider.focus()
    slider.press("ArrowRight")
    playground.settle()
    assert "output 1 is reached by 2 of" in graph.get_attribute("aria-label")
    assert "too few to show" in playground.fact("counted")


def first_length(smaller: seqmix.Mixer, other: seqmix.Mixer, quantity: Any, low: int, high: int) -> int:
    """The first length from which on one mixer has less, by bisection between two at which that changes."""
    assert quantity(smaller, low) >= quantity(other, low)
    while high - low > 1:
        middle = (low + high) // 2
        if quantity(smaller, middle) < quantity(other, middle):
            high = middle
        else:
            low = middle
    return high


def test_crossovers_are_where_the_costs_of_the_library_cross(playground: Playground) -> None:
    playground.choose("Begin with", "What attention keeps beside what a recurrence keeps")
    (attention,), (mamba2,) = (mixers_of(playground.page, name, 512) for name in ("full", "mamba2"))
    quantities = {
        "FLOPs a token, whole sequence": lambda mixer, n: mixer.cost(1, n).flops / n,
        "FLOPs of the next token": lambda mixer, n: mixer.step_cost(1, n - 1).flops,
        "State while decoding": lambda mixer, n: mixer.cost(1, n).state_bytes,
    }
    expect(playground.page.locator(".playground .crossovers li")).to_have_text(
        [
            f"{name}: less with Full attention at 16 tokens; from {length:,} tokens on less with Mamba-2."
            for name, quantity in quantities.items()
            for length in [first_length(mamba2, attention, quantity, 16, 65536)]
        ]
    )


def test_the_costs_at_a_length_are_the_librarys(playground: Playground) -> None:
    playground.choose("Begin with", "Window and depth beside BigBird")
    playground.set("Sequence length", 777, index=None)
    expect(playground.page.locator(".playground caption")).to_have_text("At 777 tokens")
    for index, preset in enumerate(("longformer", "bigbird")):
        mixers = mixers_of(playground.page, preset, 512)
        cells = playground.page.locator(".playground tbody tr").nth(index)
        parameters = cells.locator("[data-cost=parameters]").get_attribute("title")
        assert parameters == f"{sum(mixer.num_parameters for mixer in mixers):,}"
        state = sum(mixer.cost(1, 777).state_bytes for mixer in mixers)
        assert cells.locator("[data-cost=state]").inner_text() == playground.page.evaluate(
            "async (value) => (await import('page/dom')).bytes(value)", state
        )


def test_a_scheme_that_looks_ahead_has_no_state(playground: Playground) -> None:
    playground.pick("both_ways")
    playground.page.get_by_role("button", name="State while decoding").click()
    expect(playground.page.locator(".playground")).to_contain_text("Window of 3 both ways looks ahead")
    expect(playground.page.locator("[data-cost=state]").first).to_have_text("–")
    expect(playground.page.locator(".playground .crossovers li")).to_have_count(1)


def test_one_scheme_alone(playground: Playground) -> None:
    playground.choose("Beside it", "nothing")
    expect(playground.page.locator(".scheme")).to_have_count(1)
    expect(playground.page.locator(".playground tbody tr")).to_have_count(1)
    expect(playground.page.locator(".playground .crossovers li")).to_have_count(0)
    playground.choose("Beside it", "a second scheme")
    assert playground.field(1) == "5"


def test_the_library_reads_what_is_shown(playground: Playground) -> None:
    playground.pick("mistral")
    options = json.loads(playground.fact("library"))
    assert options == {"name": "attention", "heads": 32, "causal": True, "kv_heads": 8, "window": 4096}


@pytest.mark.parametrize(("size", "scheme"), [(LAPTOP, "light"), (PHONE, "dark")])
def test_everything_has_a_name_and_nothing_runs_over(browser: Any, path: Path, size: Any, scheme: str) -> None:
    playground = Playground(browser, path, size=size, scheme=scheme)
    for preset in ("bigbird", "convsamba"):
        playground.pick(preset)
        playground.settle()
        assert playground.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    nameless = playground.page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, canvas")].filter((node) =>
          !node.getAttribute("aria-label") && !node.closest("label")?.textContent.trim() && !node.textContent.trim()
        ).map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert playground.opened.complaints == []
    playground.page.close()


def test_a_redraw_is_measured(playground: Playground) -> None:
    """The numbers are for whoever reads the output of pytest -s."""
    playground.set("Positions drawn", 512, index=None)
    for preset in ("bytenet", "convsamba", "bigbird", "full"):
        playground.pick(preset)
        playground.settle()
        playground.set("Positions drawn", 512, index=None)
        playground.settle()
        playground.set("Layers", 16)
        playground.settle()
        spent = playground.page.evaluate("performance.getEntriesByName('playground').at(-1).duration")
        assert spent > 0
        print(f"redraw of {preset}, 16 layers, 512 positions: {spent:.1f} ms")
