"""The LSTM against torch.nn.LSTM with the same weights, its packed documents and its Jacobian."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seqmix.errors import InputError
from seqmix.mixers import create_mixer
from seqmix.mixers.recurrent.lstm import LSTM

DIM = 6


def _mixer(dtype: torch.dtype = torch.float32, **options: object) -> LSTM:
    torch.manual_seed(0)
    return create_mixer("lstm", DIM, **options).to(dtype)


def _input(batch: int, time: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, time, DIM, generator=torch.Generator().manual_seed(time), dtype=torch.float64).to(dtype)


def _torch_lstm(mixer: LSTM) -> nn.LSTM:
    other = nn.LSTM(mixer.dim, mixer.hidden, bias=mixer.config.bias, batch_first=True).to(mixer.weight_ih.dtype)
    own = {f"{name}_l0": value for name, value in mixer.state_dict().items() if not name.startswith("out_proj")}
    other.load_state_dict(own, strict=True)
    return other


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("options", [{}, {"hidden": 9}, {"hidden": 4, "bias": False}])
def test_equals_torch_in_values_states_and_gradients(
    dtype: torch.dtype, tolerance: float, options: dict[str, object]
) -> None:
    mixer = _mixer(dtype, **options)
    other = _torch_lstm(mixer)
    x = _input(3, 11, dtype)
    own_x, other_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, state = mixer(own_x)
    hidden, (last, cell) = other(other_x)
    expected = mixer.out_proj(hidden)
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state.hidden, last[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state.cell, cell[0], rtol=tolerance, atol=tolerance)
    (y * x.cos()).sum().backward()
    found = [own_x.grad, *(getattr(mixer, name[:-3]).grad for name, _ in other.named_parameters())]
    (expected * x.cos()).sum().backward()
    for ours, theirs in zip(found, [other_x.grad, *(p.grad for p in other.parameters())], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance * 10, atol=tolerance * 10)


@torch.no_grad()
def test_steps_and_pieces_equal_the_whole() -> None:
    mixer = _mixer(hidden=9)
    x = _input(2, 13)
    whole, end = mixer(x)
    state = mixer.init_state(2)
    for t in range(13):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t])
    torch.testing.assert_close(state.cell, end.cell)
    assert state.position.tolist() == end.position.tolist() == [13, 13]
    first = mixer(x[:, :5])
    second = mixer(x[:, 5:], first.state)
    torch.testing.assert_close(torch.cat([first.y, second.y], dim=1), whole)
    torch.testing.assert_close(second.state.hidden, end.hidden)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_packed_pieces_equal_separate_documents(data: st.DataObject) -> None:
    """Two packed rows, fed in two pieces cut anywhere, equal each document on its own; both forms, gradients too."""
    time = data.draw(st.integers(1, 16))
    borders = torch.tensor([[data.draw(st.booleans()) for _ in range(time)] for _ in range(2)])
    ids = borders.long().cumsum(1) % 3 + 4
    cut = data.draw(st.integers(1, time))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    mixer = _mixer(dtype)
    x = _input(2, time, dtype).requires_grad_()

    def parts(row: int) -> list[torch.Tensor]:
        starts = [t for t in range(time) if t == 0 or borders[row, t]]
        return [x[row : row + 1, a:b] for a, b in zip(starts, [*starts[1:], time], strict=True)]

    separate = [[mixer(part) for part in parts(row)] for row in range(2)]
    expected = torch.cat([torch.cat([part.y for part in row], dim=1) for row in separate])
    found, state = mixer(x[:, :cut], document_ids=ids[:, :cut])
    if cut < time:
        rest, state = mixer(x[:, cut:], state, document_ids=ids[:, cut:])
        found = torch.cat([found, rest], dim=1)
    tolerance = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(state.cell, torch.cat([row[-1].state.cell for row in separate]), **tolerance)
    assert state.position.tolist() == [row[-1].state.position.item() for row in separate]
    assert state.document.tolist() == ids[:, -1].tolist()
    weight = expected.detach().cos()
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), [x, *mixer.parameters()]),
        torch.autograd.grad((expected * weight).sum(), [x, *mixer.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("borders", [[], [9], [20, 31], list(range(1, 40))])
def test_fused_spans_equal_the_loop(borders: list[int]) -> None:
    """float32 runs torch's fused form from border to border (or the loop where there are many), float64 the loop."""
    mixer = _mixer()
    x = _input(2, 40)
    ids = torch.zeros(2, 40, dtype=torch.int64)
    for row, at in enumerate(borders):
        ids[row % 2, at:] += 1
    before = mixer(_input(2, 3)).state
    y, state = mixer(x, before, document_ids=ids)
    exact, end = mixer.double()(x.double(), before.to(torch.float64), document_ids=ids)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.cell.double(), end.cell, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"hidden": 4}])
def test_matrix_is_the_jacobian_by_finite_differences(options: dict[str, object]) -> None:
    mixer = _mixer(torch.float64, **options)
    x = _input(2, 5, torch.float64)
    (mixing,) = mixer.mixing(x)
    assert mixing.values is None
    assert mixing.matrix.shape == (2, 1, 5, 5)
    with torch.no_grad():
        squares = torch.zeros(2, 5, 5, dtype=torch.float64)
        for source in range(5):
            for channel in range(DIM):
                nudge = torch.zeros_like(x)
                nudge[:, source, channel] = 1e-5
                slope = (mixer(x + nudge).y - mixer(x - nudge).y) / 2e-5
                squares[:, :, source] += slope.square().sum(-1)
    torch.testing.assert_close(mixing.matrix[:, 0], squares.sqrt(), rtol=1e-6, atol=1e-9)
    assert (mixing.matrix[:, 0].tril() > 0).sum() == 2 * 15


def test_readout_says_why_there_is_none() -> None:
    mixer = _mixer()
    with pytest.raises(InputError, match="not linear in a stream of values"):
        mixer.readout([], _input(1, 2))


def test_forget_bias() -> None:
    mixer = _mixer(hidden=5, forget_bias=1.0)
    total = mixer.bias_ih + mixer.bias_hh
    assert (total[5:10] == 1).all()
    assert (total[:5] != 1).all()
    plain = _mixer(hidden=5)
    assert (plain.bias_ih + plain.bias_hh)[5:10].std() > 0.01


def test_low_precision_keeps_a_wide_cell() -> None:
    mixer = _mixer(torch.bfloat16)
    x = _input(2, 40, torch.bfloat16)
    y, state = mixer(x)
    assert y.dtype == torch.bfloat16
    assert state.cell.dtype == state.hidden.dtype == torch.float32
    assert state.nbytes == mixer.cost(2, 40).state_bytes
    exact = mixer.double()(x.double()).y
    # |h| < 1 and computed in float32, so only the rounding of y itself is left.
    assert (y - exact).abs().max() <= 2**-8


def test_cost_by_hand() -> None:
    cost = _mixer(hidden=4).cost(2, 3)
    assert cost.product_flops == 2 * 3 * (2 * 4 * 4 * (DIM + 4) + 2 * 4 * DIM)
    assert cost.parameters == 16 * DIM + 16 * 4 + 32 + 4 * DIM + DIM
    assert _mixer().step_cost(2, 7).product_flops == 2 * 2 * 4 * DIM * 2 * DIM


def test_compiles_without_a_break() -> None:
    mixer = _mixer()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    x = _input(2, 4)
    ids = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 2]])
    torch.testing.assert_close(compiled(x, document_ids=ids).y, mixer(x, document_ids=ids).y)


@pytest.mark.parametrize(
    "options, words",
    [({"hidden": 0}, "hidden is 0"), ({"bias": False, "forget_bias": 1.0}, "forget_bias"), ({"hiden": 3}, "hidden")],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("lstm", DIM, **options)
