"""Sizes are read, solved to 2 % and never allocated."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmix.errors import InputError
from seqmix.models import SeqmixForCausalLM, list_models
from seqmix.models.sizing import TOLERANCE, measure_config, parse_size, solve


@pytest.mark.parametrize(
    ("text", "number"), [("50k", 50_000), ("10M", 10**7), ("1.5B", 15 * 10**8), (7, 7), ("2e3", 2000)]
)
def test_sizes_are_read(text: str | int, number: int) -> None:
    assert parse_size(text) == number


@pytest.mark.parametrize("text", ["", "ten", "10X", "-5", "0", -3, "1.2.3M"])
def test_bad_sizes_are_refused_with_their_value(text: str | int) -> None:
    with pytest.raises(InputError, match="size"):
        parse_size(text)


@pytest.mark.parametrize("name", list_models())
@settings(max_examples=15, deadline=None)
@given(exponent=st.floats(5.3, 9.4), measure=st.sampled_from(["params", "flops"]))
def test_solved_sizes_meet_their_target(name: str, exponent: float, measure: str) -> None:
    target = round(10**exponent)
    config = solve(name, target, measure=measure, vocab_size=258, context=512)  # type: ignore[arg-type]
    assert abs(measure_config(config, measure) / target - 1) <= TOLERANCE  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("size", ["300k", "3B"])
def test_the_measure_is_that_of_the_model(name: str, size: str) -> None:
    config = solve(name, size, vocab_size=258, context=256)
    with torch.device("meta"):
        model = SeqmixForCausalLM(config)
    assert model.non_embedding_parameters == measure_config(config, "params")
    assert model.cost(1, 256).product_flops / 256 == pytest.approx(measure_config(config, "flops"), rel=1e-12)
    assert model.receptive_field is None or model.positions_seen is not None
    assert all(parameter.is_meta for parameter in model.parameters())


def test_an_unreachable_size_names_the_nearest() -> None:
    with pytest.raises(InputError, match="the nearest size is"):
        solve("transformer", 100, vocab_size=258, context=256)


def test_fixed_width_and_depth_are_kept() -> None:
    config = solve("transformer", "300k", vocab_size=258, context=256, num_hidden_layers=3)
    assert config.num_hidden_layers == 3
    config = solve("gated_conv", "300k", vocab_size=258, context=256, hidden_size=80)
    assert config.hidden_size == 80
