"""The long convolution against a double loop, its packed documents and its online steps; the global convolutions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmix.errors import InputError
from seqmix.kernels.long_conv import block_length, long_conv, tile_length
from seqmix.kernels.long_conv.fft import smooth_length
from seqmix.mixer import Mixer
from seqmix.mixers import create_mixer
from seqmix.mixers.attention.slots import widen


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _mixer(name: str, dim: int, **options: Any) -> Mixer:
    torch.manual_seed(0)
    return create_mixer(name, dim, **options)


def _loop(u: Tensor, taps: Tensor, past: Tensor | None, runs: Tensor | None) -> Tensor:
    """The sum of the formula, one target and one source at a time."""
    before = 0 if past is None else past.shape[1]
    full = u if past is None else torch.cat([past, u], dim=1)
    y = torch.zeros_like(u)
    for row in range(len(u)):
        own = [0] * before + ([0] * u.shape[1] if runs is None else runs[row].tolist())
        for target in range(u.shape[1]):
            for source in range(before + target + 1):
                lag = before + target - source
                if lag < taps.shape[1] and own[source] == own[before + target]:
                    y[row, target] += taps[:, lag] * full[row, source]
    return y


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_both_forms_equal_the_double_loop(data: st.DataObject) -> None:
    """Any lengths of filter, past and piece, packed or not: values to 1e-10 and gradients of all arguments."""
    batch, dim = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    time, kernel, before = (data.draw(st.integers(*limits)) for limits in ((1, 20), (1, 30), (0, 9)))
    leaves = [_normal(batch, time, dim, seed=1), _normal(dim, kernel, seed=2), _normal(batch, before, dim, seed=3)]
    runs = None
    if data.draw(st.booleans()):
        borders = torch.tensor([[data.draw(st.booleans()) for _ in range(time)] for _ in range(batch)])
        runs = borders.long().cumsum(1)
    u, taps, past = (leaf.requires_grad_() for leaf in leaves)
    expected = _loop(u.detach(), taps.detach(), past.detach(), runs)
    outputs = [long_conv(u, taps, past=past, runs=runs, implementation=form) for form in ("reference", "fft")]
    for y in outputs:
        torch.testing.assert_close(y.detach(), expected, rtol=0, atol=1e-10)
    weight = expected.cos()
    slopes = [torch.autograd.grad((y * weight).sum(), leaves, materialize_grads=True) for y in outputs]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["reference", "fft"])
def test_nothing_at_all_crosses_a_border(form: str) -> None:
    """Not even a NaN, which a transform would spread over everything that it covers."""
    u, taps = _normal(1, 40, 2).float(), _normal(2, 40, seed=1).float()
    u[0, 9:17] = torch.nan
    runs = torch.zeros(1, 40, dtype=torch.int64)
    runs[0, 9:] += 1
    runs[0, 17:] += 1
    y = long_conv(u, taps, runs=runs, implementation=form)
    assert torch.isfinite(y[0, :9]).all()
    assert torch.isfinite(y[0, 17:]).all()
    torch.testing.assert_close(y[:, 17:], long_conv(u[:, 17:], taps), rtol=1e-4, atol=1e-4)


def test_smooth_lengths_are_the_smallest() -> None:
    def is_smooth(number: int) -> bool:
        for prime in (2, 3, 5):
            while number % prime == 0:
                number //= prime
        return number == 1

    smooth = [number for number in range(2, 5000, 2) if is_smooth(number)]
    for least in range(1, 4000):
        assert smooth_length(least) == next(number for number in smooth if number >= least)


def test_long_sequences_take_memory_linear_in_them() -> None:
    """A matrix over 65,536 positions would take 17 GB a channel."""
    mixer = _mixer("gated_global_conv", 2, length=65536)
    x = _normal(1, 65536, 2).float().requires_grad_()
    y = mixer(x).y
    y[:, -1].sum().backward()
    assert x.grad is not None
    assert (x.grad[0, :1000] != 0).all()


def _run(mixer: Mixer, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    outputs = []
    for token in x.unbind(1):
        y, state = mixer.step(token, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def _integers(*shape: int, seed: int) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("length, time", [(1024, 700), (300, 700), (33, 100), (1, 5), (2, 9)])
@pytest.mark.parametrize("capacity", [None, 700])
@torch.no_grad()
def test_online_steps_are_exact(length: int, time: int, capacity: int | None) -> None:
    """Whole numbers in give whole numbers out: a pair counted twice or never would be off by one at least."""
    mixer = _mixer("global_conv", 3, length=length, bias=False)
    mixer.filter.weight.copy_(_integers(3, length, seed=1))
    x = _integers(2, time, 3, seed=2)
    expected = mixer.double()(x.double()).y
    mixer.float()
    y, state = _run(mixer, x, mixer.init_state(2, capacity))
    assert (y.round().double() - expected).abs().max() == 0
    assert (y - y.round()).abs().max() < 0.25
    assert state.position.tolist() == [time, time]
    if capacity is not None:
        assert state.nbytes == mixer.cost(2, capacity).state_bytes
    # Steps after a piece begin anew in the middle of it.
    first = mixer(x[:, : time // 3], capacity=capacity).state
    rest, _ = _run(mixer, x[:, time // 3 :], first)
    assert (rest.round().double() - expected[:, time // 3 :]).abs().max() == 0


@torch.no_grad()
def test_rows_at_different_positions_go_on_as_each_alone() -> None:
    """Joined in the middle of a block, chosen, repeated and copied, over block borders and a ring that goes round."""
    mixer = _mixer("gated_global_conv", 4, length=257)
    x = _normal(3, 500, 4, seed=4).float()
    expected = mixer.double()(x.double()).y.float()
    mixer.float()
    starts = (3, 200, 300)
    states = [_run(mixer, x[row : row + 1, :start], mixer.init_state(1))[1] for row, start in enumerate(starts)]
    state = states[0].cat(*states[1:])
    order = [2, 0, 1, 0]
    chosen = state.select(torch.tensor(order))
    copy = chosen.clone()
    for offset in range(150):
        tokens = torch.stack([x[row, starts[row] + offset] for row in order])
        wanted = torch.stack([expected[row, starts[row] + offset] for row in order])
        y, chosen = mixer.step(tokens, chosen)
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    piece = torch.stack([x[row, starts[row] : starts[row] + 20] for row in order])
    wanted = torch.stack([expected[row, starts[row] : starts[row] + 20] for row in order])
    torch.testing.assert_close(mixer(piece, copy).y, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_state_with_other_slots_begins_a_new_block() -> None:
    """As where a captured graph's buffers have more slots than the state that they take over."""
    mixer = _mixer("global_conv", 3, length=512)
    x = _normal(1, 150, 3).float()
    expected = mixer(x).y
    _, state = _run(mixer, x[:, :70], mixer.init_state(1, 128))
    assert state.read > 0
    wider = dataclasses.replace(state, stored=tuple(widen(part, 512) for part in state.stored))
    assert wider.read == 0
    assert wider.pending[0].shape[1] == block_length(512)
    y, _ = _run(mixer, x[:, 70:], wider)
    torch.testing.assert_close(y, expected[:, 70:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gated_global_conv", "hyena", "gated_modal_conv"])
def test_autocast_keeps_the_convolution_wide(name: str) -> None:
    """Under autocast the projections are rounded and the long sums are not; gradients reach everything."""
    mixer = _mixer(name, 8)
    x = _normal(2, 300, 8).float()
    expected = mixer(x).y
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x).y
        y.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in mixer.parameters())
    # A few roundings one after another; a sum of 300 terms in bfloat16 would lose far more.
    assert float((y - expected).detach().norm() / expected.detach().norm()) < 4 * 2**-8


@torch.no_grad()
def test_states_joined_within_one_block_keep_it() -> None:
    mixer = _mixer("global_conv", 4, length=512)
    x = _normal(2, 300, 4).float()
    expected = mixer(x).y
    rows = [_run(mixer, x[row : row + 1, :250], mixer.init_state(1, 512))[1] for row in range(2)]
    joined = rows[0].cat(rows[1])
    assert joined.read == rows[0].read == 250 % block_length(512)
    y, _ = _run(mixer, x[:, 250:], joined)
    torch.testing.assert_close(y, expected[:, 250:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_work_of_steps_grows_as_n_log_squared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted and not timed: the numbers that transforms and direct sums read, over all steps."""
    read = 0
    transform, direct = torch.fft.rfft, torch.Tensor.sum

    def counting(values: Tensor, length: int) -> Tensor:
        nonlocal read
        read += values[..., :1].numel() * int(length * math.log2(length))
        return transform(values, length)

    def counting_sum(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal read
        read += values.numel()
        return direct(values, *args, **kwargs)

    monkeypatch.setattr(torch.fft, "rfft", counting)
    monkeypatch.setattr(torch.Tensor, "sum", counting_sum)
    mixer = _mixer("global_conv", 1, length=4096, bias=False)
    totals = []
    for time in (512, 4096):
        read = 0
        _run(mixer, torch.zeros(1, time, 1), mixer.init_state(1, time))
        totals.append(read)
        assert read < time * 16 * math.log2(time) ** 2
    # A step at eight times the position: log^2 n grows by 1.8, the square root by 2.8, a sum over the past by 8.
    assert totals[1] / totals[0] / 8 < 2.3


def test_tiles_cover_every_pair_of_a_block_once() -> None:
    for slots in (4, 128, 1024, 4096):
        block = block_length(slots)
        sent = torch.zeros(block, block, dtype=torch.int64)
        for target in range(block):
            near = target % 32
            sent[target, target - near : target] += 1
            tile = tile_length(target + 1) if target + 1 < block else 0
            if tile:
                sent[target + 1 : target + 1 + tile, target + 1 - tile : target + 1] += 1
        assert torch.equal(sent, torch.ones_like(sent).tril(-1))


@pytest.mark.parametrize("name", ["global_conv", "gated_global_conv"])
def test_gradients_flow_through_steps(name: str) -> None:
    mixer = _mixer(name, 3, length=40)
    x = _normal(2, 12, 3).float().requires_grad_()
    y, _ = _run(mixer, x, mixer.init_state(2))
    found = torch.autograd.grad(y.cos().sum(), [x, *mixer.parameters()])
    wanted = torch.autograd.grad(mixer(x).y.cos().sum(), [x, *mixer.parameters()])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_global_conv_sees_the_last_length_positions() -> None:
    """Against a double loop over a sequence longer than the filter."""
    mixer = _mixer("global_conv", 3, length=7).double()
    with torch.no_grad():
        mixer.bias.normal_()
    x = _normal(2, 20, 3)
    expected = torch.stack(
        [
            mixer.bias + sum(mixer.filter.weight[:, k] * x[:, t - k] for k in range(min(7, t + 1)))  # type: ignore[misc]
            for t in range(20)
        ],
        dim=1,
    )
    torch.testing.assert_close(mixer(x).y, expected, rtol=0, atol=1e-10)


def test_gated_global_conv_is_its_formula() -> None:
    mixer = _mixer("gated_global_conv", 4, length=30, bias=True).double()
    x = _normal(2, 20, 4)
    B, C, u = (x @ mixer.in_proj.weight.T).split(4, dim=-1)
    convolved = _loop((B * u).detach(), mixer.filter.weight.detach(), None, None) + mixer.bias
    torch.testing.assert_close(mixer(x).y, (C * convolved) @ mixer.out_proj.weight.T, rtol=0, atol=1e-10)


def test_filters_begin_with_unit_energy_and_every_time_scale() -> None:
    weight = _mixer("global_conv", 64, length=512).filter.weight
    # Noise of unit energy on average; its spread in one channel shrinks with the square root of the time scale.
    energy = weight.square().sum(1)
    assert energy.mean().item() == pytest.approx(1, abs=0.3)
    late = weight[:, 256:].square().sum(1) / energy
    assert late[-1] == 0 or late[-1] < 1e-6
    assert late[0] > 0.1


@torch.no_grad()
def test_capacity_and_states() -> None:
    mixer = _mixer("global_conv", 3, length=10)
    x = _normal(1, 30, 3).float()
    with pytest.raises(InputError, match="capacity is 6"):
        mixer(x, capacity=6)
    state = mixer(x[:, :6], capacity=6).state
    with pytest.raises(InputError, match="capacity is 6"):
        mixer.step(x[:, 6], state)
    # Ten slots are a window: it is never full.
    state = mixer(x[:, :25], capacity=10).state
    y, state = mixer.step(x[:, 25], state)
    torch.testing.assert_close(y, mixer(x).y[:, 25])
    assert state.slots == 10
    again = mixer(x[:, :0], state)
    assert again.y.shape == (1, 0, 3)
    torch.testing.assert_close(mixer.step(x[:, 26], again.state).y, mixer(x).y[:, 26])
    with pytest.raises(InputError, match="long convolution did not make"):
        mixer(x, create_mixer("lstm", 3).init_state(1))


def test_low_precision_keeps_wide_sums() -> None:
    mixer = _mixer("gated_global_conv", 6, length=64).bfloat16()
    _, state = mixer(_normal(2, 40, 6).bfloat16())
    assert state.stored[0].dtype == torch.bfloat16
    assert state.pending[0].dtype == torch.float32
    assert state.nbytes == mixer.cost(2, 40).state_bytes


@pytest.mark.parametrize("name", ["global_conv", "gated_global_conv"])
@pytest.mark.parametrize("options, words", [({"length": 0}, "length is 0"), ({"lenght": 3}, "length")])
def test_options_that_do_not_fit_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer(name, 4, **options)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"taps": torch.zeros(3, 4)}, "do not fit"),
        ({"taps": torch.zeros(2, 0)}, "at least one channel and one tap"),
        ({"past": torch.zeros(1, 4, 3)}, "past has shape"),
        ({"runs": torch.zeros(1, 4)}, "runs has shape"),
        ({"implementation": "native"}, "'native' is unknown"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    arguments = {"u": torch.zeros(1, 5, 2), "taps": torch.zeros(2, 4), **change}
    with pytest.raises(ValueError, match=words):
        long_conv(arguments.pop("u"), arguments.pop("taps"), **arguments)
