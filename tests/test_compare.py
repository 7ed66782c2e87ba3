"""Whole comparisons of tiny models: what comes out, and that nothing is lost when something goes wrong."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqmix.compare.results import Results, read_results, write_results
from seqmix.compare.run import run_comparison
from seqmix.compare.settings import CompareSettings
from seqmix.errors import InputError
from seqmix.training import read_metrics

MODELS = ("transformer", "gated_conv")


class Watcher:
    """A display that keeps the messages and calls a function at each update."""

    def __init__(self, on_update: Callable[[str, str], None] | None = None) -> None:
        self.messages: list[str] = []
        self.labels: list[str] = []
        self.shares: list[float] = []
        self._on_update = on_update

    def update(self, share: float, note: str = "", time_left: float | None = None, label: str | None = None) -> None:
        self.shares.append(share)
        if label is not None:
            self.labels.append(label)
        if self._on_update is not None:
            self._on_update(self.labels[-1], note)

    def message(self, text: str) -> None:
        self.messages.append(text)


def make(text: Path, /, **changes: Any) -> CompareSettings:
    defaults: dict[str, Any] = {
        "data": str(text),
        "models": MODELS,
        "params": "20k",
        "context": 32,
        "batch_size": 4,
        "budget": "tokens=3k",
        "evaluate_tokens": 1000,
        "speed_seconds": 0.2,
        "threads": 1,
        "device": "cpu",
        "price": 0.5,
    }
    return CompareSettings(**{**defaults, **changes})


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number in range(12):
        lines = [f"line {line} of part {number} says {'abcdefgh'[(line * number) % 8] * 3}." for line in range(80)]
        (folder / f"part{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results, Watcher]:
    folder = tmp_path_factory.mktemp("compare") / "out"
    watcher = Watcher()
    results = run_comparison(make(text, seeds=2, tune=2), folder, watcher)
    return folder, results, watcher


def test_every_field_of_a_contender_is_measured(finished: tuple[Path, Results, Watcher]) -> None:
    folder, results, _ = finished
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["status"] == "finished"
    order = [(contender["model"], contender["seed"]) for contender in results["contenders"]]
    assert order == [("transformer", 0), ("gated_conv", 0), ("transformer", 1), ("gated_conv", 1)]
    for contender in results["contenders"]:
        assert contender["status"] == "finished"
        unknown = {field for field, value in contender.items() if value is None}
        may_be_unknown = {"error", "receptive_field", "positions_seen", "path_length"}
        of_tasks = {"accuracy", "best_accuracy", "example_accuracy"}
        assert of_tasks <= unknown <= may_be_unknown | of_tasks
        assert contender["parameters"] == pytest.approx(20_000, rel=0.02)
        assert contender["tokens"] == 24 * 128
        assert contender["train_flops"] == pytest.approx(3 * contender["flops_per_token"] * contender["tokens"])  # type: ignore[operator]
        assert contender["train_money"] == pytest.approx(contender["train_seconds"] / 3600 * 0.5)  # type: ignore[operator]
        assert contender["bits_per_byte"] == contender["evaluations"]["bits_per_byte"][-1]  # type: ignore[index]
        assert contender["best_bits_per_byte"] == min(contender["evaluations"]["bits_per_byte"])  # type: ignore[index]
        assert contender["curve"]["tokens"][-1] == contender["tokens"]  # type: ignore[index]
        assert len({len(values) for values in contender["curve"].values()}) == 1  # type: ignore[union-attr, arg-type]
        assert len(contender["gradient_norm_by_depth"]) == contender["depth"]
        assert contender["matrix_images"]
        assert all(base64.b64decode(image["png"]).startswith(b"\x89PNG") for image in contender["matrix_images"])
        assert "32" in contender["decode_tokens_per_second"]
        for context, speed in contender["decode_tokens_per_second"].items():
            price = contender["decode_money_per_million_tokens"][context]
            assert price == pytest.approx(1e6 / speed / 3600 * 0.5)


def test_what_follows_is_derived(finished: tuple[Path, Results, Watcher]) -> None:
    _, results, _ = finished
    assert results["matched"]["spread"] is not None
    assert results["matched"]["spread"] <= 0.02
    (comparison,) = results["comparisons"]
    assert comparison["seeds"] == 2
    assert comparison["low"] is not None
    assert comparison["low"] < comparison["difference"] < comparison["high"]  # type: ignore[operator]
    assert any(crossover["quantity"] == "state_bytes" for crossover in results["crossovers"])
    assert results["verdict"][0].startswith("At equal parameters (20.0k) and a budget of tokens=3k, ")
    assert results["command"].startswith("seqmix compare --data ")
    assert results["environment"]["threads"] == 1


def test_each_model_has_the_same_trials_and_the_best_rate_is_used(finished: tuple[Path, Results, Watcher]) -> None:
    _, results, _ = finished
    for model in MODELS:
        trials = [trial for trial in results["tuning"] if trial["model"] == model]
        assert len(trials) == 2
        assert trials[1]["learning_rate"] == pytest.approx(2 * trials[0]["learning_rate"], rel=1e-3)
        (chosen,) = [trial for trial in trials if trial["chosen"]]
        assert chosen["bits_per_byte"] == min(trial["bits_per_byte"] or 9 for trial in trials)
        rates = {c["learning_rate"] for c in results["contenders"] if c["model"] == model}
        assert rates == {chosen["learning_rate"]}


def test_all_models_read_the_same_stream(finished: tuple[Path, Results, Watcher]) -> None:
    folder, results, _ = finished
    stored = [
        json.loads((folder / contender["folder"] / "settings.json").read_text()) for contender in results["contenders"]
    ]
    assert len({one["corpus"]["fingerprint"] for one in stored}) == 1
    # The order of the text is drawn from the seed alone, and both models of a seed have it.
    assert [one["settings"]["seed"] for one in stored] == [0, 0, 1, 1]


def test_progress_rises_to_the_end(finished: tuple[Path, Results, Watcher]) -> None:
    _, _, watcher = finished
    assert watcher.shares == sorted(watcher.shares)
    assert 0.5 < watcher.shares[-1] <= 1


def test_a_finished_comparison_is_only_read(finished: tuple[Path, Results, Watcher], text: Path) -> None:
    folder, results, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run_comparison(make(text, seeds=2, tune=2), folder, Watcher()) == results
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_settings_are_refused(finished: tuple[Path, Results, Watcher], text: Path) -> None:
    folder, _, _ = finished
    with pytest.raises(InputError, match=r"holds a comparison with budget 'tokens=3k', not 'tokens=4k'"):
        run_comparison(make(text, seeds=2, tune=2, budget="tokens=4k"), folder, Watcher())


def test_a_folder_of_other_things_is_refused(text: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(InputError, match="holds files that are not a comparison"):
        run_comparison(make(text), tmp_path, Watcher())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"context": 100_000}, "too few for a context of 100000"),
        ({"params": "20"}, "cannot be made with 20"),
        ({"data": "nowhere.txt"}, "nowhere.txt"),
        ({"device": "abacus"}, "abacus"),
        ({"precision": "float3"}, "float3"),
    ],
)
def test_bad_input_leaves_no_folder(text: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run_comparison(make(text, **changes), tmp_path / "out", Watcher())
    assert not (tmp_path / "out").exists()


def process_of(folder: Path, name: str) -> int:
    """The process that trains a contender, from its log."""
    found = re.findall(r"process (\d+)", (folder / "logs" / f"{name}.txt").read_text())
    return int(found[-1])


def test_a_killed_contender_has_failed_and_the_rest_go_on(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def kill_first(label: str, note: str) -> None:
        if label == "transformer, seed 0" and "loss" in note:
            os.kill(process_of(folder, "transformer-0"), signal.SIGKILL)

    watcher = Watcher(kill_first)
    results = run_comparison(make(text, budget="tokens=20k", models=MODELS), folder, watcher)
    first, second = results["contenders"]
    assert (first["status"], second["status"]) == ("failed", "finished")
    assert first["error"] == (
        "its process was killed by signal 9 (SIGKILL), probably because memory ran out: try a smaller --batch-size"
    )
    assert f"transformer with seed 0 failed: {first['error']}" in results["verdict"]
    assert results["verdict"][0].startswith("gated_conv is the only model that finished: ")
    assert results["status"] == "finished"


def test_an_interrupted_contender_goes_on_from_its_checkpoint(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    settings = make(text, models=("gated_conv",), budget="tokens=40k")

    def interrupt(label: str, note: str) -> None:
        if "loss" in note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_comparison(settings, folder, Watcher(interrupt))
    stopped = read_results(folder)
    assert stopped is not None
    assert stopped["status"] == stopped["contenders"][0]["status"] == "interrupted"
    results = run_comparison(settings, folder, Watcher())
    assert results["status"] == "finished"
    metrics = folder / results["contenders"][0]["folder"] / "metrics.jsonl"
    (resumed,) = read_metrics(metrics, "resume")
    assert 0 < resumed["step"] < 40_000 / 128
    assert [record["step"] for record in read_metrics(metrics, "step")] == list(range(1, 314))


def test_a_killed_comparison_continues_and_trains_nothing_twice(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    settings = make(text, models=(*MODELS, "convsamba"), budget="tokens=6k")
    words = ["--price", "0.5", "--params", "20k", "--context", "32", "--batch-size", "4", "--budget", "tokens=6k"]
    words += ["--evaluate-tokens", "1000", "--speed-seconds", "0.2", "--threads", "1", "--device", "cpu"]
    command = [sys.executable, "-m", "seqmix", "compare", "--data", str(text), "--models", ",".join(settings.models)]
    with subprocess.Popen([*command, *words, "--out", str(folder)], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            stored = read_results(folder) if folder.exists() else None
            if stored is not None and stored["contenders"][0]["status"] == "finished":
                break
            time.sleep(0.02)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        process.kill()
    first = folder / "runs" / "transformer-0" / "model.safetensors"
    written = first.stat().st_mtime_ns
    watcher = Watcher()
    results = run_comparison(settings, folder, watcher)
    assert results["status"] == "finished"
    assert {contender["status"] for contender in results["contenders"]} == {"finished"}
    assert first.stat().st_mtime_ns == written
    assert any("continuing in" in message for message in watcher.messages)
    assert not any(label.startswith("transformer, seed 0") for label in watcher.labels)


def test_results_are_whole_or_the_old_ones(tmp_path: Path, finished: tuple[Path, Results, Watcher]) -> None:
    _, results, _ = finished
    write_results(tmp_path, results)
    broken: Any = {**results, "verdict": [object()]}
    with pytest.raises(TypeError):
        write_results(tmp_path, broken)
    assert read_results(tmp_path) == results
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="has format 99, this seqmix reads 1"):
        read_results(tmp_path)


def test_results_of_an_earlier_version_are_completed(tmp_path: Path, finished: tuple[Path, Results, Watcher]) -> None:
    _, results, _ = finished
    earlier: Any = {**results, "contenders": [dict(one) for one in results["contenders"]]}
    del earlier["contenders"][0]["accuracy_by_distance"]
    write_results(tmp_path, earlier)
    found = read_results(tmp_path)
    assert found is not None
    assert found["contenders"][0]["accuracy_by_distance"] == {}
    assert found["contenders"][0]["model"] == results["contenders"][0]["model"]


def test_settings_are_frozen(text: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(text).seeds = 3  # type: ignore[misc]
