"""The compiled delta rule against the loop: values, states and gradients on every instruction set."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.delta_rule import delta_rule, native
from seqmix.kernels.library import library, why_missing

pytestmark = pytest.mark.skipif(library() is None, reason=str(why_missing()))

EPS = torch.finfo(torch.float32).eps


def inputs_of(batch: int, time: int, heads: int, keys: int, values: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(time + keys)
    r, decay, k, kappa, rate = (
        torch.randn(batch, time, heads, keys, generator=generator, dtype=torch.float64) for _ in range(5)
    )
    v = torch.randn(batch, time, heads, values, generator=generator, dtype=torch.float64)
    state = torch.randn(batch, heads, values, keys, generator=generator, dtype=torch.float64)
    return [r, -0.6 * torch.sigmoid(decay), k, v, F.normalize(kappa, dim=-1), torch.sigmoid(rate), state]


def run(inputs: list[Tensor], implementation: str, runs: Tensor | None) -> list[Tensor]:
    """y, the last state, and the gradients of all inputs."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y, after = delta_rule(*leaves[:6], state=leaves[6], runs=runs, implementation=implementation)
    score = (y * torch.arange(y.numel()).view_as(y).cos().to(y)).sum() + (after * 0.7).sum()
    return [y.detach(), after.detach(), *torch.autograd.grad(score, leaves)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "sizes", [(2, 1, 1, 3, 5), (1, 37, 2, 16, 7), (2, 33, 2, 64, 64), (1, 20, 1, 100, 9), (1, 5, 1, 300, 2)], ids=str
)
def test_it_equals_the_loop(isa: str, sizes: tuple[int, ...], packed: bool) -> None:
    batch, time = sizes[:2]
    runs = torch.arange(time).expand(batch, -1) // 6 + torch.arange(batch)[:, None] if packed else None
    inputs = inputs_of(*sizes)
    exact = run(inputs, "reference", runs)
    found = run([tensor.float() for tensor in inputs], "native", runs)
    # Sums over the keys at each of `time` positions, whose errors add as independent ones do.
    band = 4 * math.sqrt(time * sizes[3]) * EPS
    for name, one, other in zip(("y", "state", *native._INPUTS), found, exact, strict=True):
        assert (one - other).abs().max() <= band * other.abs().max(), name


def test_inputs_that_are_views_are_read_where_they_are(isa: str) -> None:
    inputs = [tensor.float() for tensor in inputs_of(2, 9, 2, 8, 8)]
    expected = delta_rule(*inputs[:6], state=inputs[6], implementation="native")
    turned = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs[:6]]
    found = delta_rule(*turned, state=inputs[6].transpose(2, 3).contiguous().transpose(2, 3), implementation="native")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_too_many_channels_are_refused_by_name_and_taken_by_the_chunked_form() -> None:
    inputs = [tensor.float() for tensor in inputs_of(1, 3, 1, 600, 2)]
    with pytest.raises(ValueError, match="at most 512 channels"):
        delta_rule(*inputs[:6], implementation="native")
    chunked = delta_rule(*inputs[:6], implementation="chunked")
    assert torch.equal(delta_rule(*inputs[:6])[0], chunked[0])
