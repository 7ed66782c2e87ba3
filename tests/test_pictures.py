"""The pictures of the documentation: one of every mixer, small, with true numbers, the same bytes when drawn again."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from seqmix import create_mixer, list_mixers
from seqmix.properties import mixer_of_length

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "pictures"
MIXERS: dict[str, Any] = json.loads((FOLDER / "mixers.json").read_text(encoding="utf-8"))
STORIES: dict[str, Any] = json.loads((FOLDER / "stories.json").read_text(encoding="utf-8"))


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    import make_pictures

    return make_pictures


def built_in() -> list[str]:
    """Without the mixers that other tests register."""
    return [name for name in list_mixers() if type(create_mixer(name, 64)).__module__.startswith("seqmix.")]


def test_every_mixer_and_every_story_has_a_picture_and_no_more() -> None:
    assert sorted(MIXERS) == built_in()
    assert {path.stem for path in FOLDER.glob("*.png")} == {*MIXERS, *STORIES}
    assert len(STORIES) == 4


def test_pictures_are_light() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_500_000
    for name in MIXERS:
        assert (FOLDER / f"{name}.png").stat().st_size < 40_000


@pytest.mark.parametrize("name", [*MIXERS, *STORIES])
def test_a_picture_is_as_large_as_its_numbers_say_and_has_a_description(name: str) -> None:
    facts = (MIXERS | STORIES)[name]
    with Image.open(FOLDER / f"{name}.png") as picture:
        assert picture.size == (facts["width"], facts["height"])
        assert not {"Software", "date:create"} & picture.info.keys()
    assert facts["alt"].endswith(".")


@pytest.mark.parametrize("name", MIXERS)
def test_the_numbers_beside_a_picture_are_those_of_the_mixer(name: str) -> None:
    facts, mixer = MIXERS[name], create_mixer(name, MIXERS[name]["dim"])
    assert facts["parameters"] == mixer.num_parameters
    assert facts["receptive_field"] == mixer.receptive_field
    assert (facts["fixed"], facts["reach"]) == (not mixer.traits.content_dependent, mixer.traits.reach)
    assert (facts["largest_change_with_the_text"] == 0) == facts["fixed"]
    for length in (256, 4096):
        cost = mixer_of_length(name, facts["dim"], length).cost(1, length)
        # Six digits are kept.
        per_token = cost.product_flops / length
        assert facts["product_flops_per_token"][str(length)] == pytest.approx(per_token, rel=1e-5)
        assert facts["state_bytes"][str(length)] == (cost.state_bytes if mixer.traits.causal else None)


def test_drawn_again_a_picture_is_up_to_date(pictures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_pictures.py", "--check", "--only", "depthwise_conv"])
    assert pictures.main() == 0


def test_the_same_picture_is_the_same_bytes(pictures: ModuleType) -> None:
    maker = pictures.all_makers()["depthwise_conv"]
    first = maker()
    torch.manual_seed(12345)
    assert maker() == first


def test_a_stale_picture_is_told_by_name(
    pictures: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    only = ["make_pictures.py", "--only", "gated_conv"]
    monkeypatch.setattr(sys, "argv", [*only, "--check"])
    assert pictures.main() == 1
    assert "gated_conv.png is missing" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", only)
    assert pictures.main() == 0
    monkeypatch.setattr(sys, "argv", [*only, "--check"])
    assert pictures.main() == 0
    (tmp_path / "gated_conv.png").write_bytes((FOLDER / "dense.png").read_bytes())
    facts = json.loads((tmp_path / "mixers.json").read_text())
    facts["gated_conv"]["parameters"] += 1
    (tmp_path / "mixers.json").write_text(json.dumps(facts))
    assert pictures.main() == 1
    said = capsys.readouterr().err
    assert "gated_conv.png is out of date" in said
    assert "mixers.json is out of date about gated_conv" in said


def test_an_unknown_picture_gets_the_nearest_name(
    pictures: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_pictures.py", "--only", "gated_con"])
    assert pictures.main() == 2
    assert "did you mean 'gated_conv'" in capsys.readouterr().err


def test_rounding_is_no_change_and_a_moved_line_is_one(pictures: ModuleType) -> None:
    def png(pixels: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "png")
        return stream.getvalue()

    white = np.full((50, 50, 3), 250, dtype=np.uint8)
    line = white.copy()
    line[10, 5:45] = 0
    assert pictures.looks_alike(png(white), png(white - 4))
    assert not pictures.looks_alike(png(white), png(line))
    assert not pictures.looks_alike(png(white), png(white[:40]))
    assert pictures.agrees({"a": 1.0, "b": {"c": None}}, {"a": 1.0 + 1e-6, "b": {"c": None}})
    assert not pictures.agrees({"a": 1.0}, {"a": 1.01})
    assert not pictures.agrees({"a": 1}, {"b": 1})


@pytest.mark.slow
def test_all_pictures_are_up_to_date(pictures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_pictures.py", "--check"])
    assert pictures.main() == 0
