"""The causal mean and the dense triangle against loops written from their equations, and in pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmix import create_mixer
from seqmix.errors import InputError
from seqmix.mixer import Mixer
from seqmix.mixers.dense import Dense
from seqmix.mixers.pool import running_sums

FLOAT32_TOLERANCE = 64 * torch.finfo(torch.float32).eps
"""Sums of at most 64 terms of size about 1."""

EXAMPLES: list[tuple[str, int, dict[str, Any]]] = [
    ("pool", 7, {}),
    ("pool", 4, {"bias": True}),
    ("dense", 6, {"heads": 3, "max_length": 20, "bias": True}),
    ("dense", 5, {"max_length": 17}),
]


def build(name: str, dim: int, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Mixer:
    torch.manual_seed(0)
    return create_mixer(name, dim, **options).to(dtype)


def weight_of(mixer: Mixer, head: int, target: int, source: int) -> Tensor | float:
    """The entry of the matrix, by its definition."""
    if isinstance(mixer, Dense):
        return mixer.weight[head, target * (target + 1) // 2 + source]
    return 1 / (target + 1)


def by_loops(mixer: Any, x: Tensor, document_ids: Tensor | None = None) -> Tensor:
    heads = mixer.config.heads if isinstance(mixer, Dense) else 1
    rows = []
    for row in range(len(x)):
        ids = [0] * x.shape[1] if document_ids is None else document_ids[row].tolist()
        outputs, start = [], 0
        for position in range(x.shape[1]):
            if position and ids[position] != ids[position - 1]:
                start = position
            target = position - start
            parts = [mixer.v_proj(x[row, start + source]).chunk(heads) for source in range(target + 1)]
            mixed = [
                sum(weight_of(mixer, head, target, source) * part[head] for source, part in enumerate(parts))
                for head in range(heads)
            ]
            outputs.append(mixer.out_proj(torch.cat(mixed)))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def gradients(mixer: Mixer, x: Tensor, weight: Tensor, function: Any, ids: Tensor | None) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = function(mixer, leaf, ids)
    return list(torch.autograd.grad((y * weight).sum(), [leaf, *mixer.parameters()]))


@pytest.mark.parametrize("name, dim, options", EXAMPLES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_equal_the_equation(
    name: str, dim: int, options: dict[str, Any], packed: bool, dtype: torch.dtype
) -> None:
    exact, mixer = build(name, dim, options), build(name, dim, options, dtype)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 0], [2, 2, 2, 2, 2, 2, 2], [1, 2, 3, 3, 3, 3, 3]]) if packed else None
    x = torch.randn(3, 7, dim, dtype=torch.float64)
    cotangent = torch.randn_like(x)
    tolerance = 1e-12 if dtype == torch.float64 else FLOAT32_TOLERANCE
    y = mixer(x.to(dtype), document_ids=ids).y
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), by_loops(exact, x, ids), rtol=0, atol=tolerance)
    expected = gradients(exact, x, cotangent, by_loops, ids)
    found = gradients(mixer, x.to(dtype), cotangent.to(dtype), lambda mixer, x, ids: mixer(x, document_ids=ids).y, ids)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=4 * tolerance * float(other.abs().max()))


def documents(draw: Any, time: int) -> list[int]:
    """Ids of random runs; an id may come back."""
    ids: list[int] = []
    while len(ids) < time:
        ids += [draw(st.integers(0, 2))] * draw(st.integers(1, 6))
    return ids[:time]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), which=st.sampled_from(EXAMPLES), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_any_cut_of_any_packing_equals_one_forward(data: Any, which: Any, dtype: torch.dtype) -> None:
    name, dim, options = which
    time = 17
    exact, mixer = build(name, dim, options), build(name, dim, options, dtype)
    x = torch.randn(2, time, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([documents(data.draw, time) for _ in range(2)])
    expected = exact(x, document_ids=ids)
    cuts = sorted(data.draw(st.sets(st.integers(1, time - 1), max_size=5)))
    capacity = data.draw(st.sampled_from([None, time, time + 3]))
    state = data.draw(st.sampled_from([None, mixer.init_state(2, capacity, dtype=dtype)]))
    outputs = []
    with torch.no_grad():
        for first, last in zip([0, *cuts], [*cuts, time], strict=True):
            part = x[:, first:last].to(dtype)
            continues = state is not None and torch.equal(ids[:, first], state.document) and last == first + 1
            if continues and data.draw(st.booleans()):
                y, state = mixer.step(part[:, 0], state)
                outputs.append(y[:, None])
            else:
                y, state = mixer(part, state, document_ids=ids[:, first:last], capacity=capacity)
                outputs.append(y)
    tolerance = 1e-12 if dtype == torch.float64 else FLOAT32_TOLERANCE
    torch.testing.assert_close(torch.cat(outputs, dim=1).double(), expected.y, rtol=0, atol=tolerance)
    assert torch.equal(state.position, expected.state.position)
    assert torch.equal(state.document, expected.state.document)


def test_nothing_infinite_crosses_a_border() -> None:
    values = torch.tensor([[1.0, torch.inf, torch.nan, 2.0, 3.0, 4.0, 5.0]])[..., None]
    runs = torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
    sums = running_sums(values, runs)[0, :, 0]
    assert sums[3:].tolist() == [2.0, 5.0, 4.0, 9.0]
    mixer = build("pool", 3, {}, torch.float32)
    x = torch.randn(1, 6, 3)
    spoiled = x.clone()
    spoiled[:, :2] = torch.nan
    ids = torch.tensor([[0, 0, 1, 1, 1, 1]])
    assert torch.equal(mixer(spoiled, document_ids=ids).y[:, 2:], mixer(x, document_ids=ids).y[:, 2:])


def test_a_border_cancels_nothing() -> None:
    values = torch.cat([torch.full((1, 5, 1), 1e30), torch.full((1, 6, 1), 1e-30)], dim=1)
    runs = torch.tensor([[0] * 5 + [1] * 6])
    expected = 1e-30 * torch.arange(1, 7)
    torch.testing.assert_close(running_sums(values, runs)[0, 5:, 0], expected.float())


def test_a_mean_of_many_is_as_exact_as_a_mean_of_few() -> None:
    mixer = build("pool", 2, {}, torch.float32)
    with torch.no_grad():
        for layer in (mixer.v_proj, mixer.out_proj):
            layer.weight.copy_(torch.eye(2))
        x = 1000 + torch.rand(1, 200_000, 2)
        state, piece = None, 1000
        for start in range(0, x.shape[1], piece):
            y, state = mixer(x[:, start : start + piece], state)
        expected = x.double().mean(dim=1)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(y[:, -1].double(), expected, rtol=2 * eps, atol=0)


def test_pool_state_is_the_sum() -> None:
    mixer = build("pool", 4, {})
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    state = mixer(x).state
    torch.testing.assert_close(state.total, mixer.v_proj(x).sum(dim=1))
    assert mixer.to(torch.float32).init_state(2).nbytes == state.nbytes == mixer.cost(2, 100).state_bytes


def test_dense_begins_near_the_causal_mean() -> None:
    mixer = build("dense", 8, {"heads": 2, "max_length": 50})
    matrix = mixer.mixing(torch.zeros(1, 50, 8, dtype=torch.float64))[0].matrix
    mean = torch.ones(50, 50, dtype=torch.float64).tril() / torch.arange(1, 51)[:, None]
    assert torch.equal(matrix[0, 0] != 0, mean != 0)
    relative = (matrix[0] - mean) * torch.arange(1, 51)[:, None]
    assert 0.05 < float(relative[:, mean != 0].detach().std()) < 0.2
    assert not torch.equal(matrix[0, 0], matrix[0, 1])


def test_dense_learns_any_lower_triangle() -> None:
    mixer = build("dense", 4, {"max_length": 6})
    triangle = torch.randn(6, 6, dtype=torch.float64).tril()
    rows, columns = torch.tril_indices(6, 6)
    with torch.no_grad():
        mixer.weight.copy_(triangle[rows, columns][None])
        for layer in (mixer.v_proj, mixer.out_proj):
            layer.weight.copy_(torch.eye(4))
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(mixer(x).y, triangle @ x)
    torch.testing.assert_close(mixer(x[:, :4]).y, triangle[:4, :4] @ x[:, :4])


def test_dense_names_max_length_when_a_document_is_longer() -> None:
    mixer = build("dense", 4, {"max_length": 5}, torch.float32)
    x = torch.randn(2, 6, 4)
    words = "6 positions and max_length is 5: make the mixer with a larger max_length"
    with torch.no_grad():
        with pytest.raises(InputError, match=words):
            mixer(x)
        with pytest.raises(InputError, match=words):
            mixer.mixing(x)
        state = mixer(x[:, :5], capacity=9).state
        with pytest.raises(InputError, match=words):
            mixer(x[:, 5:], state)
        with pytest.raises(InputError, match=words):
            mixer.step(x[:, 5], state)
        ids = torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(2, 6)
        assert mixer(x, document_ids=ids).y.shape == x.shape
        with pytest.raises(InputError, match=words):
            mixer(x, document_ids=torch.zeros_like(ids))


def test_dense_capacity_is_named_when_full() -> None:
    mixer = build("dense", 4, {"max_length": 9}, torch.float32)
    x = torch.randn(1, 5, 4)
    with torch.no_grad():
        state = mixer(x[:, :4], capacity=4).state
        with pytest.raises(InputError, match="capacity is 4"):
            mixer.step(x[:, 4], state)


@pytest.mark.parametrize("lengths", [(3, 3), (2, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_slots_that_hold_nothing_are_never_read(lengths: tuple[int, int], dtype: torch.dtype) -> None:
    mixer = build("dense", 6, {"heads": 2, "max_length": 12}, dtype)
    x = torch.randn(2, 12, 6, dtype=dtype)
    with torch.no_grad():
        whole = mixer(x).y
        rows = [mixer(x[row : row + 1, :length], capacity=12).state for row, length in enumerate(lengths)]
        state = rows[0].cat(rows[1])
        for row, length in enumerate(lengths):
            state.stored[0][row, :, length:] = torch.nan
        stepped = state.clone()
        piece = torch.stack([x[row, length : length + 3] for row, length in enumerate(lengths)])
        expected = torch.stack([whole[row, length : length + 3] for row, length in enumerate(lengths)])
        torch.testing.assert_close(mixer(piece, state).y, expected)
        for step in range(3):
            y, stepped = mixer.step(piece[:, step], stepped)
            torch.testing.assert_close(y, expected[:, step])


@pytest.mark.parametrize("name, dim, options", EXAMPLES)
def test_gradients_flow_through_steps(name: str, dim: int, options: dict[str, Any]) -> None:
    mixer = build(name, dim, options)
    x = torch.randn(1, 5, dim, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 5, dim, dtype=torch.float64)
    (expected,) = torch.autograd.grad((mixer(x).y * weight).sum(), x)
    for capacity in (None, 5):
        state, outputs = mixer.init_state(1, capacity), []
        for index in range(5):
            y, state = mixer.step(x[:, index], state)
            outputs.append(y)
        (found,) = torch.autograd.grad((torch.stack(outputs, dim=1) * weight).sum(), x)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name, dim, options", EXAMPLES)
def test_step_cost_is_the_cost_of_the_step(name: str, dim: int, options: dict[str, Any]) -> None:
    from seqmix.flop_counter import FlopCounter

    mixer = build(name, dim, options, torch.float32)
    state = mixer.init_state(2, 6)
    with torch.no_grad():
        for position in range(6):
            cost = mixer.step_cost(2, position)
            with FlopCounter() as counter:
                state = mixer.step(torch.randn(2, dim), state).state
            assert cost.product_flops == counter.total
            assert cost.state_bytes == mixer.init_state(2, position + 1).nbytes


def test_bad_options_are_named() -> None:
    with pytest.raises(InputError, match="heads is 4, which does not divide dim 6"):
        create_mixer("dense", 6, heads=4)
    with pytest.raises(InputError, match="max_length is 0"):
        create_mixer("dense", 6, max_length=0)
    with pytest.raises(InputError, match="did you mean 'bias'"):
        create_mixer("pool", 6, bais=True)
    with pytest.raises(InputError, match="SlotState"):
        create_mixer("pool", 6).step(torch.randn(1, 6), create_mixer("dense", 6).init_state(1))
