"""The gated linear recurrence: every form against the loop, in values, states, gradients and packings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmix.kernels.library import library, why_missing
from seqmix.kernels.linear_recurrence import linear_recurrence, native

EPS = torch.finfo(torch.float32).eps
needs_native = pytest.mark.skipif(library() is None, reason=why_missing() or "")
FAST = ["chunked", pytest.param("native", marks=needs_native)]


def _inputs(batch: int, time: int, dim: int) -> list[torch.Tensor]:
    """Factors of either sign, some of them zero."""
    generator = torch.Generator().manual_seed(time + dim)
    a, b, state = (
        torch.randn(*sizes, generator=generator, dtype=torch.float64)
        for sizes in ((batch, time, dim), (batch, time, dim), (batch, dim))
    )
    a = a.tanh()
    a[:, ::5, ::3] = 0.0
    return [a, b, state]


def _run(inputs: list[torch.Tensor], implementation: str, runs: torch.Tensor | None = None) -> list[torch.Tensor]:
    """h, the last, and the gradients of a, b and the state."""
    a, b, state = leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    h, last = linear_recurrence(a, b, state=state, runs=runs, implementation=implementation)
    score = (h * torch.arange(h.numel()).view_as(h).cos().to(h)).sum() + (last * 0.7).sum()
    return [h.detach(), last.detach(), *torch.autograd.grad(score, leaves)]


def _assert_within_rounding(found: list[torch.Tensor], exact: list[torch.Tensor], time: int) -> None:
    for one, other in zip(found, exact, strict=True):
        assert (one - other).abs().max() <= 4 * math.sqrt(time) * EPS * other.abs().max()


def test_loop_by_hand() -> None:
    a, b = (torch.tensor(values).double().view(1, 3, 1) for values in ([5.0, 0.5, -2.0], [1.0, 3.0, 0.25]))
    h, last = linear_recurrence(a, b, state=torch.tensor([[2.0]]).double(), implementation="reference")
    assert h.flatten().tolist() == [11.0, 8.5, -16.75]
    assert last.item() == -16.75


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("time, dim", [(1, 3), (2, 64), (15, 70), (16, 16), (17, 130), (50, 1)])
def test_fast_forms_equal_the_loop(implementation: str, packed: bool, time: int, dim: int) -> None:
    inputs = _inputs(2, time, dim)
    runs = torch.arange(time).expand(2, -1) // 6 + torch.tensor([[0], [1]]) if packed else None
    exact = _run(inputs, "reference", runs)
    _assert_within_rounding(_run([tensor.float() for tensor in inputs], implementation, runs), exact, time)


@pytest.mark.parametrize("time", [1, 9, 10, 37])
def test_chunked_equals_the_loop_in_float64(time: int) -> None:
    inputs = _inputs(2, time, 5)
    torch.testing.assert_close(_run(inputs, "chunked"), _run(inputs, "reference"), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("implementation", FAST)
@settings(max_examples=15, deadline=None)
@given(time=st.integers(2, 30), cut=st.floats(0, 1))
def test_pieces_equal_the_whole(implementation: str, time: int, cut: float) -> None:
    a, b, state = (tensor.float() for tensor in _inputs(1, time, 9))
    at = min(time - 1, max(1, round(cut * time)))
    whole, end = linear_recurrence(a, b, state=state, implementation=implementation)
    first, middle = linear_recurrence(a[:, :at], b[:, :at], state=state, implementation=implementation)
    second, last = linear_recurrence(a[:, at:], b[:, at:], state=middle, implementation=implementation)
    _assert_within_rounding([torch.cat([first, second], dim=1), last], [whole.double(), end.double()], time)


@pytest.mark.parametrize("implementation", FAST)
def test_strided_inputs_and_no_state(implementation: str) -> None:
    a, b, _ = (tensor.float() for tensor in _inputs(2, 12, 8))
    expected, _ = linear_recurrence(a, b, implementation=implementation)
    together = torch.cat([a, b], dim=2)
    found, _ = linear_recurrence(together[:, :, :8], together[:, :, 8:], implementation=implementation)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    turned = b.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(linear_recurrence(a, turned, implementation=implementation)[0], expected)


@pytest.mark.parametrize("implementation", ["reference", *FAST])
def test_no_time_at_all(implementation: str) -> None:
    a, b, state = (tensor.float() for tensor in _inputs(2, 0, 3))
    h, last = linear_recurrence(a, b, state=state, implementation=implementation)
    assert h.shape == (2, 0, 3)
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("implementation", FAST)
def test_no_rows_at_all(implementation: str) -> None:
    found = _run([tensor.float() for tensor in _inputs(0, 5, 4)], implementation)
    assert [tensor.shape for tensor in found] == [(0, 5, 4), (0, 4), (0, 5, 4), (0, 5, 4), (0, 4)]


def test_low_precision_is_computed_in_float32() -> None:
    inputs = [tensor.bfloat16() for tensor in _inputs(2, 20, 5)]
    h, last = linear_recurrence(*inputs[:2])
    exact, _ = linear_recurrence(*(tensor.double() for tensor in inputs[:2]))
    assert (h.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert (h - exact).abs().max() <= 2**-8 * exact.abs().max()


@needs_native
def test_the_compiled_operation_is_known_to_torch() -> None:
    inputs = [tensor.float().requires_grad_() for tensor in _inputs(1, 5, 4)]
    torch.library.opcheck(native._forward, (*inputs, None))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"b": torch.ones(2, 3, 5)}, r"a \(2, 4, 5\)"),
        ({"state": torch.ones(2, 4)}, r"\(batch, channels\) = \(2, 5\)"),
        ({"runs": torch.ones(2, 3)}, r"\(batch, time\) = \(2, 4\)"),
        ({"implementation": "fused"}, "choose one of reference, chunked, native"),
        ({"implementation": "native"}, "'native' is not available here"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], words: str) -> None:
    a, b, state = _inputs(2, 4, 5)
    with pytest.raises(ValueError, match=words):
        linear_recurrence(**{"a": a, "b": b, "state": state, **change})
