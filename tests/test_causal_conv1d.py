"""The functions other people's models call for a short convolution, against a loop over positions in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from seqmix.kernels.causal_conv1d import causal_conv1d_fn, causal_conv1d_update

EPS = torch.finfo(torch.float32).eps


def _normal(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _oracle(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    seq_idx: torch.Tensor | None = None,
    initial: torch.Tensor | None = None,
) -> torch.Tensor:
    """Position by position: a tap counts when no border of documents lies between it and its target."""
    batch, dim, time = x.shape
    reach = weight.shape[1] - 1
    before = x.new_zeros(batch, dim, reach) if initial is None else initial
    inputs = torch.cat([before, x], dim=2)
    ids = torch.zeros(batch, time, dtype=torch.int64) if seq_idx is None else seq_idx
    ids = torch.cat([ids[:, :1].expand(-1, reach), ids], dim=1)
    rows = []
    for row in range(batch):
        outputs = []
        for t in range(time):
            y = x.new_zeros(dim) if bias is None else bias
            for tap in range(reach + 1):
                between = ids[row, t + tap : t + reach + 1]
                if (between == between[-1]).all():
                    y = y + weight[:, tap] * inputs[row, :, t + tap]
            outputs.append(y)
        rows.append(torch.stack(outputs, dim=1))
    return torch.stack(rows)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_states", [False, True])
def test_values_and_gradients_are_the_loop_s(activation: str | None, packed: bool, with_states: bool) -> None:
    batch, dim, time, kernel = 2, 3, 11, 4
    seq_idx = torch.tensor([[0] * 4 + [1] * 2 + [2] * 5, [3] * 7 + [0] * 4], dtype=torch.int32) if packed else None
    results = []
    for ours in (True, False):
        x, weight, bias = _normal(batch, dim, time), _normal(dim, kernel, seed=1), _normal(dim, seed=2)
        initial = _normal(batch, dim, kernel - 1, seed=3)
        leaves = [leaf.requires_grad_() for leaf in (x, weight, bias, *([initial] if with_states else []))]
        states = initial if with_states else None
        if ours:
            y = causal_conv1d_fn(x, weight, bias, seq_idx, states, activation=activation)
        else:
            y = _oracle(x, weight, bias, seq_idx, states)
            y = y if activation is None else F.silu(y)
        results.append([y.detach(), *torch.autograd.grad((y * _normal(*y.shape, seed=4)).sum(), leaves)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(time=st.integers(1, 12), cut=st.integers(0, 12), kernel=st.integers(1, 9), packed=st.booleans())
def test_pieces_equal_the_whole(time: int, cut: int, kernel: int, packed: bool) -> None:
    x, weight = _normal(2, 3, time), _normal(3, kernel, seed=1)
    at = min(cut, time)
    ids = torch.arange(time).expand(2, -1) // 3 if packed else None
    whole, end = causal_conv1d_fn(x, weight, None, ids, return_final_states=True)
    first, middle = causal_conv1d_fn(
        x[:, :, :at], weight, None, ids if ids is None else ids[:, :at], return_final_states=True
    )
    if packed and 0 < at < time and at % 3 == 0:
        middle = torch.zeros_like(middle)
    second, after = causal_conv1d_fn(
        x[:, :, at:], weight, None, ids if ids is None else ids[:, at:], middle, return_final_states=True
    )
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole)
    torch.testing.assert_close(after, end)


def test_final_states_are_written_where_they_are_asked_for() -> None:
    x, weight = _normal(2, 3, 5), _normal(3, 4, seed=1)
    out = torch.empty(2, 3, 3, dtype=torch.float64)
    _, final = causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=out)
    assert final is out
    torch.testing.assert_close(out, x[:, :, -3:])


def test_final_states_of_packed_rows_hold_the_last_document_alone() -> None:
    x, weight = _normal(1, 2, 5), _normal(2, 4, seed=1)
    _, final = causal_conv1d_fn(x, weight, seq_idx=torch.tensor([[0, 0, 0, 0, 1]]), return_final_states=True)
    torch.testing.assert_close(final, F.pad(x[:, :, -1:], (2, 0)))


@pytest.mark.parametrize("kernel", [1, 2, 4, 7, 32])
@pytest.mark.parametrize("layout", ["channels first", "time first", "every other"])
def test_float32_of_any_width_and_strides(kernel: int, layout: str) -> None:
    x = _normal(2, 40, 9, dtype=torch.float32)
    x = {
        "channels first": x.transpose(1, 2).contiguous(),
        "time first": x.transpose(1, 2),
        "every other": _normal(2, 9, 80, dtype=torch.float32)[:, :, ::2],
    }[layout].requires_grad_()
    weight = _normal(9, kernel, seed=1, dtype=torch.float32).requires_grad_()
    y = causal_conv1d_fn(x, weight)
    wide = [leaf.detach().double().requires_grad_() for leaf in (x, weight)]
    exact = _oracle(*wide, None)
    # A sum of that many products, each rounded to EPS / 2 of the largest, and the sum as often.
    assert (y - exact).abs().max() <= kernel * EPS * wide[0].abs().max() * wide[1].abs().max()
    found = torch.autograd.grad(y.sum(), (x, weight))
    expected = torch.autograd.grad(exact.sum(), wide)
    assert (found[0] - expected[0]).abs().max() <= kernel * EPS * kernel * wide[1].abs().max()
    assert (found[1] - expected[1]).abs().max() <= 80 * EPS * 80 * wide[0].abs().max()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kernel, length", [(4, 3), (4, 6), (1, 0), (1, 2), (5, 4)])
def test_updates_equal_the_convolution(kernel: int, length: int, steps: int) -> None:
    x, weight, bias = _normal(2, 3, 12), _normal(3, kernel, seed=1), _normal(3, seed=2)
    expected = causal_conv1d_fn(x, weight, bias, activation="silu")
    state = torch.zeros(2, 3, length, dtype=torch.float64)
    found = [causal_conv1d_update(x[:, :, t : t + steps], state, weight, bias, "silu") for t in range(0, 12, steps)]
    torch.testing.assert_close(torch.cat(found, dim=2), expected)
    torch.testing.assert_close(state, x[:, :, 12 - length :])


def test_one_input_without_a_time_axis() -> None:
    x, weight, state = _normal(2, 3), _normal(3, 4, seed=1), _normal(2, 3, 3, seed=2)
    kept = state.clone()
    found = causal_conv1d_update(x, state, weight)
    torch.testing.assert_close(found, (torch.cat([kept, x[:, :, None]], dim=2) * weight).sum(2))
    torch.testing.assert_close(state, torch.cat([kept[:, :, 1:], x[:, :, None]], dim=2))


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("length", [3, 5])
def test_a_ring_of_inputs(length: int, steps: int) -> None:
    """Each row has its own number of earlier inputs, and the ring goes round several times."""
    time, starts = 16, torch.tensor([0, 7], dtype=torch.int32)
    x, weight = _normal(2, 3, time), _normal(3, 4, seed=1)
    expected = causal_conv1d_fn(x, weight)
    state = torch.zeros(2, 3, length, dtype=torch.float64)
    found = [
        causal_conv1d_update(x[:, :, t : t + steps], state, weight, cache_seqlens=starts + t)
        for t in range(0, time, steps)
    ]
    torch.testing.assert_close(torch.cat(found, dim=2), expected)
    for row, start in enumerate(starts.tolist()):
        for t in range(time - length, time):
            torch.testing.assert_close(state[row, :, (start + t) % length], x[row, :, t])


def test_rows_of_a_larger_state() -> None:
    x, weight, states = _normal(2, 3, 1), _normal(3, 4, seed=1), _normal(5, 3, 3, seed=2)
    rows = torch.tensor([4, 1], dtype=torch.int32)
    chosen, others = states[rows.long()], states[[0, 2, 3]].clone()
    expected = causal_conv1d_update(x, chosen, weight)
    torch.testing.assert_close(causal_conv1d_update(x, states, weight, conv_state_indices=rows), expected)
    torch.testing.assert_close(states[rows.long()], chosen)
    torch.testing.assert_close(states[[0, 2, 3]], others)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: causal_conv1d_fn(torch.ones(2, 3, 4), torch.ones(4, 2)), "do not fit"),
        (lambda: causal_conv1d_fn(torch.ones(2, 3, 4), torch.ones(3, 2), activation="gelu"), "'gelu'"),
        (
            lambda: causal_conv1d_fn(torch.ones(2, 3, 4), torch.ones(3, 2), initial_states=torch.ones(2, 3, 2)),
            r"initial_states has shape \(2, 3, 2\)",
        ),
        (lambda: causal_conv1d_update(torch.ones(2, 3), torch.ones(2, 3, 1), torch.ones(3, 4)), "at least 3"),
        (lambda: causal_conv1d_update(torch.ones(2, 3), torch.ones(1, 3, 3), torch.ones(3, 4)), "conv_state"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
