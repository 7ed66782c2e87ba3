"""Hyena against a loop written from its equations, its filter, its steps and its options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from seqmix.errors import InputError
from seqmix.mixers import create_mixer
from seqmix.mixers.long_convolution.hyena import Hyena

SMALL = {"filter_width": 8, "length": 24}


def _mixer(dim: int = 4, **options: Any) -> Hyena:
    torch.manual_seed(0)
    mixer = create_mixer("hyena", dim, **{**SMALL, **options})
    assert isinstance(mixer, Hyena)
    return mixer


def _input(batch: int, time: int, dim: int = 4) -> Tensor:
    return torch.randn(batch, time, dim, generator=torch.Generator().manual_seed(time), dtype=torch.float64)


def _tap(mixer: Hyena, k: int, stream: int, channel: int) -> float:
    """One tap of one filter by the equations, number by number."""
    config, own = mixer.config, mixer.filter
    bands = (config.filter_features - 1) // 2
    f = [1e-4 + (bands - 1 - 1e-4) * j / max(1, bands - 1) for j in range(bands)]
    w = 2 * math.pi * k / config.length
    t = k / (config.length - 1)
    hidden = [t, *(math.cos(x * w) for x in f), *(-math.sin(x * w) for x in f)]
    for layer in own.layers:
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        frequency = own.sine_frequency.tolist()
        sums = [sum(a * b for a, b in zip(row, hidden, strict=True)) + c for row, c in zip(weight, bias, strict=True)]
        hidden = [math.sin(a * s) for a, s in zip(frequency, sums, strict=True)]
    streams = config.order - 1
    index = channel * streams + stream
    tap = sum(a * b for a, b in zip(own.out.weight[index].tolist(), hidden, strict=True))
    least, most = math.log(0.01) / config.slow_decay, math.log(0.01) / config.fast_decay
    delta = least + (most - least) * index / (mixer.dim * streams - 1)
    tap *= math.exp(-t * abs(delta))
    return tap + (float(own.skip[stream, channel]) if k == 0 else 0.0)


def _loop(mixer: Hyena, x: Tensor) -> Tensor:
    """y of x (batch, time, dim), position by position."""
    config, dim = mixer.config, mixer.dim
    projected = x @ mixer.in_proj.weight.T + mixer.in_proj.bias
    short = torch.zeros_like(projected)
    for t in range(x.shape[1]):
        short[:, t] = mixer.conv_bias
        for back in range(min(config.short_kernel, t + 1)):
            short[:, t] += mixer.conv_weight[:, config.short_kernel - 1 - back] * projected[:, t - back]
    *gates, z = short.split(dim, dim=-1)
    for stream in range(config.order - 1):
        taps = torch.tensor(
            [[_tap(mixer, k, stream, channel) for k in range(config.length)] for channel in range(dim)],
            dtype=torch.float64,
        )
        z = gates[config.order - 1 - stream] * z
        convolved = torch.zeros_like(z)
        for t in range(x.shape[1]):
            for s in range(max(0, t - config.length + 1), t + 1):
                convolved[:, t] += taps[:, t - s] * z[:, s]
        z = convolved
    return (gates[0] * z) @ mixer.out_proj.weight.T + mixer.out_proj.bias


@torch.no_grad()
@pytest.mark.parametrize("time", [1, 9, 40])
@pytest.mark.parametrize("options", [{}, {"order": 3, "filter_features": 5}, {"order": 4, "filter_layers": 1}])
def test_equals_the_loop(options: dict[str, Any], time: int) -> None:
    """Sequences shorter and longer than the filter."""
    mixer = _mixer(**options).double()
    x = _input(2, time)
    torch.testing.assert_close(mixer(x).y, _loop(mixer, x), rtol=0, atol=1e-10)


def test_order_counts_the_gates_and_one_long_convolution_fewer() -> None:
    for order in (2, 3, 5):
        mixer = _mixer(order=order)
        assert mixer.filter.streams == order - 1
        assert mixer.in_proj.out_features == (order + 1) * 4
        assert mixer.traits.content_dependent == (order > 2)
        assert mixer.receptive_field == (order - 1) * 23 + 3


@torch.no_grad()
@pytest.mark.parametrize("order, length", [(2, 512), (3, 200)])
def test_steps_equal_the_whole_over_many_blocks(order: int, length: int) -> None:
    """Tiles, block borders, a ring that goes round, and two rows that stand at different positions."""
    mixer = _mixer(order=order, length=length)
    x = _input(2, 450).float()
    expected = mixer.double()(x.double()).y.float()
    mixer.float()
    states = [mixer(x[row : row + 1, :cut]).state for row, cut in enumerate((10, 60))]
    state = states[0].cat(states[1])
    size = float(expected.abs().max())
    for offset in range(380):
        tokens = torch.stack([x[0, 10 + offset], x[1, 60 + offset]])
        y, state = mixer.step(tokens, state)
        wanted = torch.stack([expected[0, 10 + offset], expected[1, 60 + offset]])
        # Sums of at most 450 terms, several in a row, each as exact as float32 is.
        assert float((y - wanted).abs().max()) < 8 * 450 * 2**-23 * size


def test_taps_do_not_depend_on_the_sequence_at_hand() -> None:
    own = _mixer(length=100).double().filter
    torch.testing.assert_close(own.taps(30), own.taps(100)[:, :, :30], rtol=0, atol=1e-15)


def test_autocast_leaves_the_filter_alone() -> None:
    own = _mixer(length=100).filter
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = own.taps(50)
    assert torch.equal(inside, own.taps(50))


def test_initialisation_follows_safari() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("hyena", 256, length=100)
    assert mixer.filter.skip.std().item() == pytest.approx(1, abs=0.15)
    assert (mixer.filter.sine_frequency == 10).all()
    assert [tuple(layer.weight.shape) for layer in mixer.filter.layers] == [(64, 3), (64, 64), (64, 64)]
    assert mixer.conv_weight.abs().max() <= 1 / math.sqrt(3)
    # The window alone, where the network gives one everywhere: a hundredth after 0.3 and 1.5 of the length.
    own = mixer.filter.double()
    with torch.no_grad():
        for layer in own.layers:
            layer.weight.zero_()
            layer.bias.fill_(math.pi / 20)
        own.out.weight.fill_(1 / 64)
        own.skip.zero_()
    taps = own.taps(100)[0]
    assert taps[:, 0].tolist() == pytest.approx([1] * 256)
    torch.testing.assert_close(taps[-1, 99].log(), torch.tensor(math.log(0.01) / 0.3).double())
    torch.testing.assert_close(taps[0, 99].log(), torch.tensor(math.log(0.01) / 1.5).double())


def test_weight_decay_leaves_the_filter_alone() -> None:
    mixer = _mixer()
    names = mixer.no_decay()
    assert names == {name for name, _ in mixer.named_parameters() if name.startswith("filter.")}
    assert "filter.sine_frequency" in names


def test_matrix_of_order_three_by_hand() -> None:
    """S_1 diag(x_1) S_2 for each channel."""
    mixer = _mixer(order=3).double()
    x = _input(1, 8)
    (mixing,) = mixer.mixing(x)
    second, first = mixer.filter.matrices(8)[1], mixer.filter.matrices(8)[0]
    gate = mixer._short(x).gates[0]
    for channel in range(4):
        expected = second[channel] @ torch.diag(gate[0, :, channel]) @ first[channel]
        torch.testing.assert_close(mixing.matrix[0, channel], expected)


def test_cost_counts_the_filter_once() -> None:
    mixer = _mixer(order=2, filter_width=8, length=24)
    network = 24 * 2 * (3 * 8 + 2 * 8 * 8 + 8 * 4)
    positions = 2 * (4 * 16) + 2 * 12 * 3
    assert mixer.cost(3, 40).product_flops == 3 * 40 * positions + network
    assert mixer.cost(3, 40).state_bytes == mixer(_input(3, 40).float()).state.nbytes


@torch.no_grad()
def test_a_full_capacity_is_refused() -> None:
    mixer = _mixer()
    x = _input(1, 9).float()
    state = mixer(x[:, :8], capacity=8).state
    kept = state.clone()
    with pytest.raises(InputError, match="capacity is 8"):
        mixer.step(x[:, 8], state)
    assert torch.equal(state.past, kept.past)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"order": 1}, "order is 1"),
        ({"length": 0}, "length is 0"),
        ({"short_kernel": 0}, "short_kernel is 0"),
        ({"filter_width": 0}, "filter_width is 0"),
        ({"filter_layers": -1}, "filter_layers is -1"),
        ({"filter_features": 4}, "filter_features is 4"),
        ({"filter_features": 1}, "filter_features is 1"),
        ({"fast_decay": 0.0}, "fast_decay is 0"),
        ({"frequency": -1.0}, "frequency is -1"),
        ({"ordr": 2}, "order"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("hyena", 4, **options)
