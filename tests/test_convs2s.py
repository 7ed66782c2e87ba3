"""ConvS2S' block against its equations written out, torch's weight norm, and what its initialisation is for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import seqmix
from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.mixers import create_mixer
from seqmix.mixers.convs2s import ConvS2S

DIM = 6


def _mixer(dtype: torch.dtype = torch.float64, **options: object) -> ConvS2S:
    torch.manual_seed(0)
    mixer = create_mixer("convs2s", DIM, **options).to(dtype)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def _input(batch: int, time: int, dim: int = DIM) -> Tensor:
    return torch.randn(batch, time, dim, generator=torch.Generator().manual_seed(time), dtype=torch.float64)


def _gated(mixer: ConvS2S, x: Tensor) -> Tensor:
    """f(x) = GLU(conv(x)) of one row (time, dim), with W = g v / |v| for each output channel."""
    kernel, conv = mixer.config.kernel, mixer.conv
    left = kernel - 1 if mixer.config.causal else (kernel - 1) // 2
    filters = torch.stack([g * v / v.square().sum().sqrt() for g, v in zip(conv.scale, conv.weight, strict=True)])
    outputs = []
    for t in range(len(x)):
        total = conv.bias.clone()
        for tap in range(kernel):
            if 0 <= t - left + tap < len(x):
                total += filters[:, :, tap] @ x[t - left + tap]
        outputs.append(total[:DIM] / (1 + torch.exp(-total[DIM:])))
    return torch.stack(outputs)


@pytest.mark.parametrize("options", [{}, {"kernel": 5, "causal": False}, {"kernel": 4, "causal": False}, {"kernel": 1}])
@torch.no_grad()
def test_equals_the_block_written_out(options: dict[str, object]) -> None:
    x = _input(2, 9)
    scaled, plain = _mixer(**options), _mixer(residual_scale=False, **options)
    gated = torch.stack([_gated(scaled, row) for row in x])
    block = math.sqrt(0.5) * (gated + x)
    assert (x + scaled(x).y - block).abs().max() <= 1e-10 * block.abs().max()
    assert (plain(x).y - gated).abs().max() <= 1e-10 * gated.abs().max()


def test_equals_torch_s_weight_norm_with_its_gradients() -> None:
    mixer = _mixer(torch.float32, kernel=4, residual_scale=False)
    other = nn.utils.parametrizations.weight_norm(nn.Conv1d(DIM, 2 * DIM, 4), dim=0)
    lengths, directions = other.parametrizations.weight.original0, other.parametrizations.weight.original1
    with torch.no_grad():
        lengths.copy_(mixer.conv.scale[:, None, None])
        directions.copy_(mixer.conv.weight)
        other.bias.copy_(mixer.conv.bias)
    x = _input(2, 15).float().requires_grad_()
    found = mixer(x).y
    expected = F.glu(other(F.pad(x.transpose(1, 2), (3, 0))), dim=1).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    weight = _input(2, 15).float().cos()
    ours = torch.autograd.grad((found * weight).sum(), [x, mixer.conv.scale, mixer.conv.weight, mixer.conv.bias])
    theirs = torch.autograd.grad((expected * weight).sum(), [x, lengths, directions, other.bias])
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two.view_as(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_fresh_weights_have_the_paper_s_variance(dropout: float) -> None:
    torch.manual_seed(0)
    mixer = create_mixer("convs2s", 128, kernel=3, dropout=dropout)
    wanted = math.sqrt(4 * (1 - dropout) / (3 * 128))
    # The standard deviation of n normal numbers is itself known to 1 / sqrt(2 n).
    band = 5 / math.sqrt(2 * mixer.conv.weight.numel())
    assert abs(float(mixer.conv.weight.detach().std()) / wanted - 1) < band
    torch.testing.assert_close(mixer.conv.filters, mixer.conv.weight)
    assert not bool(mixer.conv.bias.any())
    with torch.no_grad():
        mixer.conv.scale.mul_(2)
        torch.testing.assert_close(mixer.conv.filters, 2 * mixer.conv.weight)


def test_dropout_is_for_training_alone_and_keeps_the_mean() -> None:
    mixer = _mixer(dropout=0.5, residual_scale=False, kernel=1)
    x = _input(1, 4)
    assert torch.equal(mixer.eval()(x).y, mixer(x).y)
    mixer.train()
    with torch.no_grad():
        convolved = torch.stack([mixer.conv(mixer._values(x)).y for _ in range(1500)])
        expected = mixer.eval().conv(x).y
    assert not torch.equal(convolved[0], convolved[1])
    error = (convolved.mean(0) - expected).abs() / (convolved.std(0) / math.sqrt(1500))
    assert float(error.max()) < 5


@torch.no_grad()
def test_steps_equal_forward_and_cost_what_they_declare() -> None:
    mixer = _mixer(torch.float32, kernel=4)
    x = _input(3, 12).float()
    expected, _ = mixer(x)
    state = mixer.init_state(3)
    for t in range(12):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, expected[:, t], rtol=1e-4, atol=1e-5)
    assert state.nbytes == mixer.cost(3, 12).state_bytes == 3 * (3 * DIM * 4 + 16)
    with FlopCounter() as counter:
        mixer.step(x[:, 0], state)
    assert counter.total == mixer.step_cost(3, 12).product_flops == 2 * 3 * DIM * 2 * DIM * 4


def test_numbers_it_declares() -> None:
    mixer = create_mixer("convs2s", DIM, kernel=5)
    assert (mixer.receptive_field, mixer.positions_seen, list(mixer.lags)) == (5, 5, [0, 1, 2, 3, 4])
    assert mixer.cost(1, 1).parameters == 2 * DIM * DIM * 5 + 4 * DIM
    assert list(create_mixer("convs2s", DIM, kernel=5, causal=False).lags) == [-2, -1, 0, 1, 2]


def test_a_model_of_it_comes_back_from_its_folder(tmp_path: Path) -> None:
    model = seqmix.create_model(
        "transformer",
        vocab_size=20,
        context=16,
        hidden_size=8,
        num_hidden_layers=2,
        mixers=[{"name": "convs2s", "kernel": 3}],
        feed_forward=0,
        norm_position="post",
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    ids = torch.arange(12)[None]
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"kernel": 0}, "kernel is 0: it must be at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0: it must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"kernels": 3}, "kernel"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("convs2s", DIM, **options)


def test_what_a_form_cannot_do_is_an_error() -> None:
    centred, state = create_mixer("convs2s", DIM, causal=False), create_mixer("convs2s", DIM).init_state(2)
    x = _input(2, 6).float()
    with pytest.raises(InputError, match="takes no state"):
        centred(x, state)
    with pytest.raises(InputError, match="no state"):
        centred.init_state(2)
    with pytest.raises(InputError, match="no step"):
        centred.step(x[:, 0], state)
