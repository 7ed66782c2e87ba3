"""ByteNet's block against its equations written out and torch's conv1d, alone and in a model's block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.mixers import create_mixer
from seqmix.mixers.bytenet import ByteNet
from seqmix.models.block import Block
from seqmix.models.config import SeqmixConfig

DIM = 12


def _stir(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def _mixer(dtype: torch.dtype = torch.float64, **options: object) -> ByteNet:
    torch.manual_seed(0)
    mixer = create_mixer("bytenet", DIM, **options).to(dtype)
    _stir(mixer)
    return mixer


def _input(batch: int, time: int) -> Tensor:
    return torch.randn(batch, time, DIM, generator=torch.Generator().manual_seed(time), dtype=torch.float64)


def _norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def _residual(mixer: ByteNet, x: Tensor, input_norm: torch.nn.LayerNorm | None) -> Tensor:
    """What the block adds to one row x (time, dim), as its equations read."""
    config = mixer.config
    normed = x if input_norm is None else _norm(x, input_norm)
    inner = _norm(normed.clamp(min=0) @ mixer.in_proj.weight.T + mixer.in_proj.bias, mixer.inner_norm).clamp(min=0)
    reach = (config.kernel - 1) * config.dilation
    left = reach if config.causal else reach // 2
    convolved = []
    for t in range(len(x)):
        total = mixer.conv.bias.clone()
        for tap in range(config.kernel):
            source = t - left + tap * config.dilation
            if 0 <= source < len(x):
                total += mixer.conv.weight[:, :, tap] @ inner[source]
        convolved.append(total)
    return _norm(torch.stack(convolved), mixer.output_norm).clamp(min=0) @ mixer.out_proj.weight.T + mixer.out_proj.bias


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel": 2, "dilation": 4, "width": 5, "norm_eps": 1e-3},
        {"dilation": 2, "causal": False},
        {"kernel": 1, "input_norm": False},
    ],
)
@torch.no_grad()
def test_equals_the_block_written_out(options: dict[str, object]) -> None:
    mixer = _mixer(**options)
    x = _input(2, 11)
    expected = torch.stack([_residual(mixer, row, mixer.input_norm) for row in x])
    assert (mixer(x).y - expected).abs().max() <= 1e-10 * expected.abs().max()


@torch.no_grad()
def test_a_model_s_block_with_the_input_norm_is_the_paper_s() -> None:
    """x + y(norm(x)) with LayerNorm is the residual block of the paper, once."""
    torch.manual_seed(0)
    options = {"name": "bytenet", "dilation": 2, "input_norm": False}
    block = Block(SeqmixConfig(hidden_size=DIM, num_hidden_layers=1, mixers=[options], norm="layer"), 0).double()
    _stir(block)
    x = _input(2, 9)
    found = block(x)
    expected = torch.stack([row + _residual(block.mixer, row, block.mixer_norm) for row in x])
    assert (found.x + found.branch - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_gradients_equal_torch_s_convolution() -> None:
    mixer = _mixer(torch.float32, dilation=3)
    x = _input(2, 20).float().requires_grad_()
    inner = F.relu(mixer.inner_norm(mixer.in_proj(F.relu(mixer.input_norm(x)))))
    convolved = F.conv1d(F.pad(inner.transpose(1, 2), (6, 0)), mixer.conv.weight, mixer.conv.bias, dilation=3)
    expected = mixer.out_proj(F.relu(mixer.output_norm(convolved.transpose(1, 2))))
    found = mixer(x).y
    torch.testing.assert_close(found, expected)
    leaves = [x, *mixer.parameters()]
    weight = _input(2, 20).float().cos()
    slopes = [torch.autograd.grad((y * weight).sum(), leaves) for y in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_steps_equal_forward_and_keep_a_ring() -> None:
    mixer = _mixer(torch.float32, dilation=4)
    x = _input(3, 25).float()
    expected, _ = mixer(x)
    state = mixer.init_state(3)
    for t in range(25):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, expected[:, t], rtol=1e-4, atol=1e-5)
    # (K - 1) * dilation inputs of half the width.
    assert state.past.shape == (3, 2 * 4 * 6)
    assert state.nbytes == mixer.cost(3, 25).state_bytes
    with FlopCounter() as counter:
        mixer.step(x[:, 0], state)
    assert counter.total == mixer.step_cost(3, 25).product_flops


def test_numbers_it_declares() -> None:
    layers = [create_mixer("bytenet", DIM, dilation=2**power) for _ in range(6) for power in range(5)]
    assert 1 + sum(layer.receptive_field - 1 for layer in layers) == 373
    mixer = layers[3]
    assert (mixer.receptive_field, mixer.positions_seen, list(mixer.lags)) == (17, 3, [0, 8, 16])
    assert list(_mixer(dilation=2, causal=False).lags) == [-2, 0, 2]
    inner = DIM // 2
    parameters = 2 * DIM + 4 * inner + DIM * inner + inner + inner * inner * 3 + inner + inner * DIM + DIM
    assert mixer.cost(1, 1).parameters == parameters
    assert mixer.cost(2, 7).product_flops == 2 * 14 * (2 * DIM * inner + 3 * inner * inner)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"kernel": 0}, "kernel is 0: it must be at least 1"),
        ({"dilation": 0}, "dilation is 0: it must be at least 1"),
        ({"width": -3}, "width is -3: it must be at least 1"),
        ({"width": 1}, "width is 1 of dim 12.*choose a larger one"),
        ({"norm_eps": -1.0}, "norm_eps is -1.0: it must be greater than 0"),
        ({"dilations": 2}, "dilation"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("bytenet", DIM, **options)


def test_what_a_form_cannot_do_is_an_error() -> None:
    centred, state = create_mixer("bytenet", DIM, causal=False), create_mixer("bytenet", DIM).init_state(2)
    x = _input(2, 6).float()
    with pytest.raises(InputError, match="takes no state"):
        centred(x, state)
    with pytest.raises(InputError, match="no state"):
        centred.init_state(2)
    with pytest.raises(InputError, match="no step"):
        centred.step(x[:, 0], state)
