"""`seqmix inspect`: the page it writes, and what it says when it cannot."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from seqmix.cli.main import main
from seqmix.inspection.page.payload import BYTES_A_MODEL

SMALL = ("--params", "8k", "--tokens", "24", "--threads", "1")


def embedded(page: Path) -> dict[str, Any]:
    """The numbers in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_page_of_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    command = ["inspect", "transformer", "--against", "gated_conv", "--text", "a <b> & c", *SMALL, "--out", str(page)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert str(page) in printed.err
    data = embedded(page)
    assert [model["name"] for model in data["models"]] == ["transformer", "gated_conv"]
    assert data["texts"][0]["tokens"] == ["<|end|>", "a", " ", "<", "b", ">", " ", "&", " ", "c"]
    assert len(data["texts"]) == 2
    transformer, gated_conv = data["models"]
    assert [mixer["name"] for mixer in gated_conv["mixers"]] == ["gated_conv"] * gated_conv["layers"]
    assert transformer["mixers"][0]["fixed"] is False
    assert gated_conv["mixers"][0]["fixed"] is True
    # A matrix that is the same for every input is held once for both texts.
    assert len(set(gated_conv["mixers"][0]["blocks"])) == 1
    assert len(set(transformer["mixers"][0]["blocks"])) == 2
    for key in ("receptive_field", "context", "costs", "rollout"):
        assert all(model[key] for model in data["models"]), key
    assert any("state" in sentence for sentence in data["crossovers"])
    text = page.read_text("utf-8")
    assert "<b>" not in text.split("<body>")[1]
    assert not re.search(r'(src|href)="(https?:)?//', text)


def test_json_is_one_document_and_the_page_is_written_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", "gated_conv", "--text", "abc", *SMALL, "--json", "--out", str(page)]) == 0
    assert json.loads(capsys.readouterr().out) == embedded(page)


def test_a_long_text_is_cut_with_a_note(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", "gated_conv", "--text", "x" * 100, *SMALL, "--out", str(page)]) == 0
    text = embedded(page)["texts"][0]
    assert (len(text["tokens"]), text["cut_from"]) == (24, 101)


def test_many_heads_are_shown_in_part(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ["gated_conv:hidden_size=96:num_hidden_layers=1", "--text", "abc", "--out", str(page)]
    assert main(["inspect", *options]) == 0
    mixer = embedded(page)["models"][0]["mixers"][0]
    assert mixer["heads"] == 96
    assert len(mixer["shown"]) == len(mixer["structure"][0]) == 32
    assert (mixer["shown"][0], mixer["shown"][-1]) == (0, 95)
    spans = embedded(page)["models"][0]["receptive_field"]["layers"][0]["heads"]
    assert [one["head"] for one in spans] == mixer["shown"]
    blocks = embedded(page)["blocks"]
    assert blocks[mixer["blocks"][0]]["heads"] == 32


def test_what_does_not_fit_is_left_out_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqmix.inspection.page.payload.BYTES_A_MODEL", 9_000)
    page = tmp_path / "page.html"
    options = ["transformer:hidden_size=64:num_hidden_layers=2", "--text", "x" * 60, "--out", str(page)]
    assert main(["inspect", *options]) == 0
    data = embedded(page)
    shown = data["models"][0]["mixers"][0]["shown"]
    assert shown is not None
    packed = re.findall(r'<script type="text/plain" id="block-[^"]*">([^<]*)</script>', page.read_text("utf-8"))
    # At least one head of every layer stays, so that the room may be passed by a little.
    assert sum(map(len, packed)) < 2 * 9_000 < BYTES_A_MODEL


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runs/none"], "there is no run in 'runs/none'"),
        (["gated_conv", "--text", "a", "--data", "python-stdlib"], "leave one of the two out"),
        (["gated_conv", "--text", ""], "the text is empty: give at least one character"),
        (["gated_conv", "--tokens", "1"], "tokens is 1: at least 2 are needed"),
        (["gated_conv", "--heads", "0"], "heads is 0: it must be at least 1"),
        (["gated_conv", "--threads", "0"], "threads is 0: it must be at least 1"),
        (["gated_conv", "--out", "no/such/folder/page.html"], "there is no folder 'no/such/folder'"),
        (["gated_conv", "--out", "."], "is a folder: give the name of the page"),
        (["gated_conv", "--live", "--json"], "leave one out"),
        (["gated_conv", "--params", "many"], "many"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *arguments]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert len(message.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
