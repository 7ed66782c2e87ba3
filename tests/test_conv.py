"""The full convolution against torch's conv1d, its packed documents, its ring and the form that changes the length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from seqmix.errors import InputError
from seqmix.mixers import create_mixer
from seqmix.mixers.full_convolution import Conv

DIM = 5


def _mixer(dtype: torch.dtype = torch.float32, **options: object) -> Conv:
    torch.manual_seed(0)
    return create_mixer("conv", DIM, **options).to(dtype)


def _input(batch: int, time: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, time, DIM, generator=torch.Generator().manual_seed(time), dtype=torch.float64).to(dtype)


def _weighted_gradients(y: torch.Tensor, leaves: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    weight = torch.arange(y.numel(), dtype=y.dtype).view_as(y).cos()
    return torch.autograd.grad((y * weight).sum(), leaves)


CAUSAL = [{}, {"kernel": 4, "dilation": 3, "bias": False}, {"kernel": 1}, {"kernel": 2, "dilation": 9}]
CENTRED = [
    {"kernel": 4, "dilation": 2},
    {"kernel": 3, "stride": 2},
    {"kernel": 4, "stride": 3, "padding": 5},
    {"kernel": 3, "padding": 0},
    {"kernel": 5, "padding": 2},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time", [1, 2, 7, 20])
@pytest.mark.parametrize("options", CAUSAL)
def test_causal_form_equals_torch(options: dict[str, object], time: int, dtype: torch.dtype) -> None:
    mixer = _mixer(dtype, **options)
    x = _input(3, time, dtype).requires_grad_()
    reach = (mixer.config.kernel - 1) * mixer.config.dilation
    padded = F.pad(x.transpose(1, 2), (reach, 0))
    expected = F.conv1d(padded, mixer.weight, mixer.bias, dilation=mixer.config.dilation).transpose(1, 2)
    found = mixer(x).y
    torch.testing.assert_close(found, expected)
    leaves = [x, *mixer.parameters()]
    for ours, theirs in zip(_weighted_gradients(found, leaves), _weighted_gradients(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time", [4, 9, 20])
@pytest.mark.parametrize("options", CENTRED)
def test_centred_form_equals_torch(options: dict[str, object], time: int, dtype: torch.dtype) -> None:
    mixer = _mixer(dtype, causal=False, **options)
    config = mixer.config
    x = _input(2, time, dtype)
    if config.padding == "same":
        dense = F.conv1d(x.transpose(1, 2), mixer.weight, mixer.bias, padding="same", dilation=config.dilation)
        expected = dense[:, :, :: config.stride].transpose(1, 2)
    else:
        expected = F.conv1d(
            x.transpose(1, 2), mixer.weight, mixer.bias, config.stride, config.padding, config.dilation
        ).transpose(1, 2)
    y, state = mixer(x)
    torch.testing.assert_close(y, expected)
    assert state is None
    assert y.shape[1] == config.positions_out(time) == mixer.links(time).shape[0]
    assert mixer.traits.resamples == (config.stride > 1 or config.padding == 0)
    (mixing,) = mixer.mixing(x)
    torch.testing.assert_close(mixer.readout([mixing.matrix @ mixing.values], x), y)
    with FlopCounterMode(display=False) as counter:
        mixer(x)
    assert mixer.cost(2, time).product_flops == counter.get_total_flops()


def test_matrix_is_a_shifted_diagonal_for_each_tap() -> None:
    mixer = _mixer(kernel=3, dilation=2)
    x = _input(2, 7)
    (mixing,) = mixer.mixing(x)
    assert mixing.matrix.shape == (1, 3, 7, 7)
    for tap in range(3):
        shift = (2 - tap) * 2
        assert (mixing.matrix[0, tap] == torch.diag_embed(torch.ones(7 - shift), offset=-shift)).all()
        torch.testing.assert_close(mixing.values[:, tap], x @ mixer.weight[:, :, tap].T)
    torch.testing.assert_close(mixer.readout([mixing.matrix @ mixing.values], x), mixer(x).y)
    assert (mixer.links(7) == mixing.matrix[0].sum(0).bool()).all()


@pytest.mark.parametrize("options", CAUSAL)
@torch.no_grad()
def test_steps_equal_forward(options: dict[str, object]) -> None:
    mixer = _mixer(**options)
    x = _input(3, 25)
    expected, end = mixer(x)
    state = mixer.init_state(3)
    for t in range(25):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, expected[:, t])
    torch.testing.assert_close(state.past, end.past)
    assert state.nbytes == mixer.cost(3, 25).state_bytes
    with FlopCounterMode(display=False) as counter:
        mixer.step(x[:, 0], state)
    assert mixer.step_cost(3, 25).product_flops == counter.get_total_flops()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_packed_pieces_equal_separate_documents(data: st.DataObject) -> None:
    """A packed row, fed in pieces cut anywhere and then by steps, equals each document on its own."""
    mixer = _mixer(kernel=data.draw(st.integers(1, 4)), dilation=data.draw(st.integers(1, 5)))
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    time = sum(lengths)
    cut = data.draw(st.integers(1, time))
    x = _input(1, time + 3).requires_grad_()
    documents = list(x.split([*lengths[:-1], lengths[-1] + 3], dim=1))
    expected = torch.cat([mixer(part).y for part in documents], dim=1)
    ids = torch.cat([torch.full((1, length), 5 - index % 2) for index, length in enumerate(lengths)], dim=1)
    found, state = mixer(x[:, :cut], document_ids=ids[:, :cut])
    outputs = [found]
    if cut < time:
        rest, state = mixer(x[:, cut:time], state, document_ids=ids[:, cut:])
        outputs.append(rest)
    read = torch.cat(outputs, dim=1)
    leaves = [x, *mixer.parameters()]
    for ours, theirs in zip(
        _weighted_gradients(read, leaves), _weighted_gradients(expected[:, :time], leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for t in range(time, time + 3):
            y, state = mixer.step(x[:, t], state)
            outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-5, atol=1e-6)
    assert state.position.tolist() == [lengths[-1] + 3]


def test_centred_form_keeps_packed_documents_apart() -> None:
    mixer = _mixer(kernel=4, dilation=2, causal=False)
    x = _input(2, 15)
    ids = torch.tensor([[0] * 4 + [1] * 11, [3] * 9 + [2] * 5 + [3]])
    expected = torch.cat(
        [
            torch.cat([mixer(part).y for part in x[:1].split([4, 11], dim=1)], dim=1),
            torch.cat([mixer(part).y for part in x[1:].split([9, 5, 1], dim=1)], dim=1),
        ]
    )
    torch.testing.assert_close(mixer(x, document_ids=ids).y, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_compiles_without_a_break(packed: bool) -> None:
    mixer = _mixer(kernel=3, dilation=2)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    ids = torch.tensor([[0, 0, 1, 1, 1, 1]]) if packed else None
    x = _input(1, 6)
    torch.testing.assert_close(compiled(x, document_ids=ids).y, mixer(x, document_ids=ids).y)


def test_packed_and_plain_forms_give_one_type_under_autocast() -> None:
    mixer = _mixer()
    x = _input(2, 6)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1], [2, 2, 2, 2, 2, 2]])
    expected = mixer(x, document_ids=ids).y
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, packed = mixer(x).y, mixer(x, document_ids=ids).y
    assert plain.dtype == packed.dtype == torch.bfloat16
    # Each of the three taps is rounded to 8 bits once, and so are the two sums.
    assert (packed - expected).abs().max() <= 5 * 2**-8 * expected.abs().max()


def test_numbers_it_declares() -> None:
    mixer = _mixer(kernel=4, dilation=3)
    assert (mixer.receptive_field, mixer.positions_seen) == (10, 4)
    assert mixer.cost(2, 7).parameters == DIM * DIM * 4 + DIM
    assert mixer.cost(2, 7).state_bytes == 2 * (9 * DIM * 4 + 16)
    assert mixer.cost(2, 7).product_flops == 2 * 2 * 7 * DIM * DIM * 4


@pytest.mark.parametrize(
    "options, words",
    [
        ({"stride": 2}, "stride is 2"),
        ({"padding": 1}, "causal"),
        ({"padding": "valid", "causal": False}, "'valid'"),
        ({"padding": -1, "causal": False}, "padding is -1"),
        ({"kernel": 0}, "kernel is 0"),
        ({"dilations": 2}, "dilation"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        create_mixer("conv", DIM, **options)


def test_what_a_form_cannot_do_is_an_error() -> None:
    strided = _mixer(causal=False, stride=2)
    x = _input(2, 6)
    with pytest.raises(InputError, match="one document a row"):
        strided(x, document_ids=torch.zeros(2, 6, dtype=torch.int64))
    with pytest.raises(InputError, match="takes no state"):
        strided(x, _mixer().init_state(2))
    with pytest.raises(InputError, match="no state"):
        strided.init_state(2)
    with pytest.raises(InputError, match="no step"):
        strided.step(x[:, 0], _mixer().init_state(2))
    with pytest.raises(InputError, match="2 positions is shorter than the kernel's span of 5"):
        _mixer(causal=False, kernel=5, padding=0)(_input(1, 2))
