"""Involution against a loop of the paper's equations, around the position and causal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.mixers import create_mixer
from seqmix.mixers.involution import Involution

DIM = 16


def _mixer(dtype: torch.dtype = torch.float64, **options: object) -> Involution:
    torch.manual_seed(0)
    mixer = create_mixer("involution", DIM, **{"kernel": 5, "groups": 4, **options}).to(dtype)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def _input(batch: int, time: int) -> Tensor:
    return torch.randn(batch, time, DIM, generator=torch.Generator().manual_seed(time), dtype=torch.float64)


def _kernels(mixer: Involution, x: Tensor) -> Tensor:
    """(groups, kernel) from one position x (dim,): W_span relu(norm(W_reduce x)) + b."""
    reduced = mixer.reduce_proj.weight @ x
    centred = reduced - reduced.sum() / len(reduced)
    normed = centred / (centred.square().sum() / len(reduced) + mixer.config.norm_eps) ** 0.5
    hidden = (normed * mixer.norm.weight + mixer.norm.bias).clamp(min=0)
    return (mixer.span_proj.weight @ hidden + mixer.span_proj.bias).view(mixer.heads, mixer.config.kernel)


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": False}, {"kernel": 4, "causal": False, "reduction": 2}, {"kernel": 1}, {"groups": 16, "kernel": 3}],
)
@torch.no_grad()
def test_equals_the_paper_written_out(options: dict[str, object]) -> None:
    mixer = _mixer(**options)
    kernel, left = mixer.config.kernel, mixer.lags[-1]
    x = _input(2, 8)
    expected = torch.zeros_like(x)
    for row in range(2):
        for t in range(8):
            weights = _kernels(mixer, x[row, t])
            for channel in range(DIM):
                group = channel // (DIM // mixer.heads)
                for tap in range(kernel):
                    source = t - left + tap
                    if 0 <= source < 8:
                        expected[row, t, channel] += weights[group, tap] * x[row, source, channel]
    assert left == (kernel - 1 if mixer.config.causal else (kernel - 1) // 2)
    assert (mixer(x).y - expected).abs().max() <= 1e-10 * expected.abs().max()


@torch.no_grad()
def test_a_kernel_depends_on_its_own_position_alone() -> None:
    """The norm takes nothing from other positions or rows, in training mode too: the matrix row stays as it was."""
    mixer = _mixer().train()
    x = _input(2, 6)
    changed = _input(2, 6) * 3 + 1
    changed[1, 4] = x[1, 4]
    before, after = mixer.mixing(x)[0].matrix, mixer.mixing(changed)[0].matrix
    assert (before[1, :, 4] - after[1, :, 4]).abs().max() <= 1e-12
    assert bool(((before[0] - after[0]).abs().amax(dim=(0, 2)) > 1e-3).all())


@torch.no_grad()
def test_steps_equal_forward_and_cost_what_they_declare() -> None:
    mixer = _mixer(torch.float32)
    x = _input(3, 12).float()
    expected, _ = mixer(x)
    state = mixer.init_state(3)
    for t in range(12):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, expected[:, t])
    assert state.nbytes == mixer.cost(3, 12).state_bytes
    with FlopCounter() as counter:
        mixer.step(x[:, 0], state)
    assert counter.total == mixer.step_cost(3, 12).product_flops


def test_numbers_it_declares() -> None:
    mixer = create_mixer("involution", 48, kernel=7)
    assert (mixer.heads, mixer.receptive_field) == (3, 7)
    assert mixer.cost(1, 1).parameters == 48 * 12 + 2 * 12 + 12 * 21 + 21
    assert mixer.cost(2, 5).product_flops == 2 * 10 * (48 * 12 + 12 * 21 + 48 * 7)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"reduction": 0}, "reduction is 0: it must be at least 1"),
        ({"reduction": 9}, "reduction is 9: of dim 16 it leaves 1 channels.*choose a smaller one"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0: it must be greater than 0"),
        ({"groups": 3}, "groups is 3, which does not divide dim 16: choose a divisor"),
        ({"heads": 3}, "heads"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("involution", DIM, **options)
