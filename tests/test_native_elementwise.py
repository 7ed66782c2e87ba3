"""The compiled norms, gates and the loss of logits against their references, in values and gradients."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels import gate, library, norm
from seqmix.kernels.cross_entropy import chunked
from seqmix.kernels.gate import swiglu
from seqmix.kernels.library import why_missing
from seqmix.kernels.norm import add_norm, gated_rms_norm

pytestmark = pytest.mark.skipif(library.library() is None, reason=str(why_missing()))

EPS = 1e-5
SIZES = [(1, 1), (3, 2), (2, 15), (5, 16), (4, 17), (7, 33), (2, 100), (300, 64)]
SINGLE, HALF = torch.finfo(torch.float32).eps, torch.finfo(torch.bfloat16).eps
Operation = Callable[..., Tensor | tuple[Tensor, ...]]


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "SMALL", 0)
    monkeypatch.setattr(gate, "SMALL", 0)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def values_and_gradients(operation: Operation, inputs: Sequence[Tensor | None], **options: Any) -> list[Tensor]:
    """All outputs, and the gradients of a sum of them with weights that differ from place to place."""
    own = [None if one is None else one.detach().clone().requires_grad_() for one in inputs]
    outputs = operation(*own, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [draw(*one.shape, seed=90 + number).to(one.dtype) for number, one in enumerate(outputs)]
    grads = torch.autograd.grad(outputs, [one for one in own if one is not None], weights)
    return [*(one.detach() for one in outputs), *grads]


def assert_as_reference(operation: Operation, inputs: Sequence[Tensor | None], terms: int, **options: Any) -> None:
    """float32 to the rounding of sums of `terms` numbers, bfloat16 to its own rounding of inputs and results."""
    wide = values_and_gradients(
        operation, [None if one is None else one.double() for one in inputs], implementation="reference", **options
    )
    found = values_and_gradients(operation, inputs, implementation="native", **options)
    for ours, exact in zip(found, wide, strict=True):
        band = SINGLE * (terms + 8) * max(1.0, float(exact.abs().max()))
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=band)
    low = [None if one is None else one.bfloat16() for one in inputs]
    exact_low = values_and_gradients(
        operation, [None if one is None else one.double() for one in low], implementation="reference", **options
    )
    usual = values_and_gradients(operation, low, implementation="reference", **options)
    for ours, theirs, exact in zip(
        values_and_gradients(operation, low, implementation="native", **options), usual, exact_low, strict=True
    ):
        assert ours.dtype == torch.bfloat16
        band = 2 * (theirs.double() - exact).abs().max() + 2 * HALF * max(1e-3, float(exact.abs().max()))
        assert (ours.double() - exact).abs().max() <= band


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["rms", "layer", "layer without bias"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_norms_are_the_references(isa: str, size: tuple[int, int], kind: str, with_residual: bool) -> None:
    rows, dim = size
    if kind != "rms" and dim == 1:
        pytest.skip("a centred row of one number is zero, and its gradient eps alone")
    # A row far from zero would lose its digits in the mean of float32, in torch's LayerNorm as in ours.
    inputs = (
        draw(rows, dim, seed=1),
        draw(rows, dim, seed=2) if with_residual else None,
        1 + 0.5 * draw(dim, seed=3),
        draw(dim, seed=4) if kind == "layer" else None,
    )
    # Rows of two numbers can lie close together, which multiplies a rounding by 1 / their distance.
    magnification = 1.0
    if kind != "rms":
        value = inputs[0] if inputs[1] is None else inputs[0] + inputs[1]
        magnification = float((value.abs().amax(1) / value.std(1, correction=0)).max())
    options = {"eps": EPS, "centred": kind != "rms"}
    if magnification < 20:
        assert_as_reference(add_norm, inputs, terms=round(magnification**2) * (rows + dim), **options)


@pytest.mark.parametrize("size", [(3, 12), (2, 30), (5, 64), (200, 96)])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_gated_norms_are_the_references(isa: str, size: tuple[int, int], groups: int) -> None:
    if size[1] % groups:
        pytest.skip("the groups do not divide the width")
    inputs = draw(*size, seed=1), draw(*size, seed=2), 1 + 0.5 * draw(size[1], seed=3)
    assert_as_reference(gated_rms_norm, inputs, terms=10 * sum(size), eps=EPS, groups=groups)


@pytest.mark.parametrize("size", SIZES)
def test_swiglu_is_the_references(isa: str, size: tuple[int, int]) -> None:
    assert_as_reference(swiglu, (3 * draw(*size, seed=1), draw(*size, seed=2)), terms=4)


def test_halves_of_one_tensor_are_read_where_they_are(isa: str) -> None:
    merged = draw(2, 5, 40, seed=1)
    first, second = merged.chunk(2, dim=-1)
    torch.testing.assert_close(swiglu(first, second), F.silu(first) * second)
    x, weight = draw(2, 5, 20, seed=2), draw(20, seed=3)
    torch.testing.assert_close(
        gated_rms_norm(x, first, weight, eps=EPS, groups=2),
        gated_rms_norm(x, first.contiguous(), weight, eps=EPS, groups=2, implementation="reference"),
    )
    turned = draw(20, 6, seed=4).t()
    torch.testing.assert_close(swiglu(turned, turned), F.silu(turned) * turned)
    torch.testing.assert_close(
        add_norm(turned, turned, weight, eps=EPS), add_norm(turned, turned, weight, eps=EPS, implementation="reference")
    )


def test_nothing_outside_a_tensor_is_written(isa: str) -> None:
    """Gradients and results of rows that end in the middle of a vector, surrounded by a known value."""
    held = torch.full((5, 23), 7.0)
    logits = held[1:4].clone()
    around = torch.full((3 + 2, 23), 7.0)
    around[1:4] = draw(3, 23, seed=1)
    inside = around[1:4]
    chunked.native.losses_in_place(inside, torch.tensor([0, 22, -100]), -100, torch.ones(3))
    assert (around[0] == 7).all()
    assert (around[4] == 7).all()
    assert not inside[2].any()
    assert logits.shape == inside.shape


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(0, 9), vocabulary=st.integers(1, 70), scale=st.sampled_from([0.1, 3.0, 40.0]))
def test_losses_in_place_are_cross_entropy(rows: int, vocabulary: int, scale: float) -> None:
    logits = (scale * draw(rows, vocabulary, seed=5)).requires_grad_()
    targets = torch.arange(rows) % vocabulary
    targets[::3] = -100
    factor = torch.linspace(0.5, 2, rows)
    expected = F.cross_entropy(logits.double(), targets, reduction="none")
    (grad,) = torch.autograd.grad(expected, logits, factor.double(), allow_unused=False)
    held = logits.detach().clone()
    found = chunked.native.losses_in_place(held, targets, -100, factor)
    # exp errs by 2^-22 and by the rounding of its argument.
    band = SINGLE * (8 + 4 * scale * 4)
    torch.testing.assert_close(found.double(), expected.detach(), rtol=band, atol=band * max(1.0, scale))
    torch.testing.assert_close(held, grad, rtol=band, atol=4 * band)


def test_a_number_that_is_none_comes_out_as_none(isa: str) -> None:
    logits = draw(4, 40, seed=1)
    logits[0, 3], logits[1, 39], logits[2, 5] = math.nan, math.inf, -math.inf
    losses = chunked.native.losses_in_place(logits, torch.tensor([0, 1, 2, 3]), -100, None)
    assert losses[:2].isnan().all()
    assert losses[2:].isfinite().all()
    x = draw(3, 20, seed=1)
    x[1, 7] = math.nan
    assert swiglu(x, torch.ones_like(x)).isnan().sum() == 1
    for centred, part in itertools.product((False, True), (x, None)):
        normed = add_norm(x, part, torch.ones(20), eps=EPS, centred=centred)[1]
        assert normed.isnan().all(1).tolist() == [False, True, False]


def test_the_gates_exp_keeps_its_bound(isa: str) -> None:
    """silu(x) = x sigmoid(x) to 4 roundings over the whole range in which it is a normal number."""
    x = torch.cat([torch.linspace(-80, 100, 400_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38])])
    exact = x.double() * torch.sigmoid(x.double())
    found = swiglu(x[None], torch.ones_like(x[None]))[0].double()
    error = ((found - exact) / exact.abs().clamp_min(torch.finfo(torch.float32).tiny))[:-2].abs().max()
    # exp's own 2^-22, and a rounding each of the sum, the quotient and the product.
    assert error <= 2**-22 + 3 * 2**-24
    # Far below, exp stands still at e^88, and the result is zero up to x e^-88.
    assert found[-1].abs() <= 3e38 * math.exp(-87.9)


def test_empty_tensors_stay_empty() -> None:
    for rows in (0, 2):
        x, weight = torch.empty(rows, 0, 8), torch.ones(8)
        assert swiglu(x, x).shape == x.shape
        assert add_norm(x, x, weight, eps=EPS)[1].shape == x.shape
        assert gated_rms_norm(x, x, weight, eps=EPS).shape == x.shape


def test_only_the_norm_or_only_the_sum_may_be_used() -> None:
    x, y, weight = draw(4, 8, seed=1), draw(4, 8, seed=2), draw(8, seed=3)
    for use in (0, 1):
        grads = {}
        for implementation in ("native", "torch"):
            own = [one.clone().requires_grad_() for one in (x, y, weight)]
            used = add_norm(*own, eps=EPS, implementation=implementation)[use]
            grads[implementation] = torch.autograd.grad(used.square().sum(), own, allow_unused=True)
        for ours, theirs in zip(*grads.values(), strict=True):
            assert (ours is None) == (theirs is None)
            torch.testing.assert_close(ours, theirs)


def test_one_tensor_may_be_both_summands() -> None:
    x, weight = draw(4, 8, seed=1).requires_grad_(), draw(8, seed=3)
    grads = [
        torch.autograd.grad(add_norm(x, x, weight, eps=EPS, implementation=form)[1].square().sum(), x)[0]
        for form in ("native", "torch")
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", ["add_norm", "layer_norm", "gated_norm", "swiglu"])
def test_torch_accepts_the_operators_and_compiles_them(name: str) -> None:
    x, y, weight, bias = (draw(*shape, seed=n).requires_grad_() for n, shape in enumerate([(3, 8), (3, 8), (8,), (8,)]))
    operator, arguments = {
        "add_norm": (torch.ops.seqmix.add_norm, (x, y, weight, None, EPS, False)),
        "layer_norm": (torch.ops.seqmix.add_norm, (x, None, weight, bias, EPS, True)),
        "gated_norm": (torch.ops.seqmix.gated_norm, (x, y, weight, EPS, 2)),
        "swiglu": (torch.ops.seqmix.swiglu, (x, y)),
    }[name]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(operator, arguments, test_utils=checks)


def test_it_compiles_in_one_graph() -> None:
    def step(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        value, normed = add_norm(x, y, weight, eps=EPS)
        return swiglu(normed, value) + gated_rms_norm(value, normed, weight, eps=EPS)

    inputs = [draw(3, 8, seed=n) if n < 2 else draw(8, seed=n) for n in range(3)]
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(values_and_gradients(compiled, inputs), values_and_gradients(step, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_second_derivative_is_refused() -> None:
    x, weight = draw(3, 8, seed=1).requires_grad_(), draw(8, seed=2)
    for result in (swiglu(x, x), add_norm(x, None, weight, eps=EPS)[1], gated_rms_norm(x, x, weight, eps=EPS)):
        (grad,) = torch.autograd.grad(result.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="autograd"):
            grad.sum().backward()


def test_float64_and_mixed_precision_take_another_form() -> None:
    x, weight = draw(3, 8, seed=1), draw(8, seed=2)
    assert swiglu(x.double(), x.double()).dtype == torch.float64
    assert add_norm(x.double(), None, weight.double(), eps=EPS)[1].dtype == torch.float64
    assert add_norm(x, x.bfloat16(), weight, eps=EPS)[0].dtype == torch.float32


def test_bad_arguments_are_named() -> None:
    x, weight = draw(3, 8, seed=1), draw(8, seed=2)
    with pytest.raises(ValueError, match="do not fit"):
        swiglu(x, x[:2])
    with pytest.raises(ValueError, match="no bias"):
        add_norm(x, None, weight, weight, eps=EPS)
    with pytest.raises(ValueError, match="groups is 3"):
        gated_rms_norm(x, x, weight, eps=EPS, groups=3)
    for call in (lambda **o: swiglu(x, x, **o), lambda **o: add_norm(x, None, weight, eps=EPS, **o)):
        with pytest.raises(ValueError, match="'fast' is not known"):
            call(implementation="fast")
    with pytest.raises(ValueError, match="'native' cannot be used"):
        swiglu(x.double(), x.double(), implementation="native")
    with pytest.raises(IndexError, match="target 8 is out"):
        chunked.native.losses_in_place(x, torch.tensor([0, 8, 1]), -100, None)


def test_many_threads_give_the_same_as_one() -> None:
    x, y, weight = draw(700, 90, seed=1), draw(700, 90, seed=2), draw(90, seed=3)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(values_and_gradients(add_norm, (x, y, weight, None), eps=EPS, implementation="native"))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        # Only the sums over rows may be taken in another order.
        torch.testing.assert_close(one, other, rtol=0, atol=SINGLE * 700 * float(one.abs().max()))


def test_the_structures_have_the_sizes_of_the_headers() -> None:
    forms = (norm.native, gate.native, chunked.native)
    assert [ctypes.sizeof(one._Call) for one in forms] == [7 * 8 + 8 + 3 * 8 + 6 * 8 + 6 * 8, 128, 80]
