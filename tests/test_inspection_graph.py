"""Steps, paths and what is reached, against a breadth-first search and all paths of small graphs."""

from __future__ import annotations

import itertools
import math
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from seqmix.errors import InputError
from seqmix.inspection.graph import reached, steps, strongest_path
from seqmix.mixers import create_mixer
from seqmix.properties.paths import dependencies, hops

Stack = list[NDArray[np.float64]]
WEIGHTS = st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 1.5, -0.25, -2.0])


@st.composite
def stacks(draw: st.DrawFn, depth: int = 4, time: int = 6) -> Stack:
    size = draw(st.integers(1, time))
    layer = arrays.arrays(np.float64, (size, size), elements=WEIGHTS)
    return draw(st.lists(layer, min_size=1, max_size=depth))


def searched(layers: Stack, source: int) -> dict[tuple[int, int], int]:
    """The fewest links to each (level, position), by a search in the order of links: residuals first, then mixers."""
    fewest = {(0, source): 0}
    waiting = deque([(0, source)])
    while waiting:
        level, here = waiting.popleft()
        if level == len(layers):
            continue
        count = fewest[level, here]
        if fewest.get((level + 1, here), math.inf) > count:
            fewest[level + 1, here] = count
            waiting.appendleft((level + 1, here))
        for target in np.flatnonzero(layers[level][:, here]):
            if fewest.get((level + 1, int(target)), math.inf) > count + 1:
                fewest[level + 1, int(target)] = count + 1
                waiting.append((level + 1, int(target)))
    return fewest


@settings(max_examples=100)
@given(layers=stacks())
def test_steps_and_reached_are_those_of_a_search(layers: Stack) -> None:
    time = len(layers[0])
    for source in range(time):
        fewest = searched(layers, source)
        for target in range(time):
            assert steps(layers, source, target) == fewest.get((len(layers), target))
        levels = [[position for position in range(time) if (level, position) in fewest] for level in range(5)]
        assert reached(layers, source) == levels[: len(layers) + 1]


def strongest_by_trying(layers: Stack, source: int, target: int) -> float:
    """The greatest product over all ways through, 0 where none leads."""
    time = len(layers[0])
    best = 0.0
    for inner in itertools.product(range(time), repeat=len(layers) - 1):
        way = (source, *inner, target)
        product = 1.0
        for layer, (here, there) in zip(layers, itertools.pairwise(way), strict=True):
            product *= max(abs(layer[there, here]), 1.0 if here == there else 0.0)
        best = max(best, product)
    return best


@settings(max_examples=60)
@given(layers=stacks(depth=3, time=4))
def test_the_strongest_path_is_the_best_of_all(layers: Stack) -> None:
    for source, target in np.ndindex(layers[0].shape):
        expected, path = strongest_by_trying(layers, source, target), strongest_path(layers, source, target)
        assert (path is None) == (expected == 0)
        if path is None:
            continue
        assert math.prod(hop.weight for hop in path) == pytest.approx(expected)
        here, below = source, -1
        for layer, start, end, weight in path:
            assert (start, layer > below) == (here, True)
            assert weight == abs(layers[layer][end, start]) > 0
            here, below = end, layer
        assert here == target


@settings(max_examples=40)
@given(layers=stacks(), threshold=st.sampled_from([0.0, 0.3, 0.6, 0.9]))
def test_a_threshold_is_a_share_of_the_rows_largest(layers: Stack, threshold: float) -> None:
    kept = [layer.copy() for layer in layers]
    for layer in kept:
        for row in layer:
            row[np.abs(row) <= threshold * np.abs(row).max()] = 0
    for source, target in np.ndindex(layers[0].shape):
        assert steps(layers, source, target, threshold) == steps(kept, source, target)
        assert strongest_path(layers, source, target, threshold) == strongest_path(kept, source, target)
    assert reached(layers, 0, threshold) == reached(kept, 0)


@settings(max_examples=30)
@given(layers=stacks(), seed=st.integers(0, 99))
def test_heads_count_by_their_largest_and_links_as_weights(layers: Stack, seed: int) -> None:
    draw = np.random.default_rng(seed)
    heads = [np.stack([layer * draw.uniform(-1, 1, layer.shape), layer]) for layer in layers]
    links = [torch.from_numpy(layer != 0) for layer in layers]
    for source, target in np.ndindex(layers[0].shape):
        assert strongest_path(heads, source, target) == strongest_path(layers, source, target)
        assert steps(links, source, target) == steps(layers, source, target)


@pytest.mark.parametrize(
    "mixers",
    [
        [("conv", {"kernel": 3})] * 3,
        [("conv", {"kernel": 2, "dilation": 4}), ("conv", {"kernel": 3}), ("gated_conv", {})],
        [("attention", {"heads": 1}), ("conv", {})],
        [("mamba2", {}), ("conv", {"kernel": 3, "dilation": 3})],
    ],
)
def test_the_links_of_mixers_take_as_many_steps_as_their_properties_say(
    mixers: list[tuple[str, dict[str, int]]],
) -> None:
    layers = [create_mixer(name, 8, **options) for name, options in mixers]
    for distance in (1, 2, 5, 9):
        time = 2 * distance + 1
        edges = [dependencies(mixer, time) for mixer in layers]
        targets = range(distance, time)
        each = [steps(edges, target - distance, target) for target in targets]
        worst = None if None in each else max(count for count in each if count is not None)
        assert worst == hops(layers, distance)


def test_many_weak_layers_leave_the_range_of_floats_and_still_have_a_path() -> None:
    layers = [np.eye(61, k=-1) * 1e-6 for _ in range(60)]
    path = strongest_path(layers, 0, 60)
    assert path is not None
    assert [hop.target for hop in path] == list(range(1, 61))
    assert steps(layers, 0, 60) == 60
    assert steps(layers[:-1], 0, 60) is None


def test_staying_in_place_takes_no_mixer() -> None:
    layers = [np.zeros((3, 3)), np.eye(3)]
    assert steps(layers, 1, 1) == 0
    assert strongest_path(layers, 1, 1) == []
    assert strongest_path(layers, 1, 2) is None


@pytest.mark.parametrize(
    "layers, source, threshold, message",
    [
        ([], 0, 0.0, "there are no layers"),
        ([np.ones((2, 2)), np.ones((3, 3))], 0, 0.0, r"layer 1 has shape \(3, 3\)"),
        ([np.ones((2, 3))], 0, 0.0, r"layer 0 has shape \(2, 3\)"),
        ([np.ones((0, 2, 2))], 0, 0.0, r"layer 0 has shape \(0, 2, 2\)"),
        ([np.ones((2, 2))], 2, 0.0, "position 2 is not in the text: choose one from 0 to 1"),
        ([np.ones((2, 2))], -1, 0.0, "position -1 is not in the text"),
        ([np.ones((2, 2))], 0, 1.0, "threshold is 1.0"),
        ([np.ones((2, 2))], 0, math.nan, "threshold is nan"),
    ],
)
def test_what_is_no_graph_is_refused(layers: Stack, source: int, threshold: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        steps(layers, source, 0, threshold)
    with pytest.raises(InputError, match=message):
        reached(layers, source, threshold)
    with pytest.raises(InputError, match=message):
        strongest_path(layers, 0, source, threshold)
