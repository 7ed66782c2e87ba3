"""Mamba-2 against Hugging Face's with the same weights, and what is particular to it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.mixers import create_mixer
from seqmix.mixers.state_space import Mamba2, Mamba2Config

DIM, OPTIONS = 16, {"state_size": 8, "head_dim": 4, "groups": 2, "chunk": 8}


def _mixer(dtype: torch.dtype = torch.float32, **options: object) -> Mamba2:
    torch.manual_seed(0)
    mixer = create_mixer("mamba2", DIM, **{**OPTIONS, **options}).to(dtype)
    with torch.no_grad():
        for parameter in (mixer.D, mixer.norm.weight):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return mixer


def _input(batch: int, time: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, time, DIM, generator=torch.Generator().manual_seed(time), dtype=torch.float64).to(dtype)


def _huggingface(mixer: Mamba2):  # type: ignore[no-untyped-def]
    """transformers' Mamba-2 layer that holds the weights of ours, and its model's empty cache."""
    from transformers import DynamicCache, Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    options = mixer.config
    config = Mamba2Config(
        hidden_size=mixer.dim,
        num_heads=mixer.num_heads,
        head_dim=mixer.head_dim,
        state_size=options.state_size,
        n_groups=options.groups,
        conv_kernel=options.conv_kernel,
        chunk_size=16,
        expand=options.expand,
        num_hidden_layers=1,
        layer_norm_epsilon=options.norm_eps,
        vocab_size=5,
    )
    other = Mamba2Mixer(config, layer_idx=0).to(mixer.D.dtype).eval()
    weights = mixer.state_dict()
    weights["conv1d.weight"] = weights.pop("conv_weight")[:, None]
    weights["conv1d.bias"] = weights.pop("conv_bias")
    other.load_state_dict(weights, strict=True)
    return other, DynamicCache(config=config)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-6)])
@torch.no_grad()
def test_equals_huggingface_whole_and_token_by_token(dtype: torch.dtype, tolerance: float) -> None:
    mixer = _mixer(dtype)
    other, cache = _huggingface(mixer)
    x = _input(2, 37, dtype)
    expected = other(x)
    scale = expected.abs().max()
    found, end = mixer(x)
    assert (found - expected).abs().max() <= tolerance * scale

    state = mixer.init_state(2)
    for t in range(x.shape[1]):
        theirs = other(x[:, t : t + 1], cache_params=cache)[:, 0]
        ours, state = mixer.step(x[:, t], state)
        assert (ours - theirs).abs().max() <= tolerance * scale
        assert (ours - expected[:, t]).abs().max() <= tolerance * scale
    hidden = cache.layers[0].recurrent_states
    hidden = hidden[0] if isinstance(hidden, (list, tuple, dict)) else hidden
    assert (state.hidden - hidden).abs().max() <= tolerance * hidden.abs().max()
    torch.testing.assert_close(end.hidden, state.hidden, rtol=tolerance, atol=tolerance)


def test_gradients_equal_huggingface() -> None:
    mixer = _mixer()
    other, _ = _huggingface(mixer)
    x = _input(2, 21)
    weight = _input(2, 21).cos()
    (mixer(x).y * weight).sum().backward()
    (other(x) * weight).sum().backward()
    theirs = dict(other.named_parameters())
    for name, parameter in mixer.named_parameters():
        expected = theirs[name.replace("conv_", "conv1d.")].grad.view_as(parameter)
        assert (parameter.grad - expected).abs().max() <= 1e-4 * expected.abs().max(), name


@torch.no_grad()
def test_equals_the_formula_written_out() -> None:
    """The whole mixer as its equations read, one position at a time, in float64."""
    mixer = _mixer(torch.float64)
    u = _input(1, 6, torch.float64)[0]
    inner, heads, size = mixer.inner, mixer.num_heads, mixer.config.state_size
    z, xBC, dt = (u @ mixer.in_proj.weight.T).split([inner, mixer.channels, heads], dim=-1)
    padded = torch.cat([xBC.new_zeros(3, mixer.channels), xBC])
    A, outputs = -mixer.A_log.exp(), []
    hidden = u.new_zeros(heads, mixer.head_dim, size)
    for t in range(6):
        window = padded[t : t + 4]
        convolved = F.silu((window * mixer.conv_weight.T).sum(0) + mixer.conv_bias)
        values = convolved[:inner].view(heads, mixer.head_dim)
        B, C = (part.view(2, size) for part in convolved[inner:].split(2 * size))
        step = torch.log1p(torch.exp(dt[t] + mixer.dt_bias))
        scanned = torch.empty_like(values)
        for head in range(heads):
            group = head // (heads // 2)
            hidden[head] = torch.exp(step[head] * A[head]) * hidden[head] + step[head] * torch.outer(
                values[head], B[group]
            )
            scanned[head] = hidden[head] @ C[group] + mixer.D[head] * values[head]
        gated = (scanned.flatten() * F.silu(z[t])).view(2, -1)
        normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        outputs.append(mixer.out_proj.weight @ (normed.flatten() * mixer.norm.weight))
    torch.testing.assert_close(mixer(u[None]).y[0], torch.stack(outputs))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_packed_pieces_equal_separate_documents(data: st.DataObject) -> None:
    """A packed row, fed in two pieces cut anywhere, equals each document on its own, outputs and final state."""
    mixer = _mixer()
    lengths = data.draw(st.lists(st.integers(1, 13), min_size=1, max_size=5))
    time = sum(lengths)
    cut = data.draw(st.integers(1, time))
    x = _input(1, time)
    ids = torch.cat([torch.full((1, length), 7 * index % 3 + 1) for index, length in enumerate(lengths)], dim=1)
    with torch.no_grad():
        parts = [mixer(part) for part in x.split(lengths, dim=1)]
        expected = torch.cat([part.y for part in parts], dim=1)
        found, state = mixer(x[:, :cut], document_ids=ids[:, :cut])
        if cut < time:
            rest, state = mixer(x[:, cut:], state, document_ids=ids[:, cut:])
            found = torch.cat([found, rest], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(state.hidden, parts[-1].state.hidden, rtol=1e-4, atol=2e-6)
    assert state.position.tolist() == [lengths[-1]]
    assert state.document.tolist() == [ids[0, -1].item()]


def test_gradient_does_not_cross_a_border() -> None:
    mixer = _mixer()
    x = _input(1, 20).requires_grad_()
    ids = torch.tensor([[1] * 9 + [2] * 11])
    (grad,) = torch.autograd.grad(mixer(x, document_ids=ids).y[:, 9:].square().sum(), x)
    assert grad[:, :9].abs().max() == 0
    assert grad[:, 9:].abs().min() > 0


@torch.no_grad()
def test_matrix_times_values_is_the_forward() -> None:
    mixer = _mixer(torch.float64)
    x = _input(2, 30, torch.float64)
    (mixing,) = mixer.mixing(x)
    assert mixing.matrix.shape == (2, mixer.num_heads, 30, 30)
    torch.testing.assert_close(mixer.readout([mixing.matrix @ mixing.values], x), mixer(x).y)
    assert (mixing.matrix.tril() == mixing.matrix).all()


def test_parameters_of_the_published_block() -> None:
    with torch.device("meta"):
        mixer = create_mixer("mamba2", 768)
    assert mixer.num_parameters == 3_764_552
    assert (mixer.num_heads, mixer.head_dim, mixer.cost(1, 10).parameters) == (24, 64, 3_764_552)


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("mamba2", 512)
    A, dt = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
    assert A.min() >= 1
    assert A.max() <= 16
    assert A.std() > 2
    assert dt.min() >= 1e-3 * (1 - 1e-4)
    assert dt.max() <= 0.1 * (1 + 1e-4)
    assert (mixer.D == 1).all()
    assert (mixer.norm.weight == 1).all()
    assert mixer.conv_weight.abs().max() <= 0.5
    assert mixer.conv_weight.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.05)
    assert mixer.no_decay() == {"A_log", "dt_bias", "D"} <= dict(mixer.named_parameters()).keys()


@pytest.mark.parametrize("time", [1, 8, 9, 31])
def test_cost_equals_the_counter_and_the_bytes(time: int) -> None:
    mixer = _mixer()
    with FlopCounter() as counter:
        _, state = mixer(_input(3, time))
    cost = mixer.cost(3, time)
    assert cost.product_flops == counter.total
    assert cost.state_bytes == state.nbytes == mixer.step_cost(3, time).state_bytes


def test_step_cost_equals_the_counter() -> None:
    mixer = _mixer(conv_kernel=3)
    with FlopCounterMode(display=False) as counter:
        mixer.step(_input(3, 1)[:, 0], mixer.init_state(3))
    # The convolution's tap at the position itself is an element-wise product, which the counter does not see.
    assert mixer.step_cost(3, 5).product_flops == counter.get_total_flops() + 3 * 2 * mixer.channels


@torch.no_grad()
def test_state_of_a_bfloat16_mixer_is_float32() -> None:
    mixer = _mixer(torch.bfloat16)
    x = _input(2, 40, torch.bfloat16)
    y, state = mixer(x)
    assert y.dtype == torch.bfloat16
    assert state.hidden.dtype == torch.float32
    assert state.past.dtype == torch.bfloat16
    assert mixer.init_state(2).hidden.dtype == torch.float32
    assert state.nbytes == mixer.cost(2, 40).state_bytes
    exact = mixer.double()(x.double()).y
    assert (y - exact).abs().max() <= 16 * 2**-8 * exact.abs().max()


@pytest.mark.parametrize(
    "dim, groups, expected", [(768, 1, 64), (12, 1, 24), (37, 1, 37), (48, 1, 48), (48, 4, 24), (50, 2, 50)]
)
def test_head_width_is_the_largest_divisor_up_to_64(dim: int, groups: int, expected: int) -> None:
    assert Mamba2Config(groups=groups).head_width(dim) == expected


@pytest.mark.parametrize(
    "options, words",
    [
        ({"head_dim": 5}, "head_dim is 5"),
        ({"groups": 3}, "groups is 3"),
        ({"state_size": 0}, "state_size is 0"),
        ({"chunk": -1}, "chunk is -1"),
        ({"A_range": (0.0, 1.0)}, "above 0"),
        ({"dt_range": (0.2, 0.1)}, "dt_range"),
        ({"state": 4}, "state_size"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("mamba2", DIM, **options)
