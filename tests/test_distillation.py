"""Modal convolutions against a loop over complex numbers, and the distillation of long filters into them."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.kernels.long_conv import modal
from seqmix.kernels.long_conv.modal import Modes, scan, scan_by_step
from seqmix.mixers import create_mixer
from seqmix.mixers.long_convolution.distillation import distill
from seqmix.mixers.long_convolution.modal_convolution import ModalConv


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _mixer(name: str, dim: int, **options: Any) -> Any:
    torch.manual_seed(0)
    return create_mixer(name, dim, **options)


@torch.no_grad()
def test_modal_conv_is_its_formula() -> None:
    """y[t] = b + D u[t] + Re sum over s and n of R_n lambda_n^(t - s) u[s], with Python's complex numbers."""
    mixer = _mixer("modal_conv", 2, state_size=3).double()
    mixer.bias.normal_()
    own, x = mixer.filter, _normal(1, 9, 2)
    expected = torch.zeros(1, 9, 2, dtype=torch.float64)
    for channel in range(2):
        poles = [
            cmath.exp(complex(-math.exp(decay), angle))
            for decay, angle in zip(own.log_decay[0, channel].tolist(), own.angle[0, channel].tolist(), strict=True)
        ]
        residues = [complex(*pair) for pair in own.residue[:, 0, channel].T.tolist()]
        for t in range(9):
            total = float(mixer.bias[channel]) + float(own.skip[0, channel]) * float(x[0, t, channel])
            for s in range(t + 1):
                tap = sum(r * pole ** (t - s) for r, pole in zip(residues, poles, strict=True)).real
                total += tap * float(x[0, s, channel])
            expected[0, t, channel] = total
    torch.testing.assert_close(mixer(x).y, expected, rtol=0, atol=1e-10)
    taps = own.taps(9)[0]
    impulse = torch.zeros(1, 9, 2, dtype=torch.float64)
    impulse[:, 0] = 1
    torch.testing.assert_close((mixer(impulse).y - mixer.bias)[0].T, taps, rtol=0, atol=1e-10)


@pytest.mark.parametrize("time", [1, 7, 8, 9, 16, 37])
@pytest.mark.parametrize("packed", [False, True])
def test_chunks_equal_the_loop(monkeypatch: pytest.MonkeyPatch, time: int, packed: bool) -> None:
    """Outputs, last states and all gradients, over several chunks of 8, from a state that is not empty."""
    monkeypatch.setattr(modal, "CHUNK", 8)
    batch, dim, modes = 2, 3, 2
    leaves = [
        _normal(batch, time, dim, seed=1),
        _normal(dim, modes, seed=2).exp(),
        _normal(dim, modes, seed=3),
        _normal(dim, modes, seed=4),
        _normal(dim, modes, seed=5),
        _normal(batch, dim, 2 * modes, seed=6),
    ]
    runs = (torch.rand(batch, time, generator=torch.Generator().manual_seed(time)) < 0.15).long().cumsum(1)
    found = []
    for form in (scan_by_step, scan):
        u, decay, angle, real, imaginary, state = (leaf.requires_grad_() for leaf in leaves)
        y, last = form(u, Modes(decay, angle, real, imaginary), state, runs if packed else None)
        total = (y * y.detach().cos()).sum() + (last * last.detach().cos()).sum()
        found.append([y, last, *torch.autograd.grad(total, leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name, options", [("modal_conv", {}), ("modal_hyena", {"order": 3})])
@torch.no_grad()
def test_long_sequences_steps_and_costs(name: str, options: dict[str, Any]) -> None:
    """Over several chunks: pieces and steps go on from each other, and the products are counted."""
    mixer = _mixer(name, 3, state_size=4, **options)
    x = _normal(2, 300, 3).float()
    with FlopCounter() as counter:
        y, end = mixer(x)
    assert counter.total == mixer.cost(2, 300).product_flops
    assert end.nbytes == mixer.cost(2, 300).state_bytes == mixer.init_state(2).nbytes
    size = float(y.abs().max())
    state = mixer(x[:, :200]).state
    for t in range(200, 300):
        one, state = mixer.step(x[:, t], state)
        assert float((one - y[:, t]).abs().max()) < 1e-4 * size
    ids = torch.zeros(2, 300, dtype=torch.int64)
    ids[:, 150:] = 1
    packed = mixer(x, document_ids=ids).y
    torch.testing.assert_close(packed[:, 150:], mixer(x[:, 150:]).y, rtol=1e-4, atol=1e-4 * size)


def _waves(length: int) -> Tensor:
    """(3, length): filters that are sums of one, two and three decaying waves."""
    k = torch.arange(length, dtype=torch.float64)
    first = 0.9**k
    second = 0.98**k * torch.cos(0.3 * k + 1) + 0.5**k
    third = 0.99**k * torch.cos(0.1 * k) - 0.95**k * torch.sin(2 * k) + 0.3 * (-0.8) ** k
    taps = torch.stack([first, second, third])
    taps[:, 0] += torch.tensor([0.0, 1.5, -2.0])
    return taps


@pytest.mark.parametrize("length", [40, 300, 1500])
def test_sums_of_waves_are_found_again(length: int) -> None:
    mixer = _mixer("global_conv", 3, length=length).double()
    with torch.no_grad():
        mixer.filter.weight.copy_(_waves(length))
        mixer.bias.normal_()
    found, errors, _ = distill(mixer, 3)
    assert isinstance(found, ModalConv)
    assert errors.shape == (1, 3)
    assert errors.max() < 1e-6
    x = _normal(2, 50, 3)
    wide = _mixer("global_conv", 3, length=50).double()
    with torch.no_grad():
        wide.filter.weight.copy_(_waves(50))
        wide.bias.copy_(mixer.bias)
    # From as few as 40 taps, what follows them is known too.
    torch.testing.assert_close(found(x).y, wide(x).y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, options", [("hyena", {"order": 3}), ("gated_global_conv", {})])
@torch.no_grad()
def test_stated_errors_are_those_of_the_filters(name: str, options: dict[str, Any]) -> None:
    mixer = _mixer(name, 4, length=64, **options)
    before = torch.get_rng_state()
    found, errors, beyond = distill(mixer, 6)
    assert torch.equal(before, torch.get_rng_state())
    taps = mixer.filter.taps(64).double()
    other = found.double().filter.taps(128)
    size = taps.norm(dim=2)
    torch.testing.assert_close(errors, (other[..., :64] - taps).norm(dim=2) / size)
    torch.testing.assert_close(beyond, other[..., 64:].norm(dim=2) / size)
    assert errors.shape == (mixer.filter.streams, 4)
    for key, value in mixer.state_dict().items():
        if not key.startswith("filter."):
            assert torch.equal(found.state_dict()[key].float(), value)
    assert found.traits.state_growth == "constant"


@torch.no_grad()
def test_more_modes_of_a_smooth_filter_miss_less() -> None:
    mixer = _mixer("hyena", 8, length=256)
    x = _normal(2, 256, 8).float()
    expected = mixer(x).y
    missing = []
    for size in (2, 8, 24):
        found, errors, _ = distill(mixer, size)
        missing.append((float(errors.median()), float((found(x).y - expected).norm() / expected.norm())))
    assert missing[0][0] > 5 * missing[1][0] > 25 * missing[2][0]
    assert missing[2][1] < 0.05 < missing[0][1]


@torch.no_grad()
def test_fewer_taps_can_be_fitted() -> None:
    mixer = _mixer("global_conv", 2, length=200)
    found, errors, beyond = distill(mixer, 4, length=50)
    taps, other = mixer.filter.taps(100).double(), found.double().filter.taps(100)
    size = taps[..., :50].norm(dim=2)
    torch.testing.assert_close(errors, (other - taps)[..., :50].norm(dim=2) / size)
    torch.testing.assert_close(beyond, (other - taps)[..., 50:].norm(dim=2) / size)
    # The shortest filter there is, with more modes than it can tell apart.
    _, errors, _ = distill(_mixer("global_conv", 2, length=3), 5)
    assert torch.isfinite(errors).all()


def test_modal_filters_are_stable_and_of_every_time_scale() -> None:
    mixer = _mixer("modal_conv", 64, state_size=16)
    modes = mixer.filter.modes(0)
    assert modes.decay.min() >= 1e-3
    assert modes.decay.max() <= 1
    assert (modes.decay < 0.01).float().mean().item() == pytest.approx(1 / 3, abs=0.1)
    assert mixer.no_decay() == {"filter.log_decay", "filter.angle", "filter.skip"}
    assert mixer.filter.taps(2000)[0, :, 1:].square().sum(1).mean().item() == pytest.approx(1, rel=0.5)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"state_size": 0}, "state_size is 0"),
        ({"state_size": 4, "length": 2}, "length is 2"),
        ({"state_size": 4, "length": 33}, "at most the filter's 32"),
    ],
)
def test_distillations_that_cannot_be_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        distill(_mixer("global_conv", 3, length=32), **arguments)


def test_only_long_filters_are_distilled() -> None:
    with pytest.raises(InputError, match="LSTM has no long filters"):
        distill(_mixer("lstm", 4), 3)


@pytest.mark.parametrize("name", ["modal_conv", "gated_modal_conv", "modal_hyena"])
def test_options_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="state_size is 0"):
        create_mixer(name, 4, state_size=0)
    with pytest.raises(InputError, match="state_size"):
        create_mixer(name, 4, state_sise=3)
