"""Linformer against loops written from its paper, its packed documents, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmix.errors import InputError
from seqmix.flop_counter import FlopCounter
from seqmix.mixers import create_mixer
from seqmix.mixers.linformer import Linformer

DIM, LENGTH, RANK = 12, 20, 5


def _mixer(dtype: torch.dtype = torch.float64, **options: object) -> Linformer:
    torch.manual_seed(0)
    return create_mixer("linformer", DIM, **{"heads": 3, "length": LENGTH, "rank": RANK, **options}).to(dtype)


def _input(batch: int, time: int) -> Tensor:
    return torch.randn(batch, time, DIM, generator=torch.Generator().manual_seed(time), dtype=torch.float64)


def _published(mixer: Linformer, x: Tensor) -> Tensor:
    """Equation 7 for one row (time, dim), number by number where positions are summed over."""
    width, outputs = mixer.head_dim, torch.zeros(len(x), DIM, dtype=torch.float64)
    of_values = mixer.E if mixer.config.share_kv else mixer.F
    q, k, v = (projection(x) for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    for head in range(mixer.heads):
        part = slice(head * width, (head + 1) * width)
        keys = [sum(mixer.E[r, s] * k[s, part] for s in range(len(x))) for r in range(RANK)]
        values = [sum(of_values[r, s] * v[s, part] for s in range(len(x))) for r in range(RANK)]
        for t in range(len(x)):
            weights = [torch.exp(q[t, part] @ key / math.sqrt(width)) for key in keys]
            outputs[t, part] = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
    return mixer.o_proj(outputs)


@pytest.mark.parametrize("options", [{}, {"share_kv": True, "bias": True}])
@pytest.mark.parametrize("time", [1, 7, LENGTH])
@torch.no_grad()
def test_equals_the_published_sum(options: dict[str, object], time: int) -> None:
    """At the full length and at shorter ones, which use the first columns."""
    mixer = _mixer(**options)
    x = _input(2, time)
    y = mixer(x).y
    for row in range(2):
        torch.testing.assert_close(y[row], _published(mixer, x[row]), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_matrix_is_the_softmax_times_the_projection() -> None:
    mixer = _mixer()
    x = _input(2, 9)
    (mixing,) = mixer.mixing(x)
    assert mixing.matrix.shape == (2, 3, 9, 9)
    torch.testing.assert_close(mixer.readout([mixing.matrix @ mixing.values], x), mixer(x).y, rtol=1e-10, atol=1e-10)
    # Each row is an average of the rows of F, and there are only RANK of them.
    assert torch.linalg.matrix_rank(mixing.matrix).max() == RANK
    low, high = mixer.F[:, :9].amin(dim=0), mixer.F[:, :9].amax(dim=0)
    assert ((mixing.matrix >= low) & (mixing.matrix <= high)).all()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_packed_documents_equal_each_alone(data: st.DataObject) -> None:
    """Rows may be longer than `length` where no document is; both precisions, gradients of input and projections."""
    lengths = data.draw(st.lists(st.integers(1, LENGTH), min_size=1, max_size=5))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    mixer = _mixer(dtype, share_kv=data.draw(st.booleans()))
    x = _input(1, sum(lengths)).to(dtype).requires_grad_()
    ids = torch.repeat_interleave(torch.arange(len(lengths)) % 2 + 4, torch.tensor(lengths))[None]
    found = mixer(x, document_ids=ids).y
    expected = torch.cat([mixer(part).y for part in x.split(lengths, dim=1)], dim=1)
    # Sums over the row, forwards and backwards, taken twice, between four products of DIM terms.
    tolerance = 8 * (2 * sum(lengths) + 4 * DIM) * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(1.0, float(expected.detach().abs().max())))
    leaves = [x, *mixer.parameters()]
    ours, theirs = (torch.autograd.grad((y * expected.detach().cos()).sum(), leaves) for y in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        size = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one, other, rtol=0, atol=16 * tolerance * size)


@torch.no_grad()
def test_left_padding_as_a_document_changes_nothing() -> None:
    mixer = _mixer()
    x = _input(1, 8)
    ids = torch.tensor([[-1] * 3 + [0] * 5])
    torch.testing.assert_close(mixer(x, document_ids=ids).y[:, 3:], mixer(x[:, 3:]).y, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_more_positions_than_length_are_refused() -> None:
    mixer = _mixer()
    x = _input(1, 21)
    words = "a document has 21 positions, but E projects at most length = 20"
    for call in (mixer, mixer.mixing, lambda x: mixer(x, document_ids=torch.zeros(1, 21, dtype=torch.int64))):
        with pytest.raises(InputError, match=words):
            call(x)
    assert mixer(x, document_ids=torch.tensor([[0] + [1] * 20])).y.shape == (1, 21, DIM)


def test_a_causal_form_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="mixes all positions before any mask, which would leak the future"):
        create_mixer("linformer", DIM, causal=True)
    mixer = _mixer()
    with pytest.raises(InputError, match="not causal and has no state"):
        mixer.init_state(1)
    with pytest.raises(InputError, match="takes no state"):
        mixer(_input(1, 3), create_mixer("linear_attention", DIM).init_state(1))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"heads": 5}, "does not divide dim 12"),
        ({"rank": 21}, "rank is 21: it must not be above length 20"),
        ({"rank": 0}, "rank is 0"),
        ({"length": -1}, "length is -1"),
        ({"share": True}, "share_kv"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        _mixer(**options)


@pytest.mark.parametrize("share_kv", [False, True])
@torch.no_grad()
def test_cost_by_hand_and_counted(share_kv: bool) -> None:
    mixer = _mixer(torch.float32, share_kv=share_kv)
    with FlopCounter() as counter:
        mixer(_input(3, 13).float())
    cost = mixer.cost(3, 13)
    # Four projections of channels, two of positions, scores and values of RANK keys.
    assert cost.product_flops == counter.total == 3 * 13 * (2 * 4 * DIM**2 + 2 * 4 * RANK * DIM)
    assert cost.parameters == 4 * DIM**2 + (1 if share_kv else 2) * RANK * LENGTH
    assert cost.state_bytes == 0


@torch.no_grad()
def test_low_precision() -> None:
    x = _input(1, 15)
    ids = torch.tensor([[0] * 4 + [1] * 11])
    exact = _mixer()(x, document_ids=ids).y
    mixer = _mixer(torch.bfloat16)
    y = mixer(x.bfloat16(), document_ids=ids).y
    assert y.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = _mixer(torch.float32)(x.float(), document_ids=ids).y
    for found in (y, under_autocast):
        assert (found - exact).abs().max() <= 16 * 2**-8 * exact.abs().max()
