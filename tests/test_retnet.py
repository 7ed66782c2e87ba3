"""Retention against the three forms of its paper, written out in float64, and what is particular to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.mixers import create_mixer
from seqmix.mixers.retention import INITIAL_GAIN, RetNet, decay_logarithms

DIM, HEADS = 12, 3


def _mixer(dtype: torch.dtype = torch.float64, **options: object) -> RetNet:
    torch.manual_seed(0)
    mixer = create_mixer("retnet", DIM, **{"heads": HEADS, "chunk": 4, **options})
    with torch.no_grad():
        for parameter in (mixer.norm.weight, mixer.norm.bias):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer.to(dtype)


def _input(batch: int, time: int) -> Tensor:
    return torch.randn(batch, time, DIM, generator=torch.Generator().manual_seed(time), dtype=torch.float64)


def _head(mixer: RetNet, x: Tensor, head: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Q, K (time, pairs) as complex numbers turned by e^(i n theta), V (time, values) and gamma, for one row and head.

    The paper's product Q K^T of turned vectors is the real part of the complex one.
    """
    width, values = mixer.head_dim, mixer.inner // mixer.heads
    pairs = width // 2
    q, k = (
        F.linear(x, projection.weight, projection.bias)[:, head * width : (head + 1) * width]
        for projection in (mixer.q_proj, mixer.k_proj)
    )
    v = F.linear(x, mixer.v_proj.weight, mixer.v_proj.bias)[:, head * values : (head + 1) * values]
    theta = mixer.config.rope_theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    turn = torch.exp(1j * torch.arange(len(x))[:, None] * theta)
    q, k = (torch.complex(part[:, :pairs], part[:, pairs:]) * turn for part in (q, k))
    return q * width**-0.5, k, v, 1 - 2.0 ** (-5 - head)


def _gated(mixer: RetNet, x: Tensor, heads: list[Tensor]) -> Tensor:
    """Equation 8: the group norm of each head, the swish gate and the last projection."""
    normed = []
    for mixed in heads:
        centred = mixed - mixed.mean(dim=-1, keepdim=True)
        normed.append(centred / (centred.square().mean(dim=-1, keepdim=True) + mixer.config.norm_eps).sqrt())
    scaled = torch.cat(normed, dim=-1) * mixer.norm.weight + mixer.norm.bias
    gate = mixer.g_proj(x)
    return mixer.o_proj(gate * torch.sigmoid(gate) * scaled)


def _parallel(mixer: RetNet, x: Tensor) -> Tensor:
    """(Q K^T * D) V with D[n, m] = gamma^(n - m), equation 5."""
    heads = []
    for head in range(mixer.heads):
        q, k, v, gamma = _head(mixer, x, head)
        decays = torch.tensor(
            [[gamma ** (n - m) if n >= m else 0.0 for m in range(len(x))] for n in range(len(x))], dtype=torch.float64
        )
        heads.append((torch.real(q @ k.conj().T) * decays) @ v)
    return _gated(mixer, x, heads)


def _recurrent(mixer: RetNet, x: Tensor) -> Tensor:
    """S[n] = gamma S[n-1] + K[n]^T V[n], Q[n] S[n], equation 6."""
    heads = []
    for head in range(mixer.heads):
        q, k, v, gamma = _head(mixer, x, head)
        state, outputs = torch.zeros(q.shape[1], v.shape[1], dtype=torch.complex128), []
        for n in range(len(x)):
            state = gamma * state + torch.outer(k[n].conj(), v[n] + 0j)
            outputs.append(torch.real(q[n] @ state))
        heads.append(torch.stack(outputs))
    return _gated(mixer, x, heads)


def _chunkwise(mixer: RetNet, x: Tensor, chunk: int) -> Tensor:
    """Equation 7, with R the state between chunks."""
    heads = []
    for head in range(mixer.heads):
        q, k, v, gamma = _head(mixer, x, head)
        carried, outputs = torch.zeros(q.shape[1], v.shape[1], dtype=torch.complex128), []
        for first in range(0, len(x), chunk):
            part = slice(first, first + chunk)
            steps = torch.arange(len(x[part]), dtype=torch.float64)
            apart = steps[:, None] - steps[None, :]
            decays = torch.where(apart >= 0, gamma**apart, 0.0)
            inner = (torch.real(q[part] @ k[part].conj().T) * decays) @ v[part]
            cross = torch.real(q[part] @ carried) * gamma ** (steps[:, None] + 1)
            outputs.append(inner + cross)
            written = v[part] * gamma ** (len(steps) - 1 - steps[:, None])
            carried = k[part].conj().T @ (written + 0j) + gamma ** len(steps) * carried
        heads.append(torch.cat(outputs))
    return _gated(mixer, x, heads)


OPTIONS = [{}, {"expand": 1, "bias": True, "rope_theta": 50.0, "norm_eps": 1e-3}]


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_the_published_forms_are_forward_step_and_matrix(options: dict[str, object]) -> None:
    mixer = _mixer(**options)
    x = _input(2, 15)
    whole, end = mixer(x)
    (mixing,) = mixer.mixing(x)
    assert mixing.matrix.shape == (2, HEADS, 15, 15)
    of_matrix = mixer.readout([mixing.matrix @ mixing.values], x)
    close = {"rtol": 1e-10, "atol": 1e-10}
    for row in range(2):
        torch.testing.assert_close(whole[row], _chunkwise(mixer, x[row], 4), **close)
        torch.testing.assert_close(of_matrix[row], _parallel(mixer, x[row]), **close)
    state = mixer.init_state(2)
    expected = torch.stack([_recurrent(mixer, x[row]) for row in range(2)])
    for t in range(15):
        one, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(one, expected[:, t], **close)
    torch.testing.assert_close(state.hidden, end.hidden, **close)


@pytest.mark.parametrize("time", [1, 31, 130])
@torch.no_grad()
def test_float32_equals_the_parallel_form(time: int) -> None:
    """The fast form that float32 takes, over several chunks and beyond a state's reach."""
    x = _input(1, time)
    expected = _parallel(_mixer(), x[0])
    found = _mixer(torch.float32)(x.float()).y[0]
    # The norm divides by the size of what was mixed, so the error is that of its sums relative to them.
    assert (found - expected).abs().max() <= 8 * max(time, 4 * DIM) * 2**-23 * expected.abs().max()


@torch.no_grad()
def test_a_later_document_turns_from_its_own_start() -> None:
    mixer = _mixer()
    x = _input(1, 12)
    ids = torch.tensor([[3] * 5 + [9] * 7])
    expected = torch.cat([_parallel(mixer, x[0, :5]), _parallel(mixer, x[0, 5:])])
    y, state = mixer(x, document_ids=ids)
    torch.testing.assert_close(y[0], expected, rtol=1e-10, atol=1e-10)
    assert state.position.tolist() == [7]


def test_decays_are_the_published_ones() -> None:
    gammas = decay_logarithms(60, torch.device("cpu")).exp()
    assert gammas[:3].tolist() == pytest.approx([31 / 32, 63 / 64, 127 / 128])
    # Where 1 - gamma is below what float64 shows beside 1, its logarithm still is not 0.
    assert decay_logarithms(60, torch.device("cpu"))[59] == -(2.0**-64)


def test_sizes_and_initialisation_are_the_published_ones() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("retnet", 256, heads=1)
    assert mixer.v_proj.weight.shape == mixer.g_proj.weight.shape == (512, 256)
    assert mixer.num_parameters == 8 * 256**2 + 2 * 512
    for projection, gain in ((mixer.q_proj, INITIAL_GAIN), (mixer.g_proj, INITIAL_GAIN), (mixer.o_proj, 1.0)):
        fans = sum(projection.weight.shape)
        assert projection.weight.std().item() == pytest.approx(gain * (2 / fans) ** 0.5, rel=0.02)


@torch.no_grad()
def test_cost_of_a_step_is_counted() -> None:
    mixer = _mixer(torch.float32)
    with FlopCounter() as counter:
        mixer.step(_input(3, 1)[:, 0].float(), mixer.init_state(3))
    assert mixer.step_cost(3, 5).product_flops == counter.total
    assert mixer.step_cost(3, 5).state_bytes == mixer.init_state(3).nbytes


@torch.no_grad()
def test_a_bfloat16_state_is_float32_and_autocast_works() -> None:
    mixer = _mixer(torch.bfloat16)
    assert mixer(_input(1, 9).bfloat16()).state.hidden.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = _mixer(torch.float32)(_input(1, 20).float()).y
    exact = _mixer()(_input(1, 20)).y
    assert (y - exact).abs().max() <= 16 * 2**-8 * exact.abs().max()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"heads": 5}, "does not divide dim 12"),
        ({"heads": 12, "expand": 1}, "width 1"),
        ({"expand": 0}, "expand is 0"),
        ({"chunk": -2}, "chunk is -2"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0"),
        ({"norm_eps": -1.0}, "norm_eps is -1.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("retnet", DIM, **options)


def test_a_state_of_another_mixer_is_refused() -> None:
    mixer = _mixer()
    with pytest.raises(InputError, match="begin with init_state"):
        mixer.step(_input(1, 1)[:, 0], create_mixer("linear_attention", DIM).init_state(1))
