"""The compiled steps against the forms in torch, at any size and with any strides."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from seqmix.kernels import causal_conv1d, recurrent_steps
from seqmix.kernels.library import library, why_missing
from seqmix.kernels.selective_scan import selective_step
from seqmix.kernels.state_space import state_space_step

pytestmark = pytest.mark.skipif(library() is None, reason=why_missing() or "")
EPS = torch.finfo(torch.float32).eps


def _normal(*sizes: int, seed: int = 0) -> torch.Tensor:
    """Every other number of a larger tensor, so that nothing is contiguous."""
    return torch.randn(*sizes[:-1], 2 * sizes[-1], generator=torch.Generator().manual_seed(seed))[..., ::2]


def _assert_close(found: torch.Tensor, exact: torch.Tensor, terms: int) -> None:
    assert (found - exact).abs().max() <= 4 * terms * EPS * exact.abs().max()


@pytest.mark.parametrize("kernel, length", [(1, 0), (1, 2), (4, 3), (4, 4), (7, 9)])
@pytest.mark.parametrize("dim", [1, 16, 37])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution(kernel: int, length: int, dim: int, activation: str | None) -> None:
    x, weight, bias = _normal(3, dim), _normal(dim, kernel, seed=1), _normal(dim, seed=2)
    state = _normal(3, dim, length, seed=3).contiguous() if length else torch.zeros(3, dim, 0)
    exact_state = state.double()
    exact = causal_conv1d.causal_conv1d_update(x.double(), exact_state, weight.double(), bias.double(), activation)
    found = recurrent_steps.conv_step(x, state, weight, bias, activation is not None)
    _assert_close(found, exact, kernel)
    assert torch.equal(state.double(), exact_state)


@pytest.mark.parametrize("dim, size", [(1, 1), (5, 16), (33, 20), (16, 3)])
@pytest.mark.parametrize("everything", [True, False])
def test_selective_scan(dim: int, size: int, everything: bool) -> None:
    x, dt, z, D, bias = _normal(2, dim), _normal(2, dim, seed=1), _normal(2, dim, seed=2), _normal(dim), _normal(dim)
    dt = dt if everything else dt.abs()
    A, B, C = -_normal(dim, size, seed=3).exp(), _normal(2, size, seed=4), _normal(2, size, seed=5)
    state = _normal(2, dim, size, seed=6).contiguous()
    extra = (D, z, bias) if everything else (None, None, None)
    wide = [None if each is None else each.double() for each in extra]
    y, after = selective_step(
        *(each.double() for each in (x, dt, A, B, C, state)),
        wide[0],
        z=wide[1],
        dt_bias=wide[2],
        dt_softplus=everything,
    )
    found = recurrent_steps.selective_step(x, dt, A, B, C, state, *extra, everything)
    _assert_close(found, y, size)
    _assert_close(state, after, 2)


@pytest.mark.parametrize("heads, width, groups, size", [(1, 1, 1, 1), (4, 16, 2, 16), (3, 5, 3, 37), (2, 64, 1, 128)])
@pytest.mark.parametrize("everything", [True, False])
def test_state_space(heads: int, width: int, groups: int, size: int, everything: bool) -> None:
    x, dt, A = _normal(2, heads, width), _normal(2, heads, seed=1), -_normal(heads, seed=2).exp()
    B, C, D, bias = _normal(2, groups, size, seed=3), _normal(2, groups, size, seed=4), _normal(heads), _normal(heads)
    state = _normal(2, heads, width, size, seed=5).contiguous()
    dt = dt if everything else dt.abs()
    steps = F.softplus(dt.double() + bias.double()) if everything else dt.double()
    skip = D.double() if everything else torch.zeros(heads).double()
    y, after = state_space_step(x.double(), steps, A.double(), B.double(), C.double(), skip, state.double())
    extra = (D, bias) if everything else (None, None)
    found = recurrent_steps.state_space_step(x, dt, A, B, C, state, *extra, everything)
    _assert_close(found, y, size)
    _assert_close(state, after, 2)


def test_what_a_compiled_step_takes() -> None:
    state, x = torch.zeros(1, 2, 3), torch.zeros(1, 2)
    assert recurrent_steps.can_run(state, x, None)
    assert not recurrent_steps.can_run(state.double(), x)
    assert not recurrent_steps.can_run(state, x.bfloat16())
    assert not recurrent_steps.can_run(state.transpose(1, 2), x)
    assert not recurrent_steps.can_run(state, x.requires_grad_())
    with torch.no_grad():
        assert recurrent_steps.can_run(state, x)
