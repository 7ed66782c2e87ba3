"""The report of a comparison in a real browser: it opens without a network, draws, and reacts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from browser import LAPTOP, PHONE, Opened, needs_browser
from compare_sample import sample_results

from seqmix.compare.report import write_report
from seqmix.compare.results import Results, new_contender
from seqmix.errors import SeqmixError


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(sample_results(), path)
    return path


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
class TestInABrowser:
    pytestmark = needs_browser

    def test_opens_draws_and_stays_quiet(self, browser: Any, report: Path, size: tuple[int, int], scheme: str) -> None:
        opened = Opened(browser, report, size=size, scheme=scheme, ready="#figure-position .main-svg")
        page = opened.page
        for name in ("quality", "training", "serving", "position"):
            assert page.locator(f"#figure-{name} .scatterlayer .trace").count() >= 5, name
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert "is best with" in page.locator("ul.verdict li").first.inner_text()
        images = page.locator(".heads img")
        assert images.count() >= 5
        assert all(images.nth(index).evaluate("image => image.naturalWidth") > 0 for index in range(images.count()))
        assert opened.complaints == []
        page.close()

    def test_choices_redraw_the_true_numbers(
        self, browser: Any, report: Path, size: tuple[int, int], scheme: str
    ) -> None:
        opened = Opened(browser, report, size=size, scheme=scheme, ready="#figure-position .main-svg")
        page = opened.page
        results = sample_results()
        first = results["contenders"][0]
        page.get_by_role("button", name="state", exact=True).click()
        drawn = page.evaluate("document.getElementById('figure-serving').data[0]")
        assert dict(zip(map(str, drawn["x"]), drawn["y"], strict=True)) == first["state_bytes"]
        page.get_by_role("button", name="training loss").click()
        page.get_by_role("button", name="seconds").click()
        page.get_by_role("button", name="log", exact=True).click()
        curve = page.evaluate("document.getElementById('figure-training').data[0]")
        assert first["curve"] is not None
        assert curve["x"] == first["curve"]["seconds"]
        assert page.evaluate("document.getElementById('figure-training').layout.xaxis.type") == "log"
        page.get_by_text("Gradient norm by depth").click()
        page.wait_for_function("document.querySelector('#figure-gradients .main-svg').clientWidth > 200")
        assert opened.complaints == []
        page.close()


def test_texts_are_escaped(tmp_path: Path) -> None:
    results = sample_results()
    results["corpus"]["name"] = "<script>alert(1)</script>"
    results["verdict"][0] = "a < b & c"
    results["contenders"][0]["model"] = results["models"][0]["model"]
    write_report(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "a &lt; b &amp; c" in page


def test_the_embedded_numbers_are_those_of_the_results(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    embedded = json.loads(found[1])
    expected = sample_results()["contenders"]
    assert [one["bits_per_byte"] for one in embedded["contenders"]] == [one["bits_per_byte"] for one in expected]


def test_a_report_of_unfinished_contenders_is_written(tmp_path: Path) -> None:
    results: Results = sample_results()
    results["contenders"] = [new_contender(entry["model"], 0, "runs/x") for entry in results["models"]]
    for entry in results["models"]:
        entry.update(finished=0, bits_per_byte=None, lowest=None, highest=None)
    results.update(comparisons=[], crossovers=[], not_matched=[], verdict=["No contender finished."])
    write_report(results, tmp_path / "report.html")
    assert "No contender finished." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(SeqmixError, match="is full"):
        write_report(sample_results(), path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["report.html"]
