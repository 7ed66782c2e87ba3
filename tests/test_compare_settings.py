"""What a comparison refuses before anything is read or written."""

from __future__ import annotations

from typing import Any

import pytest

from seqmix.compare.settings import (
    Budget,
    CompareSettings,
    command_line,
    first_difference,
    parse_options,
    parse_quantity,
)
from seqmix.errors import InputError


def make(**changes: Any) -> CompareSettings:
    return CompareSettings(**{"data": "text", "models": ("transformer", "gated_conv"), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ()}, "models is empty"),
        ({"models": ("transformer", "transformer")}, "'transformer' is named twice"),
        ({"models": ("transfomer",)}, "unknown model 'transfomer': did you mean 'transformer'"),
        ({"match": "parms"}, "unknown match 'parms': did you mean 'params'"),
        ({"budget": "tokens=-5"}, "budget is -5"),
        ({"budget": "tokens=0"}, "budget is 0"),
        ({"budget": "tokens"}, "'tokens' has no amount"),
        ({"budget": "minuts=3"}, "unknown budget 'minuts': did you mean 'minutes'"),
        ({"budget": "tokens=many"}, "'many' is not a number"),
        ({"seeds": 0}, "seeds is 0"),
        ({"tune": 1}, "tune is 1"),
        ({"context": 1}, "context is 1"),
        ({"price": 0.0}, "price is 0.0"),
        ({"speed_seconds": -1.0}, "speed_seconds is -1.0"),
        ({"match": "train-seconds"}, "give --budget minutes=N"),
        ({"match": "total-money", "budget": "money=1"}, "serve_tokens is None"),
        ({"serve_tokens": 10}, "has no effect on match 'params'"),
        ({"options": {"mamba2": {}}}, "unknown model with options 'mamba2'"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as raised:
        make(**changes)
    assert words in str(raised.value)


def test_amounts() -> None:
    assert Budget.parse("tokens=2.5M") == Budget(kind="tokens", amount=2.5e6)
    assert Budget.parse("flops=1e15") == Budget(kind="flops", amount=1e15)
    assert Budget.parse("minutes=0.5") == Budget(kind="minutes", amount=0.5)
    assert parse_quantity("n", "64k") == 64_000


def test_options_are_read_as_yaml() -> None:
    assert parse_options(["gated_conv.norm=layer", "gated_conv.feed_forward=64", "mamba2.mixers=[{name: mamba2}]"]) == {
        "gated_conv": {"norm": "layer", "feed_forward": 64},
        "mamba2": {"mixers": [{"name": "mamba2"}]},
    }
    for wrong in ("norm=layer", "gated_conv.norm", ".x=1", "gated_conv.x={"):
        with pytest.raises(InputError, match="option"):
            parse_options([wrong])


def test_the_first_difference_is_found() -> None:
    stored = make().to_dict()
    assert first_difference(stored, make()) is None
    assert first_difference(stored, make(seeds=3)) == ("seeds", 1, 3)
    assert first_difference(stored, make(models=("gated_conv",))) == (
        "models",
        ["transformer", "gated_conv"],
        ["gated_conv"],
    )


def test_the_command_names_what_was_chosen() -> None:
    settings = make(seeds=2, options={"gated_conv": {"norm": "layer"}}, evaluate_tokens=None)
    assert command_line(settings, "runs/my demo") == (
        "seqmix compare --data text --models transformer,gated_conv --match params --budget tokens=1M --params 300k "
        "--seeds 2 --option 'gated_conv.norm=\"layer\"' --evaluate-tokens all --out 'runs/my demo'"
    )
