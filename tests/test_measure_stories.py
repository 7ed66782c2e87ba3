"""The tables of the stories: written from the results of comparisons, each with how it was measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from compare_sample import sample_results

from seqmix.compare.results import write_results

SCRIPT = Path(__file__).parents[1] / "docs" / "measure_stories.py"


@pytest.fixture(scope="module")
def stories() -> ModuleType:
    """docs/measure_stories.py, which is no part of the package."""
    found = importlib.util.spec_from_file_location("measure_stories", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


def finished(runs: Path, stories: ModuleType, story: str) -> list[Any]:
    results = sample_results()
    results["status"] = "finished"
    mine = [one for one in stories.MEASURED if one.story == story]
    for one in mine:
        (runs / one.name).mkdir(parents=True)
        write_results(runs / one.name, results)
    return mine


def test_a_story_has_the_numbers_of_its_comparisons(
    stories: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stories, "TABLES", tmp_path / "tables")
    mine = finished(tmp_path / "runs", stories, "window_and_kernel")
    stories.write_story("window_and_kernel", tmp_path / "runs")
    text = (tmp_path / "tables" / "window_and_kernel.md").read_text(encoding="utf-8")
    results = sample_results()
    for one in mine:
        assert f"### {one.title}" in text
    for entry in results["models"]:
        assert f"| `{entry['model']}` |" in text
        assert f"| {entry['bits_per_byte']:.3f} |" in text
    first = results["contenders"][0]
    assert f"{first['parameters']:,}" in text
    assert "seqmix compare --models 'mixer:attention:pattern=window(16)" in text
    assert results["environment"]["hardware"]["processor"] in text
    # Rows are as wide as their heading.
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {11}


def test_an_unfinished_story_keeps_its_tables(
    stories: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stories, "TABLES", tmp_path / "tables")
    mine = finished(tmp_path / "runs", stories, "window_and_kernel")
    path = tmp_path / "runs" / mine[1].name / "results.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, "status": "running"}), encoding="utf-8")
    stories.write_story("window_and_kernel", tmp_path / "runs")
    assert not (tmp_path / "tables").exists()
    assert f"{mine[1].name} is not finished" in capsys.readouterr().err


def test_every_story_that_asks_for_tables_has_a_measurement(stories: ModuleType) -> None:
    pages = (SCRIPT.parent / "stories").glob("*.md")
    asked = {page.stem for page in pages if "```{measured}" in page.read_text(encoding="utf-8")}
    assert asked == {one.story for one in stories.MEASURED}
