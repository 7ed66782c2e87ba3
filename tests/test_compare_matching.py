"""Shapes and budgets: what is solved agrees, and what cannot be reached is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from seqmix.compare.formulas import formula_crossovers
from seqmix.compare.matching import config_of, on_meta, plan_budgets, plan_shapes, spread
from seqmix.compare.plan import PlanSettings, make_plan
from seqmix.compare.prices import prices
from seqmix.compare.settings import CompareSettings
from seqmix.errors import InputError
from seqmix.models.config import SeqmixConfig
from seqmix.models.sizing import measure_config

MODELS = ("transformer", "gated_conv", "convsamba", "mamba2")


def make(**changes: Any) -> CompareSettings:
    return CompareSettings(**{"data": "text", "models": MODELS, "params": "100k", "context": 64, **changes})


def never(configs: Sequence[SeqmixConfig]) -> list[float]:
    raise AssertionError("nothing has to be measured for this match")


def test_parameters_agree() -> None:
    plans = plan_shapes(make(), 258, never)
    assert [plan.model for plan in plans] == list(MODELS)
    assert all(plan.parameters == pytest.approx(100_000, rel=0.02) for plan in plans)
    assert spread([plan.parameters for plan in plans]) <= 0.02


def test_flops_agree_with_the_first_model() -> None:
    plans = plan_shapes(make(match="flops"), 258, never)
    assert plans[0].parameters == pytest.approx(100_000, rel=0.02)
    for plan in plans:
        assert plan.flops_per_token == pytest.approx(plans[0].flops_per_token, rel=0.02)
    assert len({plan.parameters for plan in plans}) > 1


def test_a_plan_builds_the_model_it_describes() -> None:
    for plan in plan_shapes(make(), 258, never):
        model = on_meta(config_of(plan, 258, 64))
        assert model.non_embedding_parameters == plan.parameters
        assert model.training_flops(6400, 64) == pytest.approx(plan.training_flops * 6400)


def test_training_flops_agree_over_different_tokens() -> None:
    settings = make(match="train-flops", budget="tokens=2M", batch_size=4)
    plans = plan_budgets(plan_shapes(settings, 258, never), settings, per_hour=1.0)
    spent = [plan.training_flops * (plan.tokens or 0) for plan in plans]
    assert spread(spent) <= 0.02
    assert plans[0].tokens == pytest.approx(2e6, abs=4 * 64)
    assert len({plan.tokens for plan in plans}) > 1


def test_budgets_in_minutes_and_money() -> None:
    plans = plan_shapes(make(), 258, never)
    assert {plan.seconds for plan in plan_budgets(plans, make(budget="minutes=2"), per_hour=1.0)} == {120.0}
    # Half the price of an hour buys half an hour.
    assert {plan.seconds for plan in plan_budgets(plans, make(budget="money=0.5"), per_hour=1.0)} == {1800.0}


def test_total_money_leaves_less_training_to_a_dear_server() -> None:
    settings = make(match="total-money", budget="money=1", serve_tokens=1e6, models=("transformer", "gated_conv"))
    plans = plan_shapes(settings, 258, never)
    filled = plan_budgets(plans, settings, 1.0, {"transformer": 0.75, "gated_conv": 0.25})
    assert [plan.seconds for plan in filled] == [pytest.approx(0.25 * 3600), pytest.approx(0.75 * 3600)]
    with pytest.raises(InputError, match="generating 1,000,000 tokens with gated_conv alone costs 3, more than"):
        plan_budgets(plans, settings, 1.0, {"transformer": 0.5, "gated_conv": 3.0})


def simulated_seconds(configs: Sequence[SeqmixConfig]) -> list[float]:
    """A machine on which each layer takes 10 us and a million parameters 100 us."""
    return [1e-5 * config.num_hidden_layers + 1e-10 * measure_config(config, "params") for config in configs]


def test_decode_speeds_agree_on_a_simulated_machine() -> None:
    settings = make(match="decode-money", params="300k")
    plans = plan_shapes(settings, 258, simulated_seconds)
    seconds = simulated_seconds([config_of(plan, 258, 64) for plan in plans])
    assert spread(seconds) <= 0.10
    assert plans[0].parameters == pytest.approx(300_000, rel=0.02)


def test_a_decode_speed_that_no_size_has_is_refused() -> None:
    def slow_convolutions(configs: Sequence[SeqmixConfig]) -> list[float]:
        return [1.0 if config.preset == "transformer" else 5.0 for config in configs]

    with pytest.raises(InputError, match="gated_conv cannot be made to generate a token at the cost of transformer"):
        plan_shapes(make(match="decode-money", models=("transformer", "gated_conv")), 258, slow_convolutions)


def test_a_size_that_cannot_be_reached_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be made with 20"):
        plan_shapes(make(params="20"), 258, never)


def test_options_are_part_of_the_shape() -> None:
    settings = make(options={"gated_conv": {"num_hidden_layers": 3, "norm": "layer"}})
    plan = plan_shapes(settings, 258, never)[1]
    assert plan.shape["num_hidden_layers"] == 3
    assert config_of(plan, 258, 64).norm == "layer"


def test_a_constant_state_is_smaller_from_the_context_that_counting_gives() -> None:
    plans = plan_shapes(make(models=("transformer", "gated_conv")), 258, never)
    transformer, gated = (on_meta(config_of(plan, 258, 64)) for plan in plans)
    (found,) = [one for one in formula_crossovers(plans, 258, 64) if one["quantity"] == "state_bytes"]
    at = int(found["at"])
    assert (found["a"], found["b"]) == ("transformer", "gated_conv")

    def state_bytes(model: Any, context: int) -> int:
        return model.init_state(1, context, device="meta").nbytes

    assert state_bytes(transformer, at) > state_bytes(gated, at)
    assert state_bytes(transformer, at - 1) <= state_bytes(gated, at - 1)


def test_a_comparison_and_a_plan_find_the_same_crossings() -> None:
    settings = {"models": MODELS, "params": "100k", "context": 64}
    plan = make_plan(PlanSettings(**settings), prices("cpu"))
    compared = formula_crossovers(plan_shapes(make(**settings), 258, never), 258, 64)
    assert {one["quantity"] for one in compared} == {"state_bytes", "flops_per_generated_token"}
    planned = {(one["quantity"], one["a"], one["b"], one["at"]) for one in plan["crossovers"]}
    assert {(one["quantity"], one["a"], one["b"], one["at"]) for one in compared} <= planned


def test_flops_of_a_generated_token_cross_where_stepping_does() -> None:
    plans = plan_shapes(make(models=("transformer", "gated_conv", "mamba2")), 258, never)
    models = {plan.model: on_meta(config_of(plan, 258, 64)) for plan in plans}
    found = [one for one in formula_crossovers(plans, 258, 64) if one["quantity"] == "flops_per_generated_token"]
    assert found
    for one in found:
        at = int(one["at"])
        below, above = models[one["a"]], models[one["b"]]
        # With that many tokens read, the next one costs b less; with one fewer, not yet.
        assert below.step_cost(1, at).product_flops > above.step_cost(1, at).product_flops
        assert below.step_cost(1, at - 1).product_flops <= above.step_cost(1, at - 1).product_flops
