"""The chunked cross-entropy of a language model's head against its reference, and what it holds in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqmix.flop_counter import FlopCounter
from seqmix.kernels.cross_entropy import chunked, linear_cross_entropy, linear_token_losses
from seqmix.models import create_model


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "chunk_rows", lambda vocabulary: 5)


def operands(
    tokens: int, dim: int, vocabulary: int, seed: int = 0, left_out: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, dim, generator=generator)
    weight = torch.randn(vocabulary, dim, generator=generator)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < left_out] = -100
    return hidden, weight, targets


def value_and_gradients(
    loss_of: Callable[..., Tensor], hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any
) -> list[Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = loss_of(hidden, weight, targets, **options)
    factor = torch.linspace(-1, 2, max(1, loss.numel()), dtype=loss.dtype).view(loss.shape)
    grads = torch.autograd.grad(loss, (hidden, weight), factor)
    return [loss.detach(), *grads]


def assert_within_rounding(found: list[Tensor], expected: list[Tensor], terms: int) -> None:
    """Each to float32's rounding of a sum of that many terms of the size of the largest value."""
    for ours, theirs in zip(found, expected, strict=True):
        band = torch.finfo(torch.float32).eps * terms * max(1.0, float(theirs.abs().max()) if theirs.numel() else 0.0)
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=band)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 23),
    dim=st.integers(1, 9),
    vocabulary=st.integers(1, 40),
    seed=st.integers(0, 99),
    left_out=st.sampled_from([0.3, 0.9]),
)
@pytest.mark.parametrize("loss_of", [linear_cross_entropy, linear_token_losses])
def test_values_and_gradients_are_the_references(
    loss_of: Callable[..., Tensor], tokens: int, dim: int, vocabulary: int, seed: int, left_out: float
) -> None:
    hidden, weight, targets = operands(tokens, dim, vocabulary, seed, left_out)
    targets[0] = 0
    found = value_and_gradients(loss_of, hidden, weight, targets, implementation="chunked")
    wide = value_and_gradients(loss_of, hidden.double(), weight.double(), targets, implementation="reference")
    assert_within_rounding(found, wide, terms=tokens + dim + vocabulary)
    assert found[0].dtype == torch.float32


def test_float64_takes_the_reference_and_keeps_its_precision() -> None:
    hidden, weight, targets = (one.double() if one.is_floating_point() else one for one in operands(11, 4, 7))
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda h: linear_cross_entropy(h, weight, targets), hidden)


def test_a_divisor_takes_the_place_of_the_number_of_targets() -> None:
    hidden, weight, targets = operands(12, 3, 8)
    count = int((targets != -100).sum())
    mean = linear_cross_entropy(hidden, weight, targets, implementation="chunked")
    for divisor in (2 * count, torch.tensor(2 * count)):
        half = linear_cross_entropy(hidden, weight, targets, divisor=divisor, implementation="chunked")
        torch.testing.assert_close(half, mean / 2)


def test_leading_dimensions_and_strides_do_not_matter() -> None:
    hidden, weight, targets = operands(12, 3, 8)
    folded = hidden.view(3, 4, 3).transpose(0, 1), weight.t().contiguous().t(), targets.view(3, 4).transpose(0, 1)
    torch.testing.assert_close(linear_cross_entropy(*folded), linear_cross_entropy(hidden, weight, targets))
    losses = linear_token_losses(*folded)
    torch.testing.assert_close(losses.transpose(0, 1).reshape(-1), linear_token_losses(hidden, weight, targets))
    assert losses.shape == (4, 3)


def test_with_no_target_the_mean_is_nan_and_no_token_has_a_gradient() -> None:
    hidden, weight, _ = operands(7, 3, 5)
    targets = torch.full((7,), -100)
    loss, *grads = value_and_gradients(linear_cross_entropy, hidden, weight, targets, implementation="chunked")
    assert math.isnan(loss)
    losses, *others = value_and_gradients(linear_token_losses, hidden, weight, targets, implementation="chunked")
    assert not losses.any()
    for grad in (*grads, *others):
        assert not grad.any()


def test_no_tokens_are_a_sum_of_zero() -> None:
    hidden, weight, targets = operands(0, 3, 5)
    loss, *grads = value_and_gradients(
        linear_cross_entropy, hidden, weight, targets, divisor=1.0, implementation="chunked"
    )
    assert loss == 0
    assert [grad.shape for grad in grads] == [(0, 3), (5, 3)]
    assert not grads[1].any()


def test_large_logits_neither_overflow_nor_lose_the_loss() -> None:
    hidden, weight = torch.tensor([[300.0], [-300.0]]), torch.tensor([[1.0], [-1.0]])
    losses = linear_token_losses(hidden, weight, torch.tensor([0, 0]), implementation="chunked")
    assert losses.tolist() == [0.0, 600.0]


def test_a_target_outside_the_vocabulary_is_an_error() -> None:
    hidden, weight, targets = operands(6, 3, 5)
    targets[2] = 5
    with pytest.raises((IndexError, RuntimeError, ValueError), match="out of"):
        linear_cross_entropy(hidden, weight, targets, implementation="chunked")


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.largest = max(self.largest, one.numel())
        return out


@pytest.mark.parametrize("wants", [(False, False), (True, True)])
def test_logits_of_all_tokens_never_exist(wants: tuple[bool, bool]) -> None:
    hidden, weight, targets = operands(40, 3, 30)
    # A custom operation hides what it runs: its body is called instead.
    with LargestTensor() as watch:
        chunked._summed_loss._init_fn(hidden, weight, targets, torch.tensor(4.0), -100, torch.float32, *wants)
    assert watch.largest == 5 * 30
    with LargestTensor() as watch:
        chunked._token_losses._init_fn(hidden, weight, targets, -100, torch.float32)
    assert watch.largest == 5 * 30
    with LargestTensor() as watch:
        linear_cross_entropy(hidden, weight, targets, implementation="reference")
    assert watch.largest == 40 * 30


def test_the_models_training_step_never_holds_all_logits() -> None:
    model = create_model("gated_conv", vocab_size=300, params="4k", context=16)
    ids = torch.randint(0, 300, (4, 16))
    with LargestTensor() as watch:
        model(ids, labels=ids, return_logits=False).loss.backward()
    assert watch.largest < ids.numel() * 300
    with LargestTensor() as watch:
        model(ids, labels=ids).loss.backward()
    assert watch.largest >= ids.numel() * 300


@pytest.mark.parametrize("loss_of", [linear_cross_entropy, linear_token_losses])
def test_low_precision_errs_no_more_than_the_reference_does(loss_of: Callable[..., Tensor]) -> None:
    hidden, weight, targets = operands(64, 32, 50)
    exact = value_and_gradients(loss_of, hidden.double(), weight.double(), targets, implementation="reference")
    low = hidden.bfloat16(), weight.bfloat16(), targets
    theirs = value_and_gradients(loss_of, *low, implementation="reference")
    ours = value_and_gradients(loss_of, *low, implementation="chunked")
    for found, usual, wanted in zip(ours, theirs, exact, strict=True):
        assert found.dtype == usual.dtype
        band = 2 * (usual.double() - wanted).abs().max() + torch.finfo(torch.bfloat16).eps * wanted.abs().max()
        assert (found.double() - wanted).abs().max() <= band


def test_autocast_sets_the_precision_of_the_products_and_not_of_the_gradients() -> None:
    hidden, weight, targets = operands(20, 8, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value_and_gradients(linear_cross_entropy, hidden, weight, targets)
        usual = value_and_gradients(linear_cross_entropy, hidden, weight, targets, implementation="reference")
    assert [one.dtype for one in found] == [torch.float32] * 3
    exact = value_and_gradients(linear_cross_entropy, hidden.double(), weight.double(), targets)
    for ours, theirs, wanted in zip(found, usual, exact, strict=True):
        error = (ours - wanted).abs().max()
        assert 0 < error <= 2 * (theirs - wanted).abs().max() + torch.finfo(torch.bfloat16).eps * wanted.abs().max()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_operand_gets_no_gradient_and_the_other_the_same(frozen: str) -> None:
    hidden, weight, targets = operands(12, 3, 8)
    for loss_of in (linear_cross_entropy, linear_token_losses):
        both = value_and_gradients(loss_of, hidden, weight, targets, implementation="chunked")
        pair = {"hidden": hidden.clone(), "weight": weight.clone()}
        trained = pair["weight" if frozen == "hidden" else "hidden"].requires_grad_()
        loss = loss_of(pair["hidden"], pair["weight"], targets, implementation="chunked")
        factor = torch.linspace(-1, 2, max(1, loss.numel())).view(loss.shape)
        (grad,) = torch.autograd.grad(loss, trained, factor)
        assert torch.equal(grad, both[2 if frozen == "hidden" else 1])


def test_the_gradient_can_be_taken_twice_and_adds_up() -> None:
    hidden, weight, targets = operands(12, 3, 8)
    weight.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    assert weight.grad is not None
    once = weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * once)


def test_a_second_derivative_is_refused() -> None:
    hidden, weight, targets = operands(12, 3, 8)
    hidden.requires_grad_()
    (grad,) = torch.autograd.grad(
        linear_cross_entropy(hidden, weight, targets, implementation="chunked"), hidden, create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()


@pytest.mark.parametrize("loss_of", [linear_cross_entropy, linear_token_losses])
def test_it_compiles_in_one_graph(loss_of: Callable[..., Tensor]) -> None:
    hidden, weight, targets = operands(12, 3, 8)
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    expected = value_and_gradients(loss_of, hidden, weight, targets)
    found = value_and_gradients(compiled, hidden, weight, targets)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        (torch.ops.seqmix.linear_cross_entropy, (torch.tensor(4.0), -100, torch.float32, True, True)),
        (torch.ops.seqmix.linear_token_losses, (-100, torch.float32)),
    ],
)
def test_torch_accepts_the_operations(operation: Any, arguments: tuple[Any, ...]) -> None:
    hidden, weight, targets = operands(12, 3, 8)
    inputs = (hidden.requires_grad_(), weight.requires_grad_(), targets, *arguments)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(operation, inputs, test_utils=checks)


@pytest.mark.parametrize("loss_of", [linear_cross_entropy, linear_token_losses])
def test_its_products_are_counted(loss_of: Callable[..., Tensor]) -> None:
    hidden, weight, targets = operands(12, 3, 8)
    with FlopCounter() as forward, torch.no_grad():
        loss_of(hidden, weight, targets)
    product = 2 * 12 * 3 * 8
    assert forward.total == product
    with FlopCounter() as step:
        value_and_gradients(loss_of, hidden, weight, targets)
    # Losses of single tokens form the logits a second time.
    assert step.total == (3 if loss_of is linear_cross_entropy else 4) * product


def test_bad_arguments_are_named() -> None:
    hidden, weight, targets = operands(12, 3, 8)
    with pytest.raises(ValueError, match="do not fit"):
        linear_cross_entropy(hidden, weight[:, :2], targets)
    with pytest.raises(ValueError, match="do not fit"):
        linear_token_losses(hidden, weight, targets[:3])
    with pytest.raises(ValueError, match="'fused' is not known"):
        linear_cross_entropy(hidden, weight, targets, implementation="fused")
    with pytest.raises(ValueError, match=r"torch\.bfloat16"):
        linear_cross_entropy(hidden, weight.bfloat16(), targets)
