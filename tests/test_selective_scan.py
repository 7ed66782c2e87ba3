"""The selective scan: every form against the loop, in values, states, gradients and packings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmix.kernels.library import library, why_missing
from seqmix.kernels.selective_scan import native, selective_scan, selective_step

EPS = torch.finfo(torch.float32).eps
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "state")
needs_native = pytest.mark.skipif(library() is None, reason=why_missing() or "")
FAST = ["chunked", pytest.param("native", marks=needs_native)]


def _inputs(batch: int, time: int, dim: int, size: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(time * dim + size)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    whole, shared = (batch, time, dim), (batch, time, size)
    values = [normal(*whole), normal(*whole), -normal(dim, size).exp(), normal(*shared), normal(*shared)]
    values += [normal(dim), normal(*whole), normal(dim), normal(batch, dim, size)]
    return dict(zip(NAMES, values, strict=True))


def _run(
    inputs: dict[str, torch.Tensor], implementation: str, runs: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """y, the state, and the gradients of a sum that weighs every output differently."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    y, after = selective_scan(**leaves, dt_softplus=True, runs=runs, implementation=implementation)
    score = (y * torch.arange(y.numel()).view_as(y).cos().to(y)).sum() + (after * 0.7).sum()
    grads = torch.autograd.grad(score, list(leaves.values()))
    return {"y": y.detach(), "after": after.detach(), **dict(zip(leaves, grads, strict=True))}


def _assert_within_rounding(found: torch.Tensor, exact: torch.Tensor, sums: int, name: str) -> None:
    """A sum of `sums` products of numbers each rounded a few times, against the largest of the results."""
    assert found.shape == exact.shape, name
    assert (found - exact).abs().max() <= 8 * math.sqrt(sums) * EPS * exact.abs().max(), name


def test_loop_equals_the_formula_by_hand() -> None:
    x, dt = (torch.tensor(values, dtype=torch.float64).view(1, 2, 1) for values in ([2.0, 3.0], [0.5, 0.25]))
    A, D = torch.tensor([[-2.0]], dtype=torch.float64), torch.tensor([10.0], dtype=torch.float64)
    B, C = (torch.tensor(values, dtype=torch.float64).view(1, 2, 1) for values in ([1.0, 4.0], [3.0, 5.0]))
    y, state = selective_scan(x, dt, A, B, C, D, implementation="reference")
    first = 0.5 * 2.0 * 1.0
    second = math.exp(-0.5) * first + 0.25 * 3.0 * 4.0
    assert y.flatten().tolist() == pytest.approx([first * 3.0 + 20.0, second * 5.0 + 30.0])
    assert state.item() == pytest.approx(second)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("time, dim, size", [(1, 3, 2), (2, 16, 16), (16, 17, 1), (33, 40, 5), (50, 5, 16)])
def test_fast_forms_equal_the_loop(implementation: str, packed: bool, time: int, dim: int, size: int) -> None:
    inputs = _inputs(2, time, dim, size)
    runs = torch.arange(time).expand(2, -1) // 7 + torch.tensor([[0], [1]]) if packed else None
    exact = _run(inputs, "reference", runs)
    found = _run({name: tensor.float() for name, tensor in inputs.items()}, implementation, runs)
    for name, tensor in found.items():
        _assert_within_rounding(tensor, exact[name], 2 * time * max(size, dim), name)


def test_chunked_equals_the_loop_in_float64() -> None:
    inputs = _inputs(2, 37, 6, 4)
    runs = torch.arange(37).expand(2, -1) // 10
    torch.testing.assert_close(_run(inputs, "chunked", runs), _run(inputs, "reference", runs), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("implementation", FAST)
def test_what_is_left_out_counts_as_nothing(implementation: str) -> None:
    inputs = {name: tensor.float() for name, tensor in _inputs(1, 9, 5, 3).items() if name in NAMES[:5]}
    y, after = selective_scan(**inputs, implementation=implementation)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    exact, exact_after = selective_scan(**wide, implementation="reference")
    _assert_within_rounding(y, exact, 27, "y")
    _assert_within_rounding(after, exact_after, 9, "state")


@needs_native
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_channels(threads: int) -> None:
    """One row and several threads: B and C belong to channels of different threads."""
    inputs = {name: tensor.float() for name, tensor in _inputs(1, 20, 70, 4).items()}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = _run(inputs, "native")
        torch.set_num_threads(threads)
        found = _run(inputs, "native")
    finally:
        torch.set_num_threads(before)
    for name, tensor in found.items():
        _assert_within_rounding(tensor, expected[name], 70, name)


@pytest.mark.parametrize("implementation", FAST)
@settings(max_examples=15, deadline=None)
@given(time=st.integers(2, 40), cut=st.floats(0, 1))
def test_pieces_equal_the_whole(implementation: str, time: int, cut: float) -> None:
    inputs = {name: tensor.float() for name, tensor in _inputs(1, time, 9, 3).items()}
    at = min(time - 1, max(1, round(cut * time)))
    whole, end = selective_scan(**inputs, dt_softplus=True, implementation=implementation)
    sequences = ("x", "dt", "B", "C", "z")
    first = {name: tensor[:, :at] if name in sequences else tensor for name, tensor in inputs.items()}
    second = {name: tensor[:, at:] if name in sequences else tensor for name, tensor in inputs.items()}
    y, second["state"] = selective_scan(**first, dt_softplus=True, implementation=implementation)
    rest, after = selective_scan(**second, dt_softplus=True, implementation=implementation)
    _assert_within_rounding(torch.cat([y, rest], dim=1), whole.double(), time, "y")
    _assert_within_rounding(after, end.double(), time, "state")


def test_steps_equal_the_scan() -> None:
    inputs = _inputs(2, 9, 5, 3)
    expected, end = selective_scan(**inputs, dt_softplus=True)
    state = inputs["state"]
    for t in range(9):
        x, dt, B, C, z = (inputs[name][:, t] for name in ("x", "dt", "B", "C", "z"))
        fixed = {name: inputs[name] for name in ("A", "D", "dt_bias")}
        y, state = selective_step(x, dt, B=B, C=C, z=z, state=state, dt_softplus=True, **fixed)
        torch.testing.assert_close(y, expected[:, t])
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("implementation", FAST)
def test_strided_inputs_are_read_where_they_lie(implementation: str) -> None:
    """x and z as halves of a projection, dt as a transposed product, B and C as parts of one tensor."""
    inputs = {name: tensor.float() for name, tensor in _inputs(2, 12, 8, 4).items()}
    expected, _ = selective_scan(**inputs, dt_softplus=True, implementation=implementation)
    inputs["x"], inputs["z"] = torch.cat([inputs["x"], inputs["z"]], dim=2).chunk(2, dim=2)
    inputs["B"], inputs["C"] = torch.cat([inputs["B"], inputs["C"]], dim=2).chunk(2, dim=2)
    inputs["dt"] = inputs["dt"].transpose(1, 2).contiguous().transpose(1, 2)
    found, _ = selective_scan(**inputs, dt_softplus=True, implementation=implementation)
    _assert_within_rounding(found, expected, 4, "y")


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("size", [-200.0, -20.0, 20.0, 1000.0])
def test_extreme_step_sizes_stay_finite(implementation: str, size: float) -> None:
    """A huge step forgets everything, a tiny one changes nothing, and neither overflows."""
    inputs = _inputs(1, 6, 4, 3)
    inputs["dt"][:, 2:4] = size
    exact = _run(inputs, "reference")
    found = _run({name: tensor.float() for name, tensor in inputs.items()}, implementation)
    for name, tensor in found.items():
        assert tensor.isfinite().all(), name
        _assert_within_rounding(tensor, exact[name], 36, name)


@needs_native
def test_what_is_not_a_number_stays_so() -> None:
    inputs = {name: tensor.float() for name, tensor in _inputs(1, 4, 3, 2).items()}
    inputs["dt"][0, 2, 1] = math.nan
    y, _ = selective_scan(**inputs, dt_softplus=True, implementation="native")
    assert y.isnan().nonzero().tolist() == [[0, 2, 1], [0, 3, 1]]


def test_low_precision_is_computed_in_float32() -> None:
    inputs = {name: tensor.bfloat16() for name, tensor in _inputs(2, 20, 5, 3).items()}
    y, after = selective_scan(**inputs, dt_softplus=True)
    exact, exact_after = selective_scan(**{name: t.double() for name, t in inputs.items()}, dt_softplus=True)
    assert (y.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    assert (y - exact).abs().max() <= 2**-8 * exact.abs().max()
    _assert_within_rounding(after, exact_after, 20, "state")


@pytest.mark.parametrize("implementation", ["reference", *FAST])
def test_no_time_at_all(implementation: str) -> None:
    inputs = {name: tensor.float() for name, tensor in _inputs(2, 0, 5, 3).items()}
    y, after = selective_scan(**inputs, implementation=implementation)
    assert y.shape == (2, 0, 5)
    torch.testing.assert_close(after, inputs["state"])


@pytest.mark.parametrize("implementation", FAST)
def test_no_rows_at_all(implementation: str) -> None:
    inputs = {name: tensor.float() for name, tensor in _inputs(0, 5, 4, 3).items()}
    found = _run(inputs, implementation)
    assert found["y"].shape == (0, 5, 4)
    assert (found["A"] == 0).all()


@needs_native
@pytest.mark.parametrize("gate", [True, False])
def test_the_compiled_operation_is_known_to_torch(gate: bool) -> None:
    inputs = _inputs(1, 5, 4, 3, torch.float32)
    leaves = [inputs[name].requires_grad_() if gate or name != "z" else None for name in NAMES]
    torch.library.opcheck(native._forward, (*leaves, None, True, True))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"dt": torch.ones(2, 3, 5)}, "dt"),
        ({"A": torch.ones(4, 3)}, "channels = 5"),
        ({"B": torch.ones(2, 4, 2)}, "states"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        selective_scan(**{**_inputs(2, 4, 5, 3), **change})


def test_unknown_and_unfit_implementations_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one of reference, chunked, native"):
        selective_scan(**_inputs(1, 2, 3, 2), implementation="fused")
    with pytest.raises(ValueError, match=r"'native' is not available here"):
        selective_scan(**_inputs(1, 2, 3, 2), implementation="native")
