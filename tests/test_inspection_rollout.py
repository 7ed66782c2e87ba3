"""Rollout against a loop over paths, the gradient against exact Jacobians, and ranks against their definition."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from seqmix.errors import InputError
from seqmix.inspection.figures.rollout import rollout_figure
from seqmix.inspection.rollout import agreement, gradient_map, rollout
from seqmix.models import create_model
from seqmix.models.language_model import SeqmixForCausalLM

TIME = 12


@st.composite
def shares(draw: st.DrawFn) -> list[NDArray[np.float64]]:
    """1 to 4 matrices with rows that sum to 1 or to 0."""
    time = draw(st.integers(1, 5))
    entries = arrays.arrays(np.float64, (time, time), elements=st.sampled_from([0.0, 0.0, 1.0, 2.0, 5.0]))
    return [
        matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        for matrix in draw(st.lists(entries, min_size=1, max_size=4))
    ]


def by_paths(layers: list[NDArray[np.float64]], residual: float, target: int, source: int) -> float:
    """The sum over all ways down from the target: at each layer stay, or move along a link."""
    if not layers:
        return float(target == source)
    *below, top = layers
    listens = top[target].sum() > 0
    total = residual + (1 - residual) * listens
    found = residual * by_paths(below, residual, target, source)
    for here in np.flatnonzero(top[target]):
        found += (1 - residual) * top[target, here] * by_paths(below, residual, int(here), source)
    return found / total if total else 0.0


@settings(max_examples=40)
@given(layers=shares(), residual=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_rollout_is_the_sum_over_all_paths(layers: list[NDArray[np.float64]], residual: float) -> None:
    found = rollout(layers, residual)
    for target, source in np.ndindex(found.shape):
        assert found[target, source] == pytest.approx(by_paths(layers, residual, target, source), abs=1e-12)


@settings(max_examples=40)
@given(layers=shares())
def test_every_row_of_a_rollout_is_a_distribution(layers: list[NDArray[np.float64]]) -> None:
    found = rollout(layers)
    assert (found >= 0).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(len(found)))
    alone = rollout([np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None], np.eye(4, k=-1)])
    # By hand: position 0 stays; 1 takes half of itself and, through the second layer, half of 0.
    assert alone[1] == pytest.approx([0.5 * 0.25 + 0.5, 0.5 * 0.75, 0, 0])


def small_model(name: str) -> tuple[SeqmixForCausalLM, torch.Tensor]:
    torch.manual_seed(0)
    model = create_model(name, vocab_size=17, hidden_size=8, num_hidden_layers=2).eval()
    return model, torch.randint(17, (1, TIME))


def exact_norms(model: SeqmixForCausalLM, input_ids: torch.Tensor) -> NDArray[np.float64]:
    """(time, time): the Frobenius norms, one channel after another."""
    leaf = model.get_input_embeddings()(input_ids).detach().requires_grad_()
    output = model.model.mix(leaf)[0][0]
    squares = torch.zeros(TIME, TIME, dtype=torch.float64)
    for target, channel in np.ndindex(*output.shape):
        (gradient,) = torch.autograd.grad(output[target, channel], leaf, retain_graph=True)
        squares[target] += gradient[0].double().square().sum(dim=1)
    return squares.sqrt().numpy()


@pytest.mark.parametrize("name", ["transformer", "gated_conv"])
def test_the_gradient_tends_to_the_exact_jacobians(name: str) -> None:
    model, input_ids = small_model(name)
    targets, directions = [TIME - 1, 0, 5, 6, 1], 200
    found = gradient_map(model, input_ids, targets, directions=directions)
    exact = exact_norms(model, input_ids)[targets]
    assert found.shape == (len(targets), TIME)
    assert np.array_equal(found > 0, exact > 0)
    # The square's relative variance is at most 2 / directions: 60 entries within five standard errors.
    ratio = found[exact > 0] ** 2 / exact[exact > 0] ** 2
    assert np.abs(ratio - 1).max() <= 5 * (2 / directions) ** 0.5


def test_the_gradient_leaves_the_model_as_it_is() -> None:
    model, input_ids = small_model("transformer")
    first = gradient_map(model, input_ids, [3, TIME - 1], directions=1, seed=4)
    assert np.array_equal(first, gradient_map(model, input_ids, [3, TIME - 1], directions=1, seed=4))
    assert not np.array_equal(first, gradient_map(model, input_ids, [3, TIME - 1], directions=1, seed=5))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert gradient_map(model, input_ids, []).shape == (0, TIME)


def by_definition(one: list[float], other: list[float]) -> float:
    """Pearson's correlation of ranks, a rank being how many are smaller and half of how many are equal."""

    def ranks(row: list[float]) -> list[float]:
        return [sum((b < a) + 0.5 * (b == a) for b in row) for a in row]

    first, second = ranks(one), ranks(other)
    middle = sum(first) / len(first)
    product = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    return product / math.sqrt(sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second))


@settings(max_examples=60)
@given(data=st.data(), width=st.integers(2, 8))
def test_agreement_is_spearmans(data: st.DataObject, width: int) -> None:
    rows = [data.draw(st.lists(st.integers(1, 6).map(float), min_size=width, max_size=width)) for _ in range(2)]
    found = agreement(np.array([[*rows[0], 0.0, 0.0]]), np.array([[*rows[1], 0.0, 0.0]]))
    if len(set(rows[0])) == 1 or len(set(rows[1])) == 1:
        assert found.spearman == [None]
        assert found.mean is None
    else:
        assert found.spearman == [pytest.approx(by_definition(*rows))]
        assert found.mean == found.spearman[0]


def test_agreement_of_rows_that_cannot_be_ranked_is_unknown() -> None:
    one = np.array([[1.0, 0, 0], [1, 2, 0], [1, 2, 3], [3, 2, 1]])
    other = np.array([[1.0, 0, 0], [3, 5, 0], [1, 2, 3], [1, 2, 3]])
    found = agreement(one, other)
    assert found.spearman == [None, pytest.approx(1), pytest.approx(1), pytest.approx(-1)]
    assert found.mean == pytest.approx(1 / 3)
    assert json.loads(json.dumps(asdict(found))) == asdict(found)
    # What only one of the two sees is ranked.
    assert agreement(np.array([[0.0, 1, 2]]), np.array([[2.0, 1, 0]])).spearman == [pytest.approx(-1)]


def test_the_figure_says_where_the_agreement_is_unknown() -> None:
    rows = np.array([[1.0, 0, 0], [1, 2, 3]])
    picture = rollout_figure(rows, rows, [0, 2], spearman=agreement(rows, rows).spearman)
    assert [label.get_text() for label in picture.axes[0].get_yticklabels()] == ["0 (unknown)", "2 (1.00)"]


def test_a_bad_rollout_is_refused() -> None:
    for layers, residual, message in [
        ([], 0.5, "there are no layers"),
        ([np.eye(2)], 1.5, "residual is 1.5"),
        ([np.eye(2)], math.nan, "residual is nan"),
        ([np.eye(2), np.eye(3)], 0.5, r"layer 1 has shape \(3, 3\)"),
        ([-np.eye(2)], 0.5, "give normalise_rows"),
        ([np.full((2, 2), math.nan)], 0.5, "give normalise_rows"),
    ]:
        with pytest.raises(InputError, match=message):
            rollout(layers, residual)


def test_a_bad_gradient_is_refused() -> None:
    model, input_ids = small_model("gated_conv")
    for ids, targets, directions, message in [
        (input_ids[0], [1], 1, r"input_ids has shape \(12,\)"),
        (input_ids.expand(2, -1), [1], 1, r"input_ids has shape \(2, 12\)"),
        (input_ids, [1, 12], 1, "target 12 is not in the text: choose one from 0 to 11"),
        (input_ids, [-1], 1, "target -1 is not"),
        (input_ids, [1], 0, "directions is 0"),
    ]:
        with pytest.raises(InputError, match=message):
            gradient_map(model, ids, targets, directions)
    with pytest.raises(InputError, match="take the same targets"):
        agreement(np.ones((2, 3)), np.ones((1, 3)))
