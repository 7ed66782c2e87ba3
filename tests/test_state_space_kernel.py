"""The state-space scan: the chunked form against the loop, in values, gradients, states and packings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmix.flop_counter import FlopCounter
from seqmix.kernels.library import library, why_missing
from seqmix.kernels.state_space import decayed_weights, native, scan_flops, state_space_scan, state_space_step

needs_native = pytest.mark.skipif(library() is None, reason=why_missing() or "")
FAST = ["chunked", pytest.param("native", marks=needs_native)]
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


def _run(
    inputs: list[torch.Tensor], state: torch.Tensor, implementation: str, runs: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """y, the state, and the gradients of all inputs and of the first state."""
    leaves = [tensor.clone().requires_grad_() for tensor in (*inputs, state)]
    y, after = state_space_scan(*leaves[:6], state=leaves[6], runs=runs, implementation=implementation)
    score = (y * torch.arange(y.numel()).view_as(y).cos().to(y)).sum() + (after * 0.7).sum()
    return [y.detach(), after.detach(), *torch.autograd.grad(score, leaves)]


def _assert_within_rounding(found: list[torch.Tensor], exact: list[torch.Tensor], time: int) -> None:
    """A result of up to `time` positions' products, each rounded to eps of the largest."""
    eps = torch.finfo(torch.float32).eps
    names = ("y", "state", "x", "dt", "A", "B", "C", "D", "state before")
    for name, one, other in zip(names, found, exact, strict=True):
        assert (one - other).abs().max() <= 16 * math.sqrt(time) * eps * other.abs().max(), name


@needs_native
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("time", [1, 2, 31, 32, 33, 64, 65, 150])
def test_compiled_equals_loop_in_values_state_and_gradients(time: int, packed: bool) -> None:
    inputs, state = _inputs(2, time), _state(1).expand(2, -1, -1, -1)
    runs = torch.arange(time).expand(2, -1) // 23 + torch.tensor([[0], [1]]) if packed else None
    exact = _run(inputs, state, "reference", runs)
    found = _run([tensor.float() for tensor in inputs], state.float(), "native", runs)
    _assert_within_rounding(found, exact, time)


@needs_native
@pytest.mark.parametrize("heads, width, groups, size", [(1, 1, 1, 1), (3, 33, 3, 7), (6, 16, 2, 20), (2, 70, 1, 4)])
def test_compiled_takes_any_sizes(heads: int, width: int, groups: int, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    batch, time = 2, 40

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    inputs = [normal(batch, time, heads, width), normal(batch, time, heads).abs(), -normal(heads).abs()]
    inputs += [normal(batch, time, groups, size), normal(batch, time, groups, size), normal(heads)]
    state = normal(batch, heads, width, size)
    exact = _run(inputs, state, "reference")
    _assert_within_rounding(_run([t.float() for t in inputs], state.float(), "native"), exact, time)


@needs_native
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_heads(threads: int) -> None:
    inputs, state = [tensor.float() for tensor in _inputs(1, 70)], _state(1).float()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = _run(inputs, state, "native")
        torch.set_num_threads(threads)
        found = _run(inputs, state, "native")
    finally:
        torch.set_num_threads(before)
    _assert_within_rounding(found, [tensor.double() for tensor in expected], 70)


@needs_native
def test_parts_of_one_projection_are_read_where_they_lie() -> None:
    inputs = [tensor.float() for tensor in _inputs(2, 20)]
    expected, _ = state_space_scan(*inputs, implementation="native")
    x, dt, A, B, C, D = inputs
    together = torch.cat([part.flatten(2) for part in (x, B, C)], dim=2)
    parts = together.split([HEADS * WIDTH, GROUPS * SIZE, GROUPS * SIZE], dim=2)
    x, B, C = (part.unflatten(2, tensor.shape[2:]) for part, tensor in zip(parts, (x, B, C), strict=True))
    found, _ = state_space_scan(x, dt, A, B, C, D, implementation="native")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@needs_native
def test_the_compiled_operation_is_known_to_torch() -> None:
    inputs, state = [tensor.float().requires_grad_() for tensor in _inputs(1, 9)], _state(1).float()
    torch.library.opcheck(native._forward, (*inputs, state.requires_grad_(), None, 64))


@needs_native
def test_what_is_not_a_number_stays_so() -> None:
    inputs = [tensor.float() for tensor in _inputs(1, 4)]
    inputs[1][0, 2, 1] = math.nan
    y, _ = state_space_scan(*inputs, implementation="native")
    assert y.isnan().any(dim=(0, 3)).nonzero().tolist() == [[2, 1], [3, 1]]


@pytest.mark.parametrize("implementation", ["reference", *FAST])
def test_no_time_at_all(implementation: str) -> None:
    inputs, state = [tensor[:, :0] if tensor.dim() > 1 else tensor for tensor in _inputs(2, 1)], _state(2)
    y, after = state_space_scan(*(t.float() for t in inputs), state=state.float(), implementation=implementation)
    assert y.shape == (2, 0, HEADS, WIDTH)
    torch.testing.assert_close(after, state.float())


@pytest.mark.parametrize("implementation", FAST)
def test_no_rows_at_all(implementation: str) -> None:
    inputs, state = [t[:0].float() if t.dim() > 1 else t.float() for t in _inputs(1, 7)], _state(1)[:0].float()
    found = _run(inputs, state, implementation)
    assert [found[0].shape, found[1].shape] == [(0, 7, HEADS, WIDTH), state.shape]
    assert (found[4] == 0).all()


@needs_native
@pytest.mark.parametrize("time, chunk", [(6, 3), (7, 3), (64, 64)])
def test_flops_do_not_depend_on_who_computes(time: int, chunk: int) -> None:
    inputs = [tensor.float() for tensor in _inputs(2, time)]
    counted = []
    for implementation in ("chunked", "native"):
        with FlopCounter() as counter:
            state_space_scan(*inputs, chunk=chunk, implementation=implementation)
        counted.append(counter.total)
    assert counted == [2 * scan_flops(time, HEADS, WIDTH, GROUPS, SIZE, chunk)] * 2


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


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
def test_float32_stays_accurate_and_finite_at_extreme_steps(scale: float, implementation: str) -> None:
    """A huge step forgets everything; the small ones after it must not lose digits to the sum of logarithms."""
    x, dt, A, B, C, D = _inputs(2, 64, torch.float32)
    dt[:, :10] = dt[:, :10] * scale
    leaves = [tensor.requires_grad_() for tensor in (x, dt, A, B, C, D)]
    wide = [tensor.detach().double().requires_grad_() for tensor in leaves]
    y, _ = state_space_scan(*leaves, implementation=implementation)
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
    with pytest.raises(ValueError, match="choose one of reference, chunked, native"):
        state_space_scan(*_inputs(1, 2), implementation="fused")
    with pytest.raises(ValueError, match=r"'native' is not available here"):
        state_space_scan(*_inputs(1, 2), implementation="native")
    with pytest.raises(ValueError, match="chunk is 0"):
        state_space_scan(*_inputs(1, 2), chunk=0)
