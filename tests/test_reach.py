"""How far a stack of mixers sees, by formula, against the graph of its links."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqmix import Mixer, create_mixer
from seqmix.models.reach import positions_seen, receptive_field
from seqmix.properties.paths import dependencies

TIME = 160


def attention(**options: Any) -> Mixer:
    return create_mixer("attention", 8, heads=2, **options)


def by_links(mixers: list[Mixer]) -> tuple[int, int]:
    """The widest span and the most positions that reach any output far from both ends."""
    reached = torch.eye(TIME, dtype=torch.bool)
    for mixer in mixers:
        reached = dependencies(mixer, TIME).float() @ reached.float() > 0
    middle = [row.nonzero()[:, 0] for row in reached[TIME // 2 : TIME // 2 + 24]]
    assert all(row[0] > 0 and row[-1] < TIME - 1 for row in middle), "the sequence is too short"
    return max(int(row[-1] - row[0]) + 1 for row in middle), max(len(row) for row in middle)


LAYERS = {
    "window": lambda: attention(window=4),
    "blocks": lambda: attention(pattern="window(2, block=4)"),
    "other blocks": lambda: attention(pattern="window(2, block=3)"),
    "blocks and window": lambda: attention(pattern="window(1, block=4) | window(6)"),
    "dilated": lambda: attention(pattern="window(3, dilation=3)"),
    "convolution": lambda: create_mixer("gated_conv", 8, kernel=3, dilation=(1, 4), heads=2),
    "side by side": lambda: create_mixer(
        "parallel", 8, mixers=[{"name": "attention", "pattern": "window(2, block=2)"}, {"name": "gated_conv"}]
    ),
}


@given(names=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4))
def test_a_stack_sees_what_its_links_reach(names: list[str]) -> None:
    mixers = [LAYERS[name]() for name in names]
    assert (receptive_field(mixers), positions_seen(mixers)) == by_links(mixers)


@pytest.mark.parametrize(
    "options", [{"window": 4}, {"pattern": "window(2, block=4)"}, {"pattern": "window(3, dilation=2)"}]
)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_stack_that_looks_both_ways(options: dict[str, Any], layers: int) -> None:
    mixers = [attention(**options, causal=False) for _ in range(layers)]
    assert (receptive_field(mixers), positions_seen(mixers)) == by_links(mixers)


def test_no_bound_in_one_layer_is_none_in_the_stack() -> None:
    mixers = [attention(window=4), attention()]
    assert receptive_field(mixers) is None
    assert positions_seen(mixers) is None
