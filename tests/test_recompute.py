"""Tensors that the backward pass computes again: the same gradients, and what is no longer held."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqmix.kernels.recompute import offer, recomputing
from seqmix.models import block, create_model


class Counted:
    """exp, counting its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.exp()


def through(layers: nn.ModuleList, x: Tensor, function: Counted, *, again: bool) -> Tensor:
    with recomputing() if again else nullcontext():
        inner = function(x)
        offer(inner, partial(function, x.detach()))
        return sum((layer(inner) for layer in layers), torch.zeros(()))


def test_gradients_are_the_same_and_all_readers_share_one_computation() -> None:
    layers = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))
    x = torch.randn(2, 5, 6, requires_grad=True)
    found = []
    for again in (False, True):
        function = Counted()
        y = through(layers, x, function, again=again)
        found.append(torch.autograd.grad(y.square().sum(), [x, *layers.parameters()]))
        assert function.calls == 1 + again
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_second_backward_pass_computes_it_a_second_time() -> None:
    layers = nn.ModuleList(nn.Linear(6, 4) for _ in range(2))
    x, function = torch.randn(5, 6, requires_grad=True), Counted()
    y = through(layers, x, function, again=True)
    first = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    second = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(*first, *second)
    assert function.calls == 3


def test_views_and_other_tensors_come_back_as_they_were() -> None:
    x, weight = torch.randn(6, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    grads = []
    for again in (False, True):
        with recomputing() if again else nullcontext():
            inner = x.exp()
            offer(inner, lambda: x.detach().exp())
            y = (inner[2:].t() * weight[:, None]).square().sum() + (inner[1] * weight).sum()
        grads.append(torch.autograd.grad(y, (x, weight)))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


@pytest.mark.parametrize("name", ["gated_conv", "convsamba", "transformer", "mamba2"])
def test_models_in_training_have_the_gradients_of_models_that_keep_everything(name: str) -> None:
    model = create_model(name, vocab_size=50, params="20k", context=16)
    ids = torch.randint(0, 50, (3, 16))
    grads = []
    for training in (True, False):
        model.train(training)
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_checkpointed_blocks_leave_the_hooks_to_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("gated_conv", vocab_size=50, params="20k", context=16).train()
    ids = torch.randint(0, 50, (3, 16))
    model.activation_checkpointing_enable({"use_reentrant": False})
    seen = []
    monkeypatch.setattr(block, "recomputing", lambda: seen.append("opened") or nullcontext())
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert not seen
    model.model.layers[0].gradient_checkpointing = False
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert seen == ["opened"]


def test_a_block_in_training_holds_less() -> None:
    model = create_model("gated_conv", vocab_size=50, params="20k", context=16)
    layer = model.model.layers[0]
    x = torch.randn(2, 16, model.config.hidden_size, requires_grad=True)
    held = []
    for training in (True, False):
        layer.train(training)
        held.append(allocated_by(lambda: layer(x).branch))
    dim, width = model.config.hidden_size, model.config.feed_forward
    # Two normed inputs and the product of the feed-forward.
    assert held[1] - held[0] >= 4 * 2 * 16 * (2 * dim + width)


def allocated_by(run: Callable[[], Tensor]) -> int:
    """Bytes that are allocated after a call and while its result is there, by torch's own count."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    total = sum(event.cpu_memory_usage for event in profile.events() if event.name == "[memory]")
    del kept
    return total


def test_it_agrees_with_a_checkpoint_around_it() -> None:
    layer, x = nn.Linear(6, 6), torch.randn(4, 6, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        with recomputing():
            inner = x.exp()
            offer(inner, lambda: x.detach().exp())
            return layer(inner)

    plain = torch.autograd.grad(run(x).square().sum(), x)
    inside = torch.autograd.grad(checkpoint(run, x, use_reentrant=False).square().sum(), x)  # type: ignore[union-attr]
    assert torch.equal(*plain, *inside)


def test_memory_that_another_tensor_has_taken_is_not_mistaken() -> None:
    x, weight = torch.randn(64, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)
    with recomputing():
        inner = x * 1.0
        offer(inner, lambda: x.new_full((64, 64), torch.nan))
        place = inner.data_ptr()
        del inner
        # As likely as not one of these stands where the first one stood.
        others = [x * float(number) for number in range(1, 5)]
        y = sum((other * weight).sum() for other in others)
    if all(other.data_ptr() != place for other in others):
        pytest.skip("the allocator has not given the memory out again")
    (grad,) = torch.autograd.grad(y, weight)
    torch.testing.assert_close(grad, 10 * x.detach())


def test_an_offer_outside_of_a_block_does_nothing() -> None:
    x, weight = torch.randn(4, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    inner = x.exp()
    offer(inner, lambda: x.new_full((4, 4), torch.nan))
    (grad,) = torch.autograd.grad((inner * weight).sum(), weight)
    assert grad.isfinite().all()
