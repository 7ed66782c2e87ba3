"""`seqmix bench`: each measurement for real on tiny cases, what is refused, and the fit of exponents."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqmix.bench import floors, kernels, llama_cpp, peers, scaling, train
from seqmix.bench.collect import Case, Watch, collect
from seqmix.bench.contenders import build, parameters_of
from seqmix.bench.decoders import EngineDecoder, GenerateDecoder
from seqmix.bench.exponent import CONSTANT_SHARE, exponent, fit, upper_range
from seqmix.bench.kernels import ConvSize, bench_kernels, parse_size
from seqmix.bench.peak import TrainingSize, training_peak
from seqmix.bench.peak_bytes import peak_bytes
from seqmix.bench.report import footer, tables
from seqmix.bench.run import BenchSettings
from seqmix.bench.scaling import bench_scaling
from seqmix.cli.main import main
from seqmix.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _tiny_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "PRODUCTS", ((64, 64, 64),))
    monkeypatch.setattr(floors, "READ_BYTES", 1 << 20)


class Silent:
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.messages: list[str] = []

    def update(self, share: float, note: str = "", time_left: float | None = None, label: str | None = None) -> None:
        self.shares.append(share)

    def message(self, text: str) -> None:
        self.messages.append(text)


def bench_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The document that `seqmix bench ... --json` prints, run in this process."""
    capsys.readouterr()
    assert main(["bench", *arguments, "--json", "--threads", "1"]) == 0
    return json.loads(capsys.readouterr().out)


def bench(*arguments: str) -> dict[str, Any]:
    """The same from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "seqmix", "bench", *arguments, "--json", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def quartiles_are_ordered(value: dict[str, float]) -> bool:
    return 0 < value["low"] <= value["median"] <= value["high"]


def check_frame(document: dict[str, Any], name: str) -> None:
    """What every document has, and that it can be shown."""
    assert document["bench"] == name
    assert document["complete"]
    assert document["settings"]["threads"] == document["environment"]["threads"] == 1
    assert {"commit", "hardware", "versions", "date"} <= document["environment"].keys()
    for table in tables(document):
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert all(isinstance(cell, str) for row in table.rows for cell in row)
    assert footer(document)


def test_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    document = bench_here(capsys, "kernels", "--sizes", "2x64x16:4:3", "--rounds", "2")
    check_frame(document, "kernels")
    rows = document["rows"]
    assert {row["pass"] for row in rows} == set(kernels.PASSES)
    assert {row["implementation"] for row in rows} >= {"seqmix torch", "torch conv1d"}
    for row in rows:
        assert row["size"] == {"batch": 2, "time": 64, "dim": 16, "kernel": 4, "dilation": 3}
        assert set(row["faster_than"]) == {"torch conv1d"} - {row["implementation"]}
        for field in ("milliseconds", "gflops", "share_of_product", "share_of_read", "share_of_floor"):
            assert quartiles_are_ordered(row[field])
        # The floor is the time of the product's rate plus that of the memory's.
        assert row["share_of_floor"]["median"] > row["share_of_product"]["median"]


TRAIN = ("train", "--models", "gated_conv,hf-llama", "--params", "20k", "--contexts", "32", "--rounds", "1")


def check_train(document: dict[str, Any]) -> None:
    check_frame(document, "train")
    ours, theirs = document["rows"]
    assert (ours["model"], theirs["model"]) == ("gated_conv", "hf-llama")
    for row in (ours, theirs):
        assert row["parameters"] == pytest.approx(20_000, rel=0.02)
        assert row["batch_size"] * row["context"] == 4096
        assert quartiles_are_ordered(row["tokens_per_second"])
    assert set(ours["faster_than"]) == {"hf-llama"}
    assert ours["memory_over"]["hf-llama"] == ours["peak_memory_bytes"] / theirs["peak_memory_bytes"]


def test_train(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Memory is measured in processes of their own, which take seconds each to start.
    monkeypatch.setattr(train, "training_peak", lambda size: 1000 + len(size.model))
    document = bench_here(capsys, *TRAIN)
    check_train(document)
    assert [row["peak_memory_bytes"] for row in document["rows"]] == [1010, 1008]


@pytest.mark.slow
def test_train_with_memory() -> None:
    document = bench(*TRAIN)
    check_train(document)
    for row in document["rows"]:
        # Weights, gradients and the two moments of AdamW.
        assert row["peak_memory_bytes"] > 4 * 4 * row["parameters"]


def test_a_model_without_room_is_left_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "training_peak", lambda size: "there is no room" if size.model == "hf-llama" else 1000)
    document = bench_here(capsys, *TRAIN)
    assert [row["model"] for row in document["rows"]] == ["gated_conv"]
    assert document["left_out"] == [{"what": "hf-llama at context 32", "reason": "there is no room"}]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_a_training_that_needs_more_than_there_is_ends_in_a_sentence() -> None:
    size = TrainingSize(model="transformer", params="100k", vocab_size=258, context=1 << 20, batch_size=64, threads=1)
    assert training_peak(size) == "there is no room for a batch of 64 x 1048576 tokens"


def test_decode(capsys: pytest.CaptureFixture[str]) -> None:
    document = bench_here(
        capsys,
        "decode",
        *("--models", "gated_conv,hf-llama", "--engines", "torch,generate"),
        *("--params", "20k", "--contexts", "16", "--rounds", "1"),
    )
    check_frame(document, "decode")
    found = {(row["kind"], row["model"], row["engine"]): row for row in document["rows"]}
    engines = [("gated_conv", "torch"), ("gated_conv", "generate"), ("hf-llama", "generate")]
    assert set(found) == {(kind, *engine) for kind in ("decode", "prefill") for engine in engines}
    assert set(found["decode", "gated_conv", "torch"]["faster_than"]) == {"generate", "hf-llama"}
    assert set(found["decode", "gated_conv", "generate"]["faster_than"]) == {"hf-llama"}
    assert all(quartiles_are_ordered(row["tokens_per_second"]) for row in document["rows"])


def test_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    document = bench_here(
        capsys, "scaling", "--models", "gated_conv,pool", "--contexts", "16,512,1k,2k", "--rounds", "1"
    )
    check_frame(document, "scaling")
    assert [(row["mixer"], row["kind"]) for row in document["rows"]] == [
        (mixer, kind) for mixer in ("gated_conv", "pool") for kind in ("forward", "forward and backward")
    ]
    for row in document["rows"]:
        assert list(row["milliseconds"]) == list(row["peak_bytes"]) == ["16", "512", "1024", "2048"]
        # What a convolution or a mean allocates is proportional to the positions, exactly once the constant is small.
        assert row["memory"]["value"] == pytest.approx(1, abs=0.1)
        assert row["memory"]["expected"] == pytest.approx(1, abs=0.01)


def test_scaling_of_patterns(capsys: pytest.CaptureFixture[str]) -> None:
    models = "attention,attention:window(16, dilation=2),attention:window(9)|global_(2)"
    document = bench_here(capsys, "scaling", "--models", models, "--contexts", "16,512,1k,2k", "--rounds", "1")
    check_frame(document, "scaling")
    expected = {row["mixer"]: row["time"]["expected"] for row in document["rows"]}
    assert list(expected) == ["attention", "attention:window(16, dilation=2)", "attention:window(9)|global_(2)"]
    full, *sparse = expected.values()
    assert all(value == pytest.approx(1, abs=0.03) for value in sparse)
    assert full > 1.3
    for row in document["rows"][2:]:
        assert row["memory"]["value"] == pytest.approx(1, abs=0.25)


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    document = bench_here(capsys, "--env")
    assert document["threads"] == 1
    assert set(document["peers"]) == {peer.package for peer in peers.PEERS}
    assert "native" in document


def test_ctrl_c_prints_what_was_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checked = kernels._checked

    def interrupted(problem: Any, sides: Any, watch: Watch) -> Any:
        if problem.size.time == 16:
            signal.raise_signal(signal.SIGINT)
        return checked(problem, sides, watch)

    monkeypatch.setattr(kernels, "_checked", interrupted)
    options = ("--sizes", "1x8x4:2,1x16x4:2,1x8x4:3", "--rounds", "1", "--threads", "1", "--json")
    assert main(["bench", "kernels", *options]) == 130
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert {row["size"]["time"] for row in document["rows"]} == {8}
    assert not document["complete"]
    assert "interrupted" in shown.err


def test_an_interrupt_keeps_the_cases_before_it() -> None:
    def interrupted(watch: Watch) -> list[dict[str, Any]]:
        raise KeyboardInterrupt

    display = Silent()
    cases = [Case(label="one", run=lambda watch: [{"value": 1}]), Case(label="two", run=interrupted)]
    document = collect("kernels", cases, display, settings={"threads": 1, "rounds": 1})
    assert document["rows"] == [{"value": 1}]
    assert not document["complete"]
    assert any("interrupted" in message for message in display.messages)


def test_cases_share_the_time_that_is_left() -> None:
    budgets: list[float | None] = []

    def run(watch: Watch) -> list[dict[str, Any]]:
        budgets.append(watch.budget_seconds)
        watch.part(1, 2, "half").show(1.0, "")
        return []

    display = Silent()
    cases = [Case(label="short", run=run), Case(label="long", run=run, weight=3.0)]
    collect("kernels", cases, display, settings={}, budget_seconds=1000.0)
    assert budgets[0] == pytest.approx(250, abs=10)
    assert budgets[1] == pytest.approx(1000, abs=10)
    assert display.shares == sorted(display.shares)
    assert display.shares[-1] == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bench": None}, "no measurement is named"),
        ({"bench": "kernel"}, "did you mean 'kernels'"),
        ({"bench": "kernels", "contexts": (128,)}, "--contexts 128 means nothing to kernels"),
        ({"bench": "train", "sizes": ("1x2x3:4",)}, "--sizes 1x2x3:4 means nothing to train"),
        ({"bench": "scaling", "engines": ("torch",)}, "means nothing to scaling"),
        ({"bench": "train", "models": ()}, "--models is empty"),
        ({"bench": "train", "rounds": 0}, "rounds is 0"),
        ({"bench": "train", "budget_seconds": 0.0}, "budget_seconds is 0.0"),
        ({"bench": "train", "device": "gpu"}, "unknown device 'gpu'"),
        ({"bench": "train", "precision": "float16"}, "unknown precision 'float16'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchSettings(**settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("train", "--params", "10X"), "size '10X' cannot be read"),
        (("train", "--models", "hf-lama"), "did you mean 'hf-llama'"),
        (("train", "--models", "hf-llama", "--vocab-size", "100"), "vocab_size is 100: hf-llama needs at least"),
        (("train", "--contexts", "1"), "context is 1"),
        (("decode", "--models", "llama.cpp-llama", "--params", "3"), "cannot be made with 3"),
        (("decode", "--engines", "onx"), "did you mean 'onnx'"),
        (("decode", "--precision", "bfloat16"), "measured in float32 alone"),
        (("scaling", "--models", "atention"), "did you mean 'attention'"),
        (("scaling", "--models", "attention:windo(3)"), "did you mean 'window'"),
        (("scaling", "--models", "pool:window(3)"), "unknown option of mixer 'pool' 'pattern'"),
        (("scaling", "--contexts", "128"), "needs at least two"),
        (("kernels", "--sizes", "8x8"), "size '8x8' is not a convolution"),
        (("kernels", "--threads", "0"), "threads is 0"),
    ],
)
def test_options_that_cannot_be_had_end_before_anything_is_measured(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert not shown.out


@pytest.mark.parametrize("text", ["", "3x4:5", "1x2x3", "0x2x3:4", "1x2x3:4:0", "axbxc:d"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="BATCHxTIMExDIM:KERNEL:DILATION"):
        parse_size(text)


@given(numbers=st.lists(st.integers(1, 10**6), min_size=5, max_size=5))
def test_a_size_is_read_as_it_is_written(numbers: list[int]) -> None:
    size = ConvSize(**dict(zip(("batch", "time", "dim", "kernel", "dilation"), numbers, strict=True)))
    assert parse_size(str(size)) == size


@pytest.fixture
def wrong_peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A convolution that forgets the tap at the position itself."""

    def wrong(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        mask = torch.ones_like(weight)
        mask[:, -1] = 0
        return peers.torch_conv1d(x, weight * mask, dilation)

    known = peers.convolutions
    monkeypatch.setattr(peers, "convolutions", lambda *size: {**known(*size), "wrong": wrong})
    return "wrong"


def test_a_wrong_result_is_not_timed(wrong_peer: str) -> None:
    document = bench_kernels(Silent(), sizes=["1x32x8:4:2"], threads=1, rounds=1)
    assert wrong_peer not in {row["implementation"] for row in document["rows"]}
    (entry,) = document["left_out"]
    assert entry["what"] == "wrong at 1x32x8:4:2"
    assert "its result is wrong" in entry["reason"]


def test_the_shape_of_a_peer_is_that_of_the_preset() -> None:
    ours, theirs = (build(name, "30k", 258, 32, CPU) for name in ("transformer", "hf-llama"))
    assert parameters_of(ours) == parameters_of(theirs) == ours.non_embedding_parameters
    tokens = torch.randint(258, (2, 32))
    torch.testing.assert_close(ours(input_ids=tokens).logits, theirs(input_ids=tokens).logits)


@pytest.mark.parametrize("name", ["gated_conv", "hf-llama"])
def test_generate_stands_where_the_prompt_ends_each_time(name: str) -> None:
    model = build(name, "20k", 258, 32, CPU).eval()
    decoder = GenerateDecoder(name, model)
    decoder.read(range(20))
    for _ in range(2):
        decoder.stand()
        (cache,) = decoder._present.values()
        assert cache.get_seq_length() == 20
        decoder.generate(3)
        # The first generated token comes from the prompt, the last is not read any more.
        assert cache.get_seq_length() == 23


def test_an_engine_stands_where_the_prompt_ends_each_time() -> None:
    decoder = EngineDecoder("gated_conv", "torch", build("gated_conv", "20k", 258, 32, CPU).eval(), threads=1)
    decoder.read(range(20))
    for _ in range(2):
        decoder.stand()
        assert decoder._engine.position == 20
        decoder.generate(3)
        assert decoder._engine.position == 23


@pytest.mark.parametrize("name", list(llama_cpp.MODELS))
def test_llama_cpp_computes_the_model_that_it_is_given(name: str) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    model: Any = build(llama_cpp.MODELS[name], "30k", 258, 64, CPU).eval()
    decoder = llama_cpp.LlamaCppDecoder(name, model, threads=1, context=64)
    prompt = torch.randint(258, (1, 40))
    decoder.read(prompt[0].tolist())
    with torch.inference_mode():
        expected = model(input_ids=prompt).logits[0, -1]
    # Its cache holds keys and values in float16, with a relative error of 2^-11 each.
    torch.testing.assert_close(torch.from_numpy(decoder.logits().copy()), expected, rtol=0, atol=4 * 2**-11)
    ends = []
    for _ in range(2):
        decoder.stand()
        decoder.generate(4)
        ends.append(decoder.logits().copy())
    assert (ends[0] == ends[1]).all()


def test_peak_bytes_counts_what_is_held_at_once() -> None:
    def work() -> None:
        for _ in range(3):
            torch.empty(1000)
        first, second = torch.empty(500), torch.empty(250)
        del first, second

    assert 4 * 1000 <= peak_bytes(work, CPU) < 4 * 1000 + 1024


def test_a_scaling_that_has_no_time_says_so() -> None:
    document = bench_scaling(Silent(), models=["pool"], contexts=[4, 8, 16], threads=1, rounds=1, budget_seconds=1e-9)
    assert [entry["what"] for entry in document["left_out"]] == ["pool at context 4"]


def test_a_context_that_may_have_no_room_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is made once, for the longest context, does not count as growing.
    monkeypatch.setattr(scaling, "available_bytes", lambda device: 10_000_000)
    document = bench_scaling(Silent(), models=["dense"], contexts=[8, 64, 128, 1024], dim=16, threads=1, rounds=1)
    assert document["left_out"] == [{"what": "dense at context 1024", "reason": "it may have no room"}]
    assert list(document["rows"][0]["milliseconds"]) == ["8", "64", "128"]


@given(
    power=st.floats(0, 3),
    constant=st.floats(1e-6, 1e6),
    contexts=st.sets(st.integers(1, 1 << 20), min_size=2, max_size=8),
)
def test_the_fit_finds_a_power_law_exactly(power: float, constant: float, contexts: set[int]) -> None:
    slope, error = fit({context: constant * context**power for context in contexts})
    # Rounding of logarithms of at most 60, over the distance between the contexts.
    width = math.log(max(contexts) / min(contexts))
    assert slope == pytest.approx(power, abs=1e-12 / width)
    assert error <= 1e-12 / width


@given(noise=st.lists(st.floats(-0.05, 0.05), min_size=6, max_size=6))
def test_noise_moves_the_exponent_by_no_more_than_it_can(noise: list[float]) -> None:
    values = {1 << (8 + step): (1 << step) * math.exp(shift) for step, shift in enumerate(noise)}
    slope, error = fit(values)
    # The slope is linear in the noise: sum of |x - mean| / sum of (x - mean)^2 times its bound.
    centered = [(step - 2.5) * math.log(2) for step in range(6)]
    bound = 0.05 * sum(map(abs, centered)) / sum(x * x for x in centered)
    assert abs(slope - 1) <= bound + 1e-12
    assert error >= 0


@given(power=st.floats(0.8, 2.2), overhead=st.floats(0, 1e4))
def test_the_constant_part_is_kept_out_of_the_range(power: float, overhead: float) -> None:
    contexts = [16, 256, 512, 1024, 2048, 4096, 8192]
    values = {context: overhead + context**power for context in contexts}
    chosen, is_clear = upper_range(values)
    assert chosen == contexts[-len(chosen) :]
    assert len(chosen) >= 3
    if is_clear:
        assert values[16] <= CONSTANT_SHARE * values[chosen[0]]
        found = exponent(values)
        assert (found.first, found.last, found.points) == (chosen[0], 8192, len(chosen))
        # A constant part of at most a quarter lowers the slope by at most a quarter of it.
        assert (1 - CONSTANT_SHARE) * power - 1e-9 <= found.value <= power + 1e-9


def test_an_exponent_needs_two_values_above_zero() -> None:
    with pytest.raises(InputError, match="at least two contexts"):
        fit({128: 1.0})
    with pytest.raises(InputError, match="above 0"):
        fit({128: 1.0, 256: 0.0})
