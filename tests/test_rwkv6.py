"""RWKV-6 and its channel mix against loops written from the paper's equations, and what is particular to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.kernels.decayed_attention import decayed_attention, scan_flops, step_flops
from seqmix.mixers import create_mixer
from seqmix.mixers.rwkv.rwkv6 import RWKV6
from seqmix.training.optimizer import decay_groups

DIM, OPTIONS = 12, {"head_dim": 4, "mix_rank": 3, "decay_rank": 2, "layer": 1, "layers": 3}


def _mixer(dtype: torch.dtype = torch.float64, **options: object) -> RWKV6:
    """A mixer none of whose parameters is zero."""
    torch.manual_seed(0)
    mixer = create_mixer("rwkv6", DIM, **{**OPTIONS, **options})
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer.to(dtype)


def _input(batch: int, time: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, time, DIM, generator=torch.Generator().manual_seed(time), dtype=torch.float64).to(dtype)


@torch.no_grad()
def test_equals_the_equations_written_out() -> None:
    mixer = _mixer()
    p = {name.replace("mu.", "mu_"): value for name, value in mixer.named_parameters()}
    x = _input(1, 9)
    y, state = mixer(x)
    width = mixer.head_dim
    states = [x.new_zeros(width, width) for _ in range(mixer.num_heads)]
    last = torch.zeros_like(x[0, 0])
    for t, now in enumerate(x[0]):
        inner = torch.tanh((now + p["mu_x"] * (last - now)) @ p["mix_down"]).view(5, -1)
        blends = {
            name: now + (p[f"mu_{name}"] + inner[index] @ p["mix_up"][index]) * (last - now)
            for index, name in enumerate("wkvrg")
        }
        r, k, v = (p[f"{name}.weight"] @ blends[name[0]] for name in ("receptance", "key", "value"))
        g = p["gate.weight"] @ blends["g"]
        w = torch.exp(-torch.exp(p["decay.base"] + torch.tanh(blends["w"] @ p["decay.down"]) @ p["decay.up"]))
        mixed = torch.empty_like(v)
        for head in range(mixer.num_heads):
            part = slice(head * width, (head + 1) * width)
            written = torch.outer(v[part], k[part])
            read = (states[head] + written * p["bonus"][head]) @ r[part]
            states[head] = states[head] * w[part] + written
            normed = (read - read.mean()) / (read.var(correction=0) + 64e-5).sqrt()
            mixed[part] = normed * p["norm.weight"][part] + p["norm.bias"][part]
        expected = p["output.weight"] @ (mixed * g / (1 + torch.exp(-g)))
        torch.testing.assert_close(y[0, t], expected, rtol=1e-10, atol=1e-10)
        last = now
    torch.testing.assert_close(state.matrix[0], torch.stack(states), rtol=1e-10, atol=1e-10)


def _drawn(batch: int, time: int, key: int, value: int, seed: int, spread: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    r, k, v = draw(batch, time, 2, key), draw(batch, time, 2, key), draw(batch, time, 2, value)
    log_decay = -torch.exp(spread * draw(batch, time, 2, key))
    return [each.requires_grad_() for each in (r, log_decay, k, v, draw(2, key))]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_chunks_equal_the_loop(data: st.DataObject) -> None:
    """Outputs, last state and all gradients, of any length, chunk, decays and documents, after a state."""
    time, chunk = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    key, value = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    spread = data.draw(st.sampled_from([0.1, 1.0, 4.0]))
    inputs = _drawn(2, time, key, value, data.draw(st.integers(0, 99)), spread)
    state = torch.randn(2, 2, value, key, dtype=torch.float64, requires_grad=True)
    runs = None
    if data.draw(st.booleans()):
        runs = torch.tensor([[data.draw(st.booleans()) for _ in range(time)] for _ in range(2)]).cumsum(1)
    found = []
    for implementation in ("reference", "chunked"):
        y, after = decayed_attention(*inputs, state=state, runs=runs, chunk=chunk, implementation=implementation)
        total = y.cos().sum() + after.sin().sum()
        found.append([y, after, *torch.autograd.grad(total, [*inputs, state])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-10)


def test_tiny_decays_do_not_drown_what_follows() -> None:
    """A decay of exp(-5000), which is 0, now and then, and slow ones between; also one that overflows to -inf."""
    inputs = [each.detach() for each in _drawn(1, 70, 6, 6, seed=0, spread=0.1)]
    inputs[1] = 1e-2 * inputs[1]
    inputs[1][:, ::7] = -5000.0
    inputs[1][:, 3] = -torch.inf
    expected, end = decayed_attention(*inputs)
    y, after = decayed_attention(*(each.float() for each in inputs))
    # Four sums in a row, of at most 70 terms each.
    assert (y - expected).abs().max() <= 4 * 70 * torch.finfo(torch.float32).eps * expected.abs().max()
    assert (after - end).abs().max() <= 4 * 70 * torch.finfo(torch.float32).eps * end.abs().max()


@pytest.mark.parametrize("time, chunk", [(1, 16), (33, 16), (20, 7)])
@torch.no_grad()
def test_flops_of_both_forms_are_counted(time: int, chunk: int) -> None:
    inputs = [each.detach() for each in _drawn(3, time, 4, 5, seed=2)]
    for implementation, expected in (
        ("chunked", scan_flops(time, 2, 4, 5, chunk)),
        ("reference", time * step_flops(2, 4, 5)),
    ):
        with FlopCounter() as counter:
            decayed_attention(*inputs, chunk=chunk, implementation=implementation)
        assert counter.total == 3 * expected


@torch.no_grad()
def test_step_cost_is_counted() -> None:
    mixer = _mixer(torch.float32)
    with FlopCounter() as counter:
        mixer.step(_input(3, 1, torch.float32)[:, 0], mixer.init_state(3))
    assert counter.total == mixer.step_cost(3, 7).product_flops


def test_the_kernel_refuses() -> None:
    r, log_decay, k, v, bonus = _drawn(1, 3, 2, 2, seed=0)
    with pytest.raises(ValueError, match="chunk is 0"):
        decayed_attention(r, log_decay, k, v, bonus, chunk=0)
    with pytest.raises(ValueError, match="'fast' is unknown"):
        decayed_attention(r, log_decay, k, v, bonus, implementation="fast")
    with pytest.raises(ValueError, match="bonus"):
        decayed_attention(r, log_decay, k, v, bonus[:1])
    with pytest.raises(ValueError, match="log_decay"):
        decayed_attention(r, log_decay[:, :2], k, v, bonus)


def test_starting_values_are_those_of_rwkv_lm() -> None:
    """By hand for a width of 128, two heads, the third of four layers."""
    mixer = create_mixer("rwkv6", 128, layer=2, layers=4)
    channel, ratio, place = 96, 2 / 3, 96 / 127
    assert mixer.mu["x"][channel].item() == pytest.approx(1 - 0.75**0.5, abs=1e-6)
    assert mixer.mu["v"][channel].item() == pytest.approx(1 - (0.75**0.5 + 0.3 * ratio), abs=1e-6)
    assert mixer.mu["g"][channel].item() == pytest.approx(1 - 0.75**0.25, abs=1e-6)
    assert mixer.decay.base[channel].item() == pytest.approx(-6 + 5 * place ** (0.7 + 1.3 * ratio), abs=1e-5)
    bonus = ratio * (1 - place) + ((96 + 1) % 3 - 1) * 0.1
    assert mixer.bonus[1, 32].item() == pytest.approx(bonus, abs=1e-6)
    assert mixer.norm.weight[0].item() == pytest.approx(0.75**0.7)
    assert mixer.mix_down.shape == (128, 160)
    assert mixer.decay.rank == 64
    assert mixer.decay.up.abs().max() <= 0.01
    assert not mixer.mix_down.any()
    assert not mixer.output.weight.any()
    torch.testing.assert_close(mixer.gate.weight @ mixer.gate.weight.t(), 0.01 * torch.eye(128), atol=1e-6, rtol=0)


def test_only_the_square_projections_decay() -> None:
    for name, decayed in (
        ("rwkv6", {f"{part}.weight" for part in ("receptance", "key", "value", "gate", "output")}),
        ("rwkv6_channel_mix", {"key.weight", "value.weight", "receptance.weight"}),
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
    torch.testing.assert_close(whole.y[:1, 40:], mixer(x[:1, 40:]).y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "dim, options, words",
    [
        (12, {"head_dim": 5}, "head_dim is 5"),
        (67, {}, "dim is 67"),
        (12, {"chunk": 0}, "chunk is 0"),
        (12, {"mix_rank": 0}, "mix_rank is 0"),
        (12, {"decay_rank": -1}, "decay_rank is -1"),
        (12, {"layer": 1}, "layer is 1"),
        (12, {"head_dims": 4}, "head_dim"),
    ],
)
def test_options_that_do_not_fit_are_refused(dim: int, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("rwkv6", dim, **options)


@torch.no_grad()
def test_channel_mix_equals_its_equation() -> None:
    torch.manual_seed(1)
    mixer = create_mixer("rwkv6_channel_mix", DIM, layer=1, layers=3).double()
    assert create_mixer("rwkv6_channel_mix", 128).hidden == 448
    assert mixer.hidden == 32
    place = torch.arange(DIM, dtype=torch.float64) / DIM
    for mu in mixer.mu.values():
        torch.testing.assert_close(mu, 1 - place ** ((2 / 3) ** 3), atol=1e-6, rtol=0)
    assert not mixer.value.weight.any()
    assert not mixer.receptance.weight.any()
    for parameter in mixer.parameters():
        parameter.add_(torch.randn_like(parameter))
    x = _input(1, 7)
    y, _ = mixer(x)
    last = torch.zeros(DIM, dtype=torch.float64)
    for t in range(7):
        k, r = (x[0, t] + mixer.mu[name] * (last - x[0, t]) for name in ("k", "r"))
        inner = mixer.key.weight @ k
        gate = 1 / (1 + torch.exp(-(mixer.receptance.weight @ r)))
        expected = gate * (mixer.value.weight @ torch.where(inner > 0, inner, 0) ** 2)
        torch.testing.assert_close(y[0, t], expected, rtol=1e-10, atol=1e-10)
        last = x[0, t]
