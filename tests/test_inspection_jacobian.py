"""The Jacobian of recurrences within a budget: exact where it can be, else right on average and within its bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmix.errors import InputError
from seqmix.inspection.jacobian import jacobian_matrix, position_flops, relative_error
from seqmix.kernels.documents import Placement
from seqmix.mixer import Mixed, Mixer, State, Traits
from seqmix.mixers import create_mixer
from seqmix.mixers.recurrent.base import RecurrentState
from seqmix.mixers.recurrent.gru_rnn import RNN

NAMES = ("lstm", "gru", "rnn")
PLENTY = 1e12


def budget_for(mixer: Mixer, time: int, directions: int) -> float:
    """The FLOPs that pay for so many directions of a causal mixer."""
    return directions * position_flops(mixer) * time * (time + 1) // 2


def mixer_and_input(name: str, dim: int, time: int, seed: int = 0, **options: Any) -> tuple[Mixer, Tensor]:
    torch.manual_seed(seed)
    return create_mixer(name, dim, **options).double(), torch.randn(1, time, dim, dtype=torch.float64)


def exact_jacobian(mixer: Mixer, x: Tensor) -> Tensor:
    """dy[t, d] / dx[s, e] as (time, dim, source, dim)."""
    return torch.autograd.functional.jacobian(lambda x: mixer(x).y, x)[0, :, :, 0]


class BothWays(RNN):
    """Not causal: Elman's network over the text and over its reverse. Its steps know the one way alone."""

    @property
    def traits(self) -> Traits:
        return dataclasses.replace(super().traits, causal=False)

    def _loop(
        self, x: Tensor, memories: Sequence[Tensor], placement: Placement, implementation: str | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        forth, after = super()._loop(x, memories, placement, implementation)
        back, _ = super()._loop(x.flip(1), memories, placement, implementation)
        return forth + back.flip(1), after


class Forgetful(RNN):
    """A causal network whose steps have the right values and no gradient across them."""

    def step(self, x: Tensor, state: State) -> Mixed:
        assert isinstance(state, RecurrentState)
        return super().step(x, RecurrentState(state.position, state.document, state.hidden.detach()))


@settings(max_examples=20)
@given(
    name=st.sampled_from(NAMES),
    dim=st.integers(1, 6),
    time=st.integers(1, 12),
    options=st.sampled_from([{}, {"hidden": 4}, {"hidden": 3, "bias": False}]),
    seed=st.integers(0, 99),
)
def test_is_the_mixers_own_matrix_where_the_budget_allows(
    name: str, dim: int, time: int, options: Mapping[str, Any], seed: int
) -> None:
    mixer, x = mixer_and_input(name, dim, time, seed, **options)
    matrix, directions = jacobian_matrix(mixer, x, budget=PLENTY)
    assert directions is None
    torch.testing.assert_close(matrix, mixer.mixing(x)[0].matrix[:, 0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name, directions", [("rnn", 1), ("lstm", 3), ("gru", 7)])
def test_the_squares_are_right_on_average_and_spread_as_the_formula_says(name: str, directions: int) -> None:
    dim, time, draws = 8, 4, 400
    mixer, x = mixer_and_input(name, dim, time)
    jacobian = exact_jacobian(mixer, x)
    squares_TS = jacobian.square().sum((1, 3))
    gram = torch.einsum("tdse,tfse->tsdf", jacobian, jacobian)
    spread = squares_TS.square() / gram.square().sum((2, 3)).clamp(min=1e-300)
    reached = torch.ones(time, time).tril().bool()
    variance = 2 * dim * (dim - directions) / (directions * (dim - 1) * (dim + 2)) * (1 / spread - 1 / dim)
    found = []
    for seed in range(draws):
        matrix, told = jacobian_matrix(mixer, x, budget=budget_for(mixer, time, directions), seed=seed)
        assert told == directions
        found.append(matrix[0].square())
    share = torch.stack(found)[:, reached] / squares_TS[reached]
    deviation = variance[reached].sqrt()
    assert bool((deviation <= relative_error(directions, dim)).all())
    # 10 means of 400 draws: five standard errors are passed by chance once in 10^5 tests.
    assert bool(((share.mean(0) - 1).abs() <= 5 * deviation / draws**0.5).all())
    # The relative error of a variance from n draws is sqrt((kurtosis - 1) / n); a square of a bounded share of few
    # directions has a kurtosis below 15.
    assert bool(((share.var(0) / variance[reached] - 1).abs() <= 5 * (14 / draws) ** 0.5).all())


@pytest.mark.parametrize("kind", [BothWays, Forgetful])
@pytest.mark.parametrize("directions", [2, 5])
def test_a_mixer_without_differentiable_steps_is_taken_through_forward(kind: type[RNN], directions: int) -> None:
    torch.manual_seed(0)
    dim, time = 5, 7
    mixer, x = kind(dim).double(), torch.randn(1, time, dim, dtype=torch.float64)
    positions = time * (time + 1) // 2 if mixer.traits.causal else time**2
    exact = exact_jacobian(mixer, x).square().sum((1, 3)).sqrt()
    budget = directions * position_flops(mixer) * positions
    matrix, told = jacobian_matrix(mixer, x, budget=budget)
    assert told == (None if directions == dim else directions)
    if told is None:
        torch.testing.assert_close(matrix[0], exact, rtol=1e-10, atol=1e-12)
    else:
        # Σ ‖Jᵀ q‖² over orthonormal q is at most ‖J‖², and zero only where J is.
        assert bool((matrix[0].square() <= dim / directions * exact.square() + 1e-12).all())
        assert torch.equal(matrix[0] > 0, exact > 0)


def test_the_least_budget_buys_one_direction() -> None:
    mixer, x = mixer_and_input("gru", 4, 5)
    matrix, directions = jacobian_matrix(mixer, x, budget=1)
    assert directions == 1
    assert matrix.shape == (1, 5, 5)
    assert bool((matrix[0].triu(1) == 0).all())
    assert relative_error(1, 4) == pytest.approx(1.0)
    assert relative_error(None, 4) == relative_error(4, 4) == 0.0


def test_float32_and_float64_draw_the_same_directions() -> None:
    mixer, x = mixer_and_input("lstm", 6, 9)
    wide, _ = jacobian_matrix(mixer, x, budget=1)
    narrow, _ = jacobian_matrix(mixer.float(), x.float(), budget=1)
    # 9 steps of products over 6 + 6 inputs round at 6e-8 each.
    torch.testing.assert_close(narrow.double(), wide, rtol=9 * 12 * 6e-8, atol=1e-7)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4), (1, 0, 4)])
def test_another_shape_than_one_text_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"needs \(1, time, dim\)"):
        jacobian_matrix(create_mixer("rnn", 4), torch.zeros(shape), budget=PLENTY)


def test_a_budget_without_end_buys_the_exact_matrix() -> None:
    mixer, x = mixer_and_input("rnn", 3, 4)
    assert jacobian_matrix(mixer, x, budget=float("inf"))[1] is None


@pytest.mark.parametrize("budget", [0, -1.0, float("nan")])
def test_a_budget_that_buys_nothing_is_refused(budget: float) -> None:
    with pytest.raises(InputError, match="must be above 0"):
        jacobian_matrix(create_mixer("rnn", 4), torch.zeros(1, 2, 4), budget=budget)
