"""RWKV-7 and its channel mix against loops written from the paper's equations, and what is particular to them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.kernels.delta_rule import delta_rule, scan_flops, step_flops
from seqmix.mixers import create_mixer
from seqmix.mixers.rwkv.parts import default_rank
from seqmix.mixers.rwkv.rwkv7 import RWKV7
from seqmix.training.optimizer import decay_groups

DIM, OPTIONS = 12, {"head_dim": 4, "decay_rank": 3, "rate_rank": 2, "value_rank": 3, "gate_rank": 4, "layers": 4}


def _mixer(dtype: torch.dtype = torch.float64, **options: object) -> RWKV7:
    """A mixer none of whose parameters is zero."""
    torch.manual_seed(0)
    mixer = create_mixer("rwkv7", DIM, **{**OPTIONS, **options})
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer.to(dtype)


def _input(batch: int, time: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * seed + time)
    return torch.randn(batch, time, DIM, generator=generator, dtype=torch.float64).to(dtype)


def _time_mix(mixer: RWKV7, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """y, the values of this layer and the last states (heads, N, N) of one sequence x (time, D)."""
    p = {name.replace("mu.", "mu_"): value for name, value in mixer.named_parameters()}
    heads, width = mixer.num_heads, mixer.head_dim
    states = [x.new_zeros(width, width) for _ in range(heads)]
    last, outputs, values = torch.zeros_like(x[0]), [], []
    for t in range(len(x)):
        xr, xw, xk, xv, xa, xg = (x[t] + p[f"mu_{name}"] * (last - x[t]) for name in "rwkvag")
        r, k, v = (p[f"{name}.weight"] @ one for name, one in (("receptance", xr), ("key", xk), ("value", xv)))
        values.append(v)
        z = p["decay.base"] + torch.tanh(xw @ p["decay.down"]) @ p["decay.up"]
        w = torch.exp(-1 / (1 + torch.exp(-z)) / math.sqrt(math.e))
        a = torch.sigmoid(p["rate.base"] + xa @ p["rate.down"] @ p["rate.up"])
        g = torch.sigmoid(xg @ p["gate.down"]) @ p["gate.up"]
        if first is not None:
            v = v + (first[t] - v) * torch.sigmoid(p["residual.base"] + xv @ p["residual.down"] @ p["residual.up"])
        kappa, k = k * p["k_k"], k * (1 + (a - 1) * p["k_a"])
        y = torch.empty_like(v)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            unit = kappa[part] / kappa[part].square().sum().sqrt()
            transition = torch.diag(w[part]) - torch.outer(unit, a[part] * unit)
            states[head] = states[head] @ transition + torch.outer(v[part], k[part])
            read = states[head] @ r[part]
            normed = (read - read.mean()) / (read.var(correction=0) + 64e-5).sqrt()
            bonus = (r[part] * k[part] * p["r_k"][head]).sum()
            y[part] = normed * p["norm.weight"][part] + p["norm.bias"][part] + bonus * v[part]
        outputs.append(p["output.weight"] @ (y * g))
        last = x[t]
    return torch.stack(outputs), torch.stack(values), torch.stack(states)


@pytest.mark.parametrize("is_first", [True, False])
@torch.no_grad()
def test_equals_the_equations_written_out(is_first: bool) -> None:
    mixer = _mixer(value_residual=not is_first, layer=0 if is_first else 2)
    x, first = _input(2, 11), None if is_first else _input(2, 11, seed=1)
    (y, state), handed_on = mixer.forward_sharing(x, None, first)
    for row in range(2):
        expected, own, states = _time_mix(mixer, x[row], None if first is None else first[row])
        torch.testing.assert_close(y[row], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(state.matrix[row], states, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(handed_on[row], own if first is None else first[row], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state.last, x[:, -1])


def test_a_later_layer_says_what_is_missing() -> None:
    mixer = _mixer(value_residual=True)
    with pytest.raises(InputError, match=r"value_residual is on but nothing was handed on.*forward_sharing"):
        mixer(_input(1, 3))
    with pytest.raises(InputError, match="value_residual"):
        mixer.step(_input(1, 1)[:, 0], mixer.init_state(1))
    assert mixer.needs_shared
    assert not _mixer().needs_shared
    assert not any(name.startswith("residual") for name, _ in _mixer().named_parameters())


def _drawn(batch: int, time: int, key: int, value: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        return torch.randn(batch, time, 2, width, generator=generator, dtype=torch.float64)

    r, k, kappa, v = draw(key), draw(key), draw(key), draw(value)
    log_decay = -math.exp(-0.5) * torch.sigmoid(3 * draw(key))
    inputs = [r, log_decay, k, v, kappa / kappa.norm(dim=-1, keepdim=True), torch.sigmoid(2 * draw(key))]
    return [each.requires_grad_() for each in inputs]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_chunks_equal_the_loop(data: st.DataObject) -> None:
    """Outputs, last state and all gradients, of any length, chunk and documents, after a state."""
    time, chunk = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 64))
    key, value = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    inputs = _drawn(2, time, key, value, seed=data.draw(st.integers(0, 99)))
    state = torch.randn(2, 2, value, key, dtype=torch.float64, requires_grad=True)
    runs = None
    if data.draw(st.booleans()):
        runs = torch.tensor([[data.draw(st.booleans()) for _ in range(time)] for _ in range(2)]).cumsum(1)
    found = []
    for implementation in ("reference", "chunked"):
        y, after = delta_rule(*inputs, state=state, runs=runs, chunk=chunk, implementation=implementation)
        total = y.cos().sum() + after.sin().sum()
        found.append([y, after, *torch.autograd.grad(total, [*inputs, state])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("chunk", [16, 64])
def test_float32_chunks_are_exact_where_powers_would_cancel(chunk: int) -> None:
    """One key over and over, removed whole, nearly no decay: the triangular system is all ones."""
    inputs = [each.detach() for each in _drawn(1, 128, 8, 8, seed=0)]
    inputs[4] = inputs[4][:, :1].expand(-1, 128, -1, -1)
    inputs[1], inputs[5] = torch.full_like(inputs[1], -1e-4), torch.full_like(inputs[5], 0.999)
    expected, end = delta_rule(*inputs)
    y, after = delta_rule(*(each.float() for each in inputs), chunk=chunk, implementation="chunked")
    # Eight products in a row, of at most 128 terms each.
    assert (y - expected).abs().max() <= 8 * 128 * torch.finfo(torch.float32).eps * expected.abs().max()
    assert (after - end).abs().max() <= 8 * 128 * torch.finfo(torch.float32).eps * end.abs().max()


def test_float32_chunks_at_the_fastest_decay() -> None:
    """Decays of exp(-1/sqrt(e)) everywhere: over 64 positions their product is 1e-17, its inverse 1e17."""
    inputs = [each.detach() for each in _drawn(1, 130, 8, 8, seed=1)]
    inputs[1] = torch.full_like(inputs[1], -math.exp(-0.5))
    expected, _ = delta_rule(*inputs)
    y, _ = delta_rule(*(each.float() for each in inputs), chunk=64, implementation="chunked")
    assert (y - expected).abs().max() <= 8 * 130 * torch.finfo(torch.float32).eps * expected.abs().max()


def test_float32_chunks_and_their_gradients_equal_the_loop() -> None:
    leaves = _drawn(2, 50, 8, 6, seed=3)
    low = [each.detach().float().requires_grad_() for each in leaves]
    runs = (torch.arange(50) // 17 + torch.arange(2)[:, None]).clone()
    weight = leaves[3].detach().cos()
    expected, _ = delta_rule(*leaves, runs=runs)
    y, _ = delta_rule(*low, runs=runs, implementation="chunked")
    exact = torch.autograd.grad((expected * weight).sum(), leaves)
    found = torch.autograd.grad((y * weight.float()).sum(), low)
    # Eight products in a row, of at most 50 terms each, forward; as many again backward.
    band = 8 * 50 * torch.finfo(torch.float32).eps
    for one, other, stages in zip([y, *found], [expected, *exact], [1, *[2] * 6], strict=True):
        assert (one - other).abs().max() <= stages * band * other.abs().max()


@pytest.mark.parametrize("time, chunk", [(1, 16), (33, 16), (20, 7)])
@torch.no_grad()
def test_flops_of_both_forms_are_counted(time: int, chunk: int) -> None:
    inputs = [each.detach() for each in _drawn(3, time, 4, 5, seed=2)]
    for implementation, expected in (
        ("chunked", scan_flops(time, 2, 4, 5, chunk)),
        ("reference", time * step_flops(2, 4, 5)),
    ):
        with FlopCounter() as counter:
            delta_rule(*inputs, chunk=chunk, implementation=implementation)
        assert counter.total == 3 * expected


@torch.no_grad()
def test_step_cost_is_counted() -> None:
    mixer = _mixer(torch.float32)
    with FlopCounter() as counter:
        mixer.step(_input(3, 1, torch.float32)[:, 0], mixer.init_state(3))
    assert counter.total == mixer.step_cost(3, 7).product_flops


@pytest.mark.parametrize(
    "options, words",
    [
        ({"chunk": 65}, "chunk is 65"),
        ({"implementation": "fast"}, "'fast' is unknown"),
    ],
)
def test_the_kernel_refuses(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        delta_rule(*_drawn(1, 3, 2, 2, seed=0), **options)
    r, log_decay, k, v, kappa, rate = _drawn(1, 3, 2, 2, seed=0)
    with pytest.raises(ValueError, match="kappa"):
        delta_rule(r, log_decay, k, v, kappa[:, :2], rate)


def test_starting_values_are_those_of_rwkv_lm() -> None:
    """By hand for a width of 128, two heads, the third of four layers."""
    mixer = create_mixer("rwkv7", 128, value_residual=True, layer=2, layers=4)
    assert (mixer.num_heads, mixer.head_dim) == (2, 64)
    channel, ratio = 96, 2 / 3
    assert mixer.mu["r"][channel].item() == pytest.approx(1 - 0.75 ** (0.2 * 0.5), abs=1e-6)
    assert mixer.mu["w"][channel].item() == pytest.approx(1 - 0.75 ** (0.9 * 0.5), abs=1e-6)
    within = (96 % 64 - 31.5) / 31.5
    wave = within * abs(within)
    place = 96 / 127
    assert mixer.decay.base[channel].item() == pytest.approx(
        -6 + 6 * place ** (1 + ratio**0.3) + 0.5 + 2.5 * wave, abs=1e-5
    )
    assert mixer.rate.base[channel].item() == pytest.approx(-0.19 + 0.3 * wave + 0.4 * (place - 0.5), abs=1e-6)
    assert mixer.residual.base[channel].item() == pytest.approx(0.73 - 0.4 * (place - 0.5), abs=1e-6)
    assert mixer.k_k[channel].item() == pytest.approx(0.71 - 0.1 * (place - 0.5), abs=1e-6)
    assert (mixer.k_a[0].item(), mixer.r_k[0, 0].item()) == pytest.approx((1.02, -0.04))
    assert mixer.norm.weight[5].item() == pytest.approx(0.75**0.7)
    assert mixer.norm.eps == 64e-5
    square = mixer.receptance.weight @ mixer.receptance.weight.t()
    torch.testing.assert_close(square, torch.eye(128), atol=1e-5, rtol=0)
    torch.testing.assert_close(mixer.key.weight @ mixer.key.weight.t(), 0.01 * torch.eye(128), atol=1e-6, rtol=0)
    assert not mixer.output.weight.any()
    assert not mixer.gate.down.any()
    assert mixer.gate.up.norm(dim=1)[0].item() == pytest.approx(0.1, rel=1e-4)
    assert [default_rank(768, factor) for factor in (2.5, 1.7, 5)] == [64, 32, 128]
    assert default_rank(64, 2.5) == 32


def test_only_the_square_projections_decay() -> None:
    for name, decayed in (
        ("rwkv7", {"receptance.weight", "key.weight", "value.weight", "output.weight"}),
        ("rwkv7_channel_mix", {"key.weight", "value.weight"}),
    ):
        assert set(decay_groups(create_mixer(name, DIM))[0]) == decayed


@torch.no_grad()
def test_long_inputs_in_pieces_equal_the_whole() -> None:
    mixer = _mixer(torch.float32)
    x = _input(2, 90, torch.float32)
    ids = torch.tensor([[0] * 40 + [1] * 50, [3] * 90])
    whole = mixer(x, document_ids=ids)
    first = mixer(x[:, :37], document_ids=ids[:, :37])
    second = mixer(x[:, 37:], first.state, document_ids=ids[:, 37:])
    torch.testing.assert_close(torch.cat([first.y, second.y], dim=1), whole.y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second.state.matrix, whole.state.matrix, rtol=1e-4, atol=1e-4)
    alone = mixer(x[:1, 40:])
    torch.testing.assert_close(whole.y[:1, 40:], alone.y, rtol=1e-4, atol=1e-4)
    empty = mixer(x[:, :0], first.state)
    assert empty.y.shape == (2, 0, DIM)
    torch.testing.assert_close(empty.state.last, first.state.last)


def test_low_precision_keeps_a_wide_state() -> None:
    mixer = _mixer(torch.bfloat16)
    y, state = mixer(_input(2, 20, torch.bfloat16))
    assert (y.dtype, state.last.dtype, state.matrix.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert state.nbytes == mixer.cost(2, 20).state_bytes


@pytest.mark.parametrize(
    "dim, options, words",
    [
        (12, {"head_dim": 5}, "head_dim is 5: it must divide dim = 12"),
        (12, {"head_dim": 1}, "head_dim is 1"),
        (67, {}, "dim is 67"),
        (12, {"chunk": 0}, "chunk is 0"),
        (12, {"decay_rank": 0}, "decay_rank is 0"),
        (12, {"layers": 0}, "layers is 0"),
        (12, {"layer": 2, "layers": 2}, "layer is 2"),
        (12, {"layer": -1}, "layer is -1"),
        (12, {"value_residuals": True}, "value_residual"),
    ],
)
def test_options_that_do_not_fit_are_refused(dim: int, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("rwkv7", dim, **options)


@torch.no_grad()
def test_channel_mix_equals_its_equation() -> None:
    torch.manual_seed(1)
    mixer = create_mixer("rwkv7_channel_mix", DIM, layer=1, layers=3).double()
    assert mixer.hidden == 4 * DIM
    place = torch.arange(DIM, dtype=torch.float64) / DIM
    torch.testing.assert_close(mixer.mu["k"], 1 - place ** ((2 / 3) ** 4), atol=1e-6, rtol=0)
    assert not mixer.value.weight.any()
    mixer.value.weight.normal_()
    x = _input(1, 7)
    y, state = mixer(x)
    last = torch.zeros(DIM, dtype=torch.float64)
    for t in range(7):
        inner = mixer.key.weight @ (x[0, t] + mixer.mu["k"] * (last - x[0, t]))
        expected = mixer.value.weight @ torch.where(inner > 0, inner, 0) ** 2
        torch.testing.assert_close(y[0, t], expected, rtol=1e-10, atol=1e-10)
        last = x[0, t]
    torch.testing.assert_close(state.last[0], x[0, -1])
    (band,) = mixer.mixing(x)
    assert band.matrix.shape == (1, DIM, 7, 7)
    torch.testing.assert_close(band.matrix[0, :, 3, 2], mixer.mu["k"])


def test_channel_mix_refuses_no_width() -> None:
    with pytest.raises(InputError, match="hidden is 0"):
        create_mixer("rwkv7_channel_mix", DIM, hidden=0)
