"""The pattern language: which positions are linked, what is counted, and how patterns are written."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import reduce
from operator import or_
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seqmix
from seqmix.errors import InputError
from seqmix.mixers.attention.config import AttentionConfig
from seqmix.mixers.links.counts import count_links, links_of
from seqmix.mixers.links.pattern import Pattern, bigbird, full, global_, longformer, random, window
from seqmix.mixers.links.text import parse_pattern

windows = st.builds(window, st.integers(1, 9))
dilated = st.builds(lambda size, dilation: window(size, dilation=dilation), st.integers(1, 6), st.integers(2, 5))
blocks = st.builds(lambda size, block: window(size, block=block), st.integers(1, 3), st.integers(2, 5))
firsts = st.builds(global_, st.integers(1, 4))
chosen = st.builds(global_, st.lists(st.integers(0, 30), min_size=1, max_size=3))
draws = st.builds(
    lambda count, seed, block: random(count, seed=seed, block=block),
    st.integers(1, 4),
    st.integers(-5, 5),
    st.sampled_from([1, 1, 3, 4]),
)
patterns = st.lists(st.one_of(windows, dilated, blocks, firsts, chosen, draws), min_size=1, max_size=4).map(
    lambda parts: reduce(or_, parts)
)


def links(pattern: Pattern, time: int, *, causal: bool) -> torch.Tensor:
    steps = torch.arange(time)
    return pattern.allows(steps[:, None], steps, causal=causal)


def linked(pattern: Pattern, time: int) -> set[tuple[int, int]]:
    """(target, source) pairs of the causal form, without those of a position to itself."""
    return {(t, s) for t, s in links(pattern, time, causal=True).nonzero().tolist() if s < t}


def test_each_part_links_what_it_says() -> None:
    pairs = [(t, s) for t in range(12) for s in range(t)]
    assert linked(window(3), 12) == {(t, s) for t, s in pairs if t - s < 3}
    assert linked(window(3, dilation=2), 12) == {(t, s) for t, s in pairs if t - s in (2, 4)}
    assert linked(window(2, block=3), 12) == {(t, s) for t, s in pairs if t // 3 - s // 3 < 2}
    assert linked(global_(2), 12) == {(t, s) for t, s in pairs if s < 2 or t < 2}
    assert linked(global_([5]), 12) == {(t, s) for t, s in pairs if 5 in (s, t)}
    assert linked(global_([1], block=3), 12) == linked(global_([3, 4, 5]), 12)
    assert linked(full(), 12) == set(pairs)
    assert linked(longformer(3, 2), 12) == linked(window(3), 12) | linked(global_(2), 12)
    expected = window(2, block=2) | global_(1, block=2) | random(1, seed=7, block=2)
    assert bigbird(block=2, global_blocks=1, random_blocks=1, seed=7) == expected


@settings(max_examples=60, deadline=None)
@given(pattern=patterns)
def test_links_of_a_union_are_those_of_its_parts_and_a_position_sees_itself(pattern: Pattern) -> None:
    union = set[tuple[int, int]]().union(*(linked(Pattern((part,)), 33) for part in pattern.parts))
    assert linked(pattern, 33) == union
    assert bool(links(pattern, 33, causal=True).diagonal().all())


@settings(max_examples=40, deadline=None)
@given(pattern=patterns)
def test_non_causal_links_are_the_causal_ones_both_ways(pattern: Pattern) -> None:
    causal = links(pattern, 33, causal=True)
    assert not bool(causal.triu(1).any())
    assert torch.equal(links(pattern, 33, causal=False), causal | causal.T)


@settings(max_examples=40, deadline=None)
@given(pattern=patterns, short=st.integers(1, 32), causal=st.booleans())
def test_links_do_not_depend_on_the_length(pattern: Pattern, short: int, causal: bool) -> None:
    assert torch.equal(links(pattern, short, causal=causal), links(pattern, 33, causal=causal)[:short, :short])


@settings(max_examples=100, deadline=None)
@given(pattern=patterns, time=st.sampled_from([1, 2, 7, 40, 61]), causal=st.booleans())
def test_links_are_counted_without_the_matrix(pattern: Pattern, time: int, causal: bool) -> None:
    matrix = links(pattern, time, causal=causal)
    assert count_links(pattern, time, causal=causal) == int(matrix.sum())
    if causal:
        assert torch.equal(links_of(pattern, torch.arange(time)), matrix.sum(dim=1))


@settings(max_examples=60, deadline=None)
@given(pattern=patterns, causal=st.booleans())
def test_the_receptive_field_spans_what_a_position_sees(pattern: Pattern, causal: bool) -> None:
    span = pattern.receptive_field(causal=causal)
    if span is None:
        assert pattern.lags(causal=causal) is None
        assert pattern.positions_seen(causal=causal) is None
        return
    rows = [row.nonzero()[:, 0] for row in links(pattern, 300, causal=causal)[100:200]]
    assert span == max(int(row[-1] - row[0]) + 1 for row in rows)
    assert pattern.positions_seen(causal=causal) == max(map(len, rows))
    lags = {100 + offset - source for offset, row in enumerate(rows) for source in row.tolist()}
    assert set(pattern.lags(causal=causal) or ()) == lags


@settings(max_examples=60, deadline=None)
@given(pattern=patterns)
def test_the_positions_that_a_state_keeps_are_enough(pattern: Pattern) -> None:
    if pattern.ring is None:
        return
    target, source = links(pattern, 120, causal=True).nonzero().T
    assert bool(((source < pattern.kept) | (target - source < pattern.ring)).all())


def test_random_links_are_different_earlier_positions_and_all_where_there_are_few() -> None:
    drawn = links(random(3, seed=1), 50, causal=True).sum(dim=1) - 1
    assert drawn.tolist() == [min(3, position) for position in range(50)]
    one, other = linked(random(3, seed=1), 50), linked(random(3, seed=2), 50)
    assert one != other
    blocks = linked(random(1, block=4), 48)
    assert all(t // 4 > s // 4 for t, s in blocks)
    assert len(blocks) == 11 * 4 * 4


def test_random_links_are_drawn_evenly() -> None:
    """Of 10 earlier positions 3 are drawn; counts over many seeds keep within five standard deviations."""
    counts = torch.zeros(10)
    seeds = 2000
    for seed in range(seeds):
        (part,) = random(3, seed=seed).parts
        for pick in part.draws(torch.tensor(10)):  # type: ignore[attr-defined]
            counts[pick] += 1
    deviation = (seeds * 0.3 * 0.7) ** 0.5
    assert float((counts - 0.3 * seeds).abs().max()) < 5 * deviation


@settings(max_examples=60, deadline=None)
@given(pattern=patterns)
def test_text_reads_back(pattern: Pattern) -> None:
    assert linked(parse_pattern(str(pattern)), 33) == linked(pattern, 33)
    assert str(parse_pattern(str(pattern))) == str(pattern)


def test_text_may_be_written_freely() -> None:
    assert parse_pattern(" window( 256 )|global(4)| random(3,seed = -2)") == window(256) | global_(4) | random(
        3, seed=-2
    )
    assert parse_pattern("bigbird(block=16)") == bigbird(block=16)
    assert parse_pattern("longformer(128, [0, 9])") == longformer(128, [0, 9])
    assert str(global_([3, 1, 2, 9])) == "global_([1, 2, 3, 9])"


def test_configs_hold_the_text() -> None:
    given = AttentionConfig(pattern=window(4) | global_(2))
    assert given == AttentionConfig(pattern="window(4)|global(2)")
    assert json.loads(json.dumps(dataclasses.asdict(given)))["pattern"] == "window(4) | global_(2)"
    assert AttentionConfig(pattern="full()").link_pattern is None
    assert AttentionConfig(window=4).link_pattern == window(4)


@pytest.mark.parametrize(
    "text, words",
    [
        ("windo(3)", "did you mean 'window'"),
        ("window(3, dilatoin=2)", "did you mean 'dilation'"),
        ("window(0)", "size of a window is 0"),
        ("window(3, dilation=0)", "dilation of a window is 0"),
        ("window(3, dilation=2, block=2)", "dilation 2 and block 2"),
        ("window(3, block=0)", "block of a window is 0"),
        ("global_(0)", "number of global positions is 0"),
        ("global_([])", "list of global positions is empty"),
        ("global_([-1])", "a global position is -1"),
        ("random(0)", "count of random links is 0"),
        (f"random(1, seed={2**63})", "seed of random links"),
        ("window(3) global_(4)", r"'\|' is missing before 'global_'"),
        ("window(3", "is missing"),
        ("window", r"'\(' is missing"),
        ("window()", "does not take these arguments"),
        ("window([1])", "size of a window is"),
        ("window(3, size=3)", "does not take these arguments"),
        ("window(dilation=2, 3)", "without a name follows"),
        ("window(3, dilation=2, dilation=2)", "given twice"),
        ("window(3) |", "a name is missing"),
        ("", "a name is missing"),
        ("window(3.5)", "'.' means nothing"),
        ("__import__('os')", "means nothing there"),
        ("open(3)", "unknown links of a pattern 'open'"),
    ],
)
def test_what_cannot_be_a_pattern_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        seqmix.create_mixer("attention", 8, pattern=text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"pattern": "window(3)", "window": 3}, "put the window into the pattern"),
        ({"alibi": True}, "give rope=False with alibi"),
        ({"qk_norm": True, "qk_norm_eps": 0.0}, "qk_norm_eps is 0.0"),
    ],
)
def test_options_that_exclude_each_other_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        seqmix.create_mixer("attention", 8, **options)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("random(50)", "draws 50 earlier positions, but a context of 32 positions has at most 31"),
        ("window(4) | random(4, block=8)", "draws 4 earlier blocks of 8, but a context of 32 positions has at most 3"),
        ("global_([40])", "reaches position 40, but the context is 32 positions long"),
    ],
)
def test_more_links_than_a_context_has_positions_are_refused(pattern: str, message: str) -> None:
    size = {"hidden_size": 8, "num_hidden_layers": 1}
    alone = {"name": "attention", "pattern": pattern}
    for mixer in (alone, {"name": "parallel", "mixers": [alone, {"name": "pool"}]}):
        with pytest.raises(InputError, match=re.escape(message)):
            seqmix.create_model("transformer", vocab_size=5, context=32, mixers=[mixer], **size)


def test_as_many_links_as_a_context_has_are_taken() -> None:
    mixers = [{"name": "attention", "pattern": "random(31) | global_([31])"}]
    model = seqmix.create_model(
        "transformer", vocab_size=5, context=32, mixers=mixers, hidden_size=8, num_hidden_layers=1
    )
    assert model.mixers[0].links(32)[31].all()
