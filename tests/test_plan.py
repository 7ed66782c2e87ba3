"""The plan against arithmetic by hand, real models and brute force; prices; the command."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
import torch
from torch import nn

from seqmix.cli.main import main
from seqmix.compare.plan import PlanSettings, make_plan
from seqmix.compare.prices import ACCELERATORS, Prices, default_accelerator, prices
from seqmix.errors import InputError
from seqmix.models import SeqmixForCausalLM, create_model

KEYS = {
    "model",
    "parameters",
    "flops_per_token",
    "state_bytes",
    "path_length",
    "receptive_field",
    "train_flops",
    "train_money",
    "decode_money_per_million_tokens",
}


def plan(*models: str, cost: Prices | None = None, **settings: Any) -> dict[str, Any]:
    return make_plan(PlanSettings(models=models, **{"params": "60k", "context": 64, **settings}), cost or prices())


def real(entry: dict[str, Any], context: int = 64) -> SeqmixForCausalLM:
    """The model that an entry of a plan describes, with its weights."""
    return create_model(entry["model"], vocab_size=258, params="60k", context=context)


@pytest.mark.parametrize("name", ["transformer", "convsamba", "gated_conv", "convtransformer", "mamba2", "lstm"])
def test_a_plan_describes_the_model_that_would_be_made(name: str) -> None:
    entry = plan(name)["models"][0]
    model = real(entry)
    assert entry.keys() >= KEYS
    assert entry["parameters"] == model.non_embedding_parameters
    assert entry["total_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert abs(entry["parameters"] / 60_000 - 1) <= 0.02
    with torch.no_grad():
        _, state = model.prefill(torch.zeros(1, 64, dtype=torch.int64))
    assert entry["state_bytes"] == state.nbytes
    for place in entry["by_context"][:2]:
        with torch.no_grad():
            _, state = model.prefill(torch.zeros(1, place["context"], dtype=torch.int64))
        assert place["state_bytes"] == state.nbytes
    assert entry["train_tokens"] == 20 * entry["parameters"]
    assert entry["train_flops"] == pytest.approx(3 * entry["flops_per_token"] * entry["train_tokens"])
    assert entry["receptive_field"] == model.receptive_field
    assert entry["positions_seen"] == model.positions_seen


def test_positions_seen_are_those_that_gradients_reach() -> None:
    model = create_model(
        "convsamba",
        vocab_size=8,
        context=256,
        hidden_size=8,
        num_hidden_layers=3,
        embedding_position="none",
        mixers=[
            {"name": "convsamba", "kernel": 3, "dilation": [1, 5]},
            {"name": "convsamba", "kernel": 2, "dilation": [7]},
        ],
    ).double()
    time_ = model.receptive_field + 4
    embeddings = torch.randn(1, time_, 8, dtype=torch.float64, requires_grad=True)
    model(inputs_embeds=embeddings, use_cache=False).logits[0, -1].square().sum().backward()
    reached = (embeddings.grad[0].abs().sum(-1) > 0).sum()
    assert model.positions_seen == int(reached)
    assert model.positions_seen < model.receptive_field


def test_training_money_by_hand() -> None:
    cost = prices("h200", price=3.0, utilisation=0.5, peak_flops=1e12)
    entry = plan("transformer", tokens=1_000_000, cost=cost)["models"][0]
    seconds = entry["train_flops"] / 0.5e12
    assert entry["train_tokens"] == 1_000_000
    assert entry["train_seconds"] == pytest.approx(seconds)
    assert entry["train_money"] == pytest.approx(3.0 * seconds / 3600)
    assert entry["accelerator_days"] == pytest.approx(seconds / 86400)


def test_serving_is_bound_by_products_or_by_memory() -> None:
    model = real({"model": "transformer"})
    step = model.step_cost(10, 64)
    slow_products = prices(price=3.6, peak_flops=1e6, utilisation=0.5, bandwidth=1e18, serve_batch=10)
    assert slow_products.decode_seconds(model, 64) == pytest.approx(step.flops / 0.5e6 / 10)
    slow_memory = prices(price=3.6, peak_flops=1e30, bandwidth=1e6, serve_batch=10)
    assert slow_memory.decode_seconds(model, 64) == pytest.approx(step.bytes_moved / 1e6 / 10)
    # 3.6 an hour is a thousandth a second.
    assert slow_memory.decode_money_per_million(model, 64) == pytest.approx(1e3 * step.bytes_moved / 1e6 / 10)


def test_the_batch_is_what_fits_into_memory() -> None:
    model = real({"model": "transformer"})
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    state = model.cost(1, 64).state_bytes
    assert prices(memory=weights + 3.5 * state).largest_batch(model, 64) == 3
    assert prices(memory=weights + 3.5 * state, serve_batch=2).largest_batch(model, 64) == 2
    assert prices(memory=weights / 2).largest_batch(model, 64) == 0
    none = prices(memory=weights + 0.5 * state)
    assert math.isinf(none.decode_seconds(model, 64))
    entry = plan("transformer", cost=none)["models"][0]
    assert entry["decode_money_per_million_tokens"] is None
    assert entry["decode_batch"] == 0


def test_half_the_bytes_in_half_the_precision() -> None:
    costs = [prices(precision=precision) for precision in ("float32", "bfloat16")]
    full, half = (plan("mamba2", "transformer", cost=cost)["models"] for cost in costs)
    for one, other in zip(full, half, strict=True):
        model = real(one)
        nn.Module.to(model, torch.bfloat16)
        assert other["state_bytes"] == model.cost(1, 64).state_bytes
        assert other["train_flops"] == one["train_flops"]
    # Mamba-2 keeps its state in float32 whatever the precision; keys and values are halved.
    assert half[0]["state_bytes"] > 0.55 * full[0]["state_bytes"]
    assert half[1]["state_bytes"] < 0.55 * full[1]["state_bytes"]


def test_crossovers_are_exact() -> None:
    """Every crossing is where brute force over the real models sees the order change, and none is missed."""
    names = ("transformer", "convsamba", "mamba2")
    cost = prices()
    document = plan(*names, cost=cost)
    models = {name: real({"model": name}) for name in names}
    lines = {
        "state_bytes": lambda model, n: model.cost(1, n).state_bytes,
        "flops_per_generated_token": lambda model, n: model.step_cost(1, n).product_flops,
        "decode_money_per_million_tokens": cost.decode_money_per_million,
    }
    reach = 400
    for quantity, line in lines.items():
        values = {name: [line(model, n) for n in range(1, reach + 1)] for name, model in models.items()}
        for a, b in (("transformer", "convsamba"), ("transformer", "mamba2"), ("convsamba", "mamba2")):
            order = [(x > y) - (x < y) for x, y in zip(values[a], values[b], strict=True)]
            expected = [n + 1 for n in range(1, reach) if order[n] and order[n - 1] and order[n] != order[n - 1]]
            found = [
                one["at"]
                for one in document["crossovers"]
                if one["quantity"] == quantity and {one["a"], one["b"]} == {a, b} and 1 < one["at"] <= reach
            ]
            assert found == expected, (quantity, a, b)
    states = [one for one in document["crossovers"] if one["quantity"] == "state_bytes" and one["a"] == "transformer"]
    assert {one["b"] for one in states} == {"convsamba", "mamba2"}
    assert all("constant state" in one["text"] and f"context {one['at']} on" in one["text"] for one in states)


def test_a_state_that_is_smaller_at_once_is_said() -> None:
    document = plan("lstm", "transformer", params="300k")
    one = next(one for one in document["crossovers"] if one["quantity"] == "state_bytes")
    assert (one["a"], one["b"]) == ("transformer", "lstm")
    lstm, transformer = (create_model(n, vocab_size=258, params="300k", context=64) for n in ("lstm", "transformer"))
    assert transformer.cost(1, one["at"]).state_bytes > lstm.cost(1, one["at"]).state_bytes
    if one["at"] > 1:
        assert transformer.cost(1, one["at"] - 1).state_bytes <= lstm.cost(1, one["at"] - 1).state_bytes


def test_matched_flops() -> None:
    document = plan("transformer", "gated_conv", match="flops")
    flops = [one["flops_per_token"] for one in document["models"]]
    assert flops[1] == pytest.approx(flops[0], rel=0.02)


def test_three_billions_take_seconds_and_no_memory() -> None:
    begin = time.process_time()
    document = plan("transformer", "convsamba", params="3B", context=8192, vocab_size=32000, cost=prices("h200"))
    assert time.process_time() - begin < 20
    transformer, convsamba = document["models"]
    for one in (transformer, convsamba):
        assert one["parameters"] == pytest.approx(3e9, rel=0.02)
        assert one["accelerator_days"] > 10
    assert convsamba["receptive_field"] > 8192
    assert transformer["path_length"] == 1
    assert transformer["by_context"][-1]["context"] == 32768
    costs = [place["decode_money_per_million_tokens"] for place in transformer["by_context"]]
    assert costs == sorted(costs)
    assert len({place["state_bytes"] for place in convsamba["by_context"]}) == 1


@pytest.mark.parametrize("name", sorted(ACCELERATORS))
def test_every_accelerator_is_complete(name: str) -> None:
    one = prices(name)
    assert min(one.flops, one.bandwidth, one.memory, one.per_hour) > 0
    assert "assumed" in one.source
    assert json.loads(json.dumps(one.to_dict()))["per_hour"] == ACCELERATORS[name].price
    assert prices(name, price=7.0).per_hour == 7.0
    assert "--price" in prices(name, price=7.0).source


def test_the_accelerator_of_a_device() -> None:
    assert default_accelerator("NVIDIA H200") == "h200"
    assert default_accelerator("NVIDIA A100-SXM4-80GB") == "a100"
    assert default_accelerator("cpu") == "cpu"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"price": -1.0}, "price is -1.0"),
        ({"price": math.nan}, "price is nan"),
        ({"utilisation": 1.5}, "utilisation is 1.5"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"serve_batch": 0}, "serve_batch is 0"),
        ({"precision": "float23"}, "did you mean 'float32'"),
    ],
)
def test_prices_that_cannot_be_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prices(**options)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--models", "transfomer"], "did you mean 'transformer'"),
        (["--models", "lstm,lstm"], "named twice"),
        (["--models", ","], "models is empty"),
        (["--params", "many"], "'many'"),
        (["--params", "7"], "cannot be made"),
        (["--context", "1"], "context is 1"),
        (["--match", "flop"], "did you mean 'flops'"),
        (["--accelerator", "h2000"], "did you mean 'h200'"),
        (["--tokens", "-5"], "'-5'"),
        (["--price", "0"], "price is 0"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_command_prints_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "plan",
        "--models",
        "transformer,convsamba",
        "--params",
        "60k",
        "--context",
        "128",
        "--tokens",
        "1M",
        "--json",
    ]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["model"] for one in document["models"]] == ["transformer", "convsamba"]
    for one in document["models"]:
        assert one.keys() >= KEYS
        assert one["train_tokens"] == 1_000_000
    assert document["context"] == 128


@pytest.mark.parametrize(
    "size", [["--params", "60k"], ["--params", "100M", "--context", "8k", "--accelerator", "a100"]]
)
def test_tables_fit_a_hundred_columns(
    size: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["plan", "--models", "transformer,convsamba,convtransformer,mamba2,local_transformer", *size]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert any("accelerator-days" in line for line in lines)
