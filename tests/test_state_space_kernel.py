"""The state-space scan: the chunked form against the loop, in values, gradients, states and packings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmix.kernels.state_space import decayed_weights, scan_flops, state_space_scan, state_space_step

HEADS, WIDTH, GROUPS, SIZE = 4, 3, 2, 5


def _inputs(batch: int, time: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(time)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    dt = normal(batch, time, HEADS).abs() * 0.3
    A = -normal(HEADS).abs() - 0.2
    return [
        normal(batch, time, HEADS, WIDTH),
        dt,
        A,
        normal(batch, time, GROUPS, SIZE),
        normal(batch, time, GROUPS, SIZE),
        normal(HEADS),
    ]


def _state(batch: int) -> torch.Tensor:
    return torch.randn(batch, HEADS, WIDTH, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_loop_equals_the_formula_by_hand() -> None:
    x = torch.tensor([2.0, 3.0], dtype=torch.float64).view(1, 2, 1, 1)
    dt = torch.tensor([0.5, 0.25], dtype=torch.float64).view(1, 2, 1)
    A, D = torch.tensor([-2.0], dtype=torch.float64), torch.tensor([10.0], dtype=torch.float64)
    B = torch.tensor([1.0, 4.0], dtype=torch.float64).view(1, 2, 1, 1)
    C = torch.tensor([3.0, 5.0], dtype=torch.float64).view(1, 2, 1, 1)
    y, state = state_space_scan(x, dt, A, B, C, D, implementation="reference")
    first = 0.5 * 2.0 * 1.0
    second = math.exp(-0.5) * first + 0.25 * 3.0 * 4.0
    assert y.flatten().tolist() == pytest.approx([first * 3.0 + 20.0, second * 5.0 + 30.0])
    assert state.item() == pytest.approx(second)


@pytest.mark.parametrize("time", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("chunk", [1, 4, 16, 64])
def test_chunked_equals_loop_in_values_state_and_gradients(time: int, chunk: int) -> None:
    inputs, state = _inputs(2, time), _state(2)
    results = []
    for implementation in ("reference", "chunked"):
        leaves = [tensor.clone().requires_grad_() for tensor in (*inputs, state)]
        y, after = state_space_scan(*leaves[:6], state=leaves[6], chunk=chunk, implementation=implementation)
        weight = torch.arange(y.numel(), dtype=y.dtype).view_as(y).cos()
        grads = torch.autograd.grad((y * weight).sum() + after.square().sum(), leaves)
        results.append([y, after, *grads])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_packed_documents_equal_separate_ones(data: st.DataObject) -> None:
    time = data.draw(st.integers(1, 20))
    borders = [data.draw(st.booleans(), label=f"border before {t}") for t in range(time)]
    chunk = data.draw(st.integers(1, 24))
    inputs, state = _inputs(1, time), _state(1)
    runs = torch.tensor(borders).long().cumsum(0)[None]
    expected, before = [], state
    for run in runs.unique():
        part = runs[0] == run
        if run:
            before = torch.zeros_like(state)
        x, dt, A, B, C, D = inputs
        y, before = state_space_scan(
            x[:, part], dt[:, part], A, B[:, part], C[:, part], D, state=before, implementation="reference"
        )
        expected.append(y)
    for implementation in ("reference", "chunked"):
        y, after = state_space_scan(*inputs, state=state, runs=runs, chunk=chunk, implementation=implementation)
        torch.testing.assert_close(y, torch.cat(expected, dim=1), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(time=st.integers(2, 20), cut=st.floats(0, 1), chunk=st.integers(1, 8))
def test_pieces_equal_the_whole(time: int, cut: float, chunk: int) -> None:
    x, dt, A, B, C, D = _inputs(2, time)
    at = min(time - 1, max(1, round(cut * time)))
    whole, end = state_space_scan(x, dt, A, B, C, D, chunk=chunk, implementation="chunked")
    first, state = state_space_scan(
        x[:, :at], dt[:, :at], A, B[:, :at], C[:, :at], D, chunk=chunk, implementation="chunked"
    )
    second, after = state_space_scan(
        x[:, at:], dt[:, at:], A, B[:, at:], C[:, at:], D, state=state, chunk=chunk, implementation="chunked"
    )
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(after, end, rtol=1e-9, atol=1e-11)


def test_steps_equal_the_scan() -> None:
    x, dt, A, B, C, D = _inputs(2, 9)
    expected, end = state_space_scan(x, dt, A, B, C, D)
    state = torch.zeros_like(end)
    for t in range(9):
        y, state = state_space_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], D, state)
        torch.testing.assert_close(y, expected[:, t])
    torch.testing.assert_close(state, end)


def test_weights_times_inputs_equal_the_scan() -> None:
    x, dt, A, B, C, D = _inputs(2, 9)
    expected, _ = state_space_scan(x, dt, A, B, C, D)
    found = decayed_weights(dt, A, B, C) @ x.transpose(1, 2)
    torch.testing.assert_close(found.transpose(1, 2) + D[:, None] * x, expected)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
def test_float32_stays_accurate_and_finite_at_extreme_steps(scale: float) -> None:
    """A huge step forgets everything; the small ones after it must not lose digits to the sum of logarithms."""
    x, dt, A, B, C, D = _inputs(2, 64, torch.float32)
    dt[:, :10] = dt[:, :10] * scale
    leaves = [tensor.requires_grad_() for tensor in (x, dt, A, B, C, D)]
    wide = [tensor.detach().double().requires_grad_() for tensor in leaves]
    y, _ = state_space_scan(*leaves)
    exact, _ = state_space_scan(*wide)
    # One chunk of 64 sums fewer than 64 * 5 products, each rounded to 2^-24 of the largest.
    bound = 64 * 5 * 2**-24
    assert (y - exact).abs().max() <= bound * exact.abs().max()
    grads = torch.autograd.grad(y.square().sum(), leaves)
    exact_grads = torch.autograd.grad(exact.square().sum(), wide)
    for found, expected in zip(grads, exact_grads, strict=True):
        assert (found - expected).abs().max() <= 4 * bound * expected.abs().max()


def test_positions_after_the_end_of_a_chunk_do_not_touch_the_state() -> None:
    x, dt, A, B, C, D = _inputs(1, 5)
    runs = torch.tensor([[0, 0, 1, 1, 1]])
    _, expected = state_space_scan(x, dt, A, B, C, D, runs=runs, implementation="reference")
    _, found = state_space_scan(x, dt, A, B, C, D, runs=runs, chunk=2, implementation="chunked")
    torch.testing.assert_close(found, expected)


def test_low_precision_is_computed_in_float32() -> None:
    inputs = _inputs(2, 33, torch.bfloat16)
    y, state = state_space_scan(*inputs)
    exact, exact_state = state_space_scan(*(tensor.double() for tensor in inputs))
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    torch.testing.assert_close(state.double(), exact_state, rtol=1e-5, atol=1e-6)
    assert (y - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_autocast_does_not_round_the_scan() -> None:
    inputs = _inputs(2, 33, torch.float32)
    expected, _ = state_space_scan(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = state_space_scan(*inputs)
    torch.testing.assert_close(found, expected)


def test_flops_by_hand() -> None:
    # Two chunks of 3 positions: scores 2*3*3*5 a group, inside 2*3*3*3 a head, states and reading 2*3*3*5 a head each.
    assert scan_flops(6, HEADS, WIDTH, GROUPS, SIZE, 3) == 2 * (GROUPS * 90 + HEADS * 54 + 2 * HEADS * 90)


@pytest.mark.parametrize(
    "change, words",
    [
        ({1: torch.ones(2, 3, HEADS)}, "dt"),
        ({3: torch.ones(2, 4, 3, SIZE)}, "groups"),
        ({2: torch.ones(HEADS + 1)}, "heads"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[int, torch.Tensor], words: str) -> None:
    inputs = _inputs(2, 4)
    for index, tensor in change.items():
        inputs[index] = tensor
    with pytest.raises(ValueError, match=words):
        state_space_scan(*inputs)


def test_unknown_implementation_and_chunk_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one of reference, chunked"):
        state_space_scan(*_inputs(1, 2), implementation="fused")
    with pytest.raises(ValueError, match="chunk is 0"):
        state_space_scan(*_inputs(1, 2), chunk=0)
