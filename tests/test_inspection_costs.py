"""What a model costs against the length, and where two models cross."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

from seqmix import create_model
from seqmix.inspection.costs import LENGTHS, cost_curves, crossovers
from seqmix.models import SeqmixForCausalLM
from seqmix.models.crossings import LINES


def tiny(name: str, **options: Any) -> SeqmixForCausalLM:
    sizes = {"vocab_size": 31, "context": 64, "hidden_size": 16, "num_hidden_layers": 2}
    return create_model(name, **{**sizes, **options})


def subject(name: str, model: SeqmixForCausalLM) -> Any:
    return SimpleNamespace(name=name, model=model)


@pytest.mark.parametrize("name", ["transformer", "local_transformer", "gated_conv", "mamba2", "lstm"])
def test_curves_are_what_the_model_says(name: str) -> None:
    model = tiny(name)
    costs = cost_curves(model)
    assert costs.lengths[0] == 16
    assert costs.lengths[-1] == 65536
    for length, forward, step, state in zip(
        LENGTHS, costs.forward_flops, costs.step_flops, costs.state_bytes, strict=True
    ):
        assert forward == model.cost(1, length).product_flops / length
        assert step == model.step_cost(1, length).product_flops
        assert state == model.cost(1, length).state_bytes
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert costs.longest is None
    assert "context of 64 tokens" in costs.note
    json.dumps(dataclasses.asdict(costs), allow_nan=False)


def test_state_bytes_are_those_of_a_real_state() -> None:
    """At the shortest length, where a state is quickly made."""
    import torch

    model = tiny("transformer").eval()
    _, state = model.prefill(torch.zeros(1, 16, dtype=torch.int64), capacity=16)
    assert cost_curves(model).state_bytes[0] == state.nbytes


@pytest.mark.parametrize(
    ("name", "options", "longest"),
    [
        ("transformer", {"position": "learned"}, 64),
        ("mixer:dense:max_length=40", {}, 40),
        ("mixer:dense:max_length=200", {"position": "learned"}, 64),
    ],
)
def test_a_bounded_model_ends_at_its_bound(name: str, options: dict[str, Any], longest: int) -> None:
    costs = cost_curves(tiny(name, **options))
    assert costs.longest == longest
    assert f"{longest} tokens at most" in costs.note
    for curve in (costs.forward_flops, costs.step_flops, costs.state_bytes):
        assert [value is not None for value in curve] == [length <= longest for length in LENGTHS]


def test_a_state_that_grows_is_larger_from_the_first_context_where_it_is() -> None:
    growing, constant = tiny("transformer"), tiny("mamba2")
    sentences = crossovers(subject("A", growing), subject("B", constant))
    (sentence,) = [one for one in sentences if "state" in one]
    found = re.fullmatch(
        r"The constant state of B is smaller than the growing state of A from context ([\d,]+) on\.", sentence
    )
    assert found is not None
    at = int(found[1].replace(",", ""))
    # By counting up, not by bisection.
    expected = next(n for n in itertools.count(1) if constant.cost(1, n).state_bytes < growing.cost(1, n).state_bytes)
    assert at == expected > 1


def test_sentences_do_not_depend_on_the_order_of_the_models() -> None:
    a, b = subject("A", tiny("transformer")), subject("B", tiny("gated_conv", hidden_size=32))
    assert sorted(crossovers(a, b)) == sorted(crossovers(b, a))


def test_every_sentence_about_flops_is_true_at_both_sides() -> None:
    models = {"A": tiny("transformer"), "B": tiny("gated_conv", hidden_size=32)}
    sentences = crossovers(*(subject(name, model) for name, model in models.items()))
    crossing = re.compile(r"(\w) takes fewer FLOPs (.*) than (\w) from context ([\d,]+) on\.")
    checked = 0
    for sentence in sentences:
        if found := crossing.fullmatch(sentence):
            quantity = "flops_per_generated_token" if "generated" in found[2] else "flops_per_token"
            at, line = int(found[4].replace(",", "")), LINES[quantity]
            assert line(models[found[1]], at) < line(models[found[3]], at)
            assert line(models[found[1]], at - 1) >= line(models[found[3]], at - 1)
            checked += 1
    assert checked == 2


def test_models_that_are_equal_up_to_a_window_say_from_where_they_differ() -> None:
    """A window of 16 takes as many products as all positions until the 17th."""
    whole, window = tiny("mixer:attention"), tiny("mixer:attention:window=16")
    (sentence,) = [one for one in crossovers(subject("A", whole), subject("B", window)) if "generated" in one]
    line = LINES["flops_per_generated_token"]
    first = next(n for n in itertools.count(1) if line(window, n) != line(whole, n))
    expected = (
        f"B takes fewer FLOPs for a generated token than A from context {first} on; up to there the two are equal."
    )
    assert sentence == expected


def test_one_model_twice_is_told_apart_and_equal() -> None:
    model = tiny("gated_conv")
    sentences = crossovers(subject("same", model), subject("same", model))
    assert len(sentences) == len(LINES)
    for sentence in sentences:
        assert "same (first) and same (second)" in sentence
        assert "at every context up to 1,048,576." in sentence


def test_a_crossing_beyond_a_bound_is_not_told() -> None:
    bounded = tiny("transformer", position="learned")
    constant = tiny("mamba2", num_hidden_layers=6)
    (sentence,) = [one for one in crossovers(subject("A", bounded), subject("B", constant)) if "state" in one]
    assert bounded.cost(1, 64).state_bytes < constant.cost(1, 64).state_bytes
    assert sentence == "The growing state of A is smaller than the constant state of B at every context up to 64."
