"""The depthwise convolution: every form against torch's own and against each other, values, gradients and states."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels import depthwise_conv, depthwise_conv_step
from seqmix.kernels.depthwise_conv import empty_state, group_channels

IMPLEMENTATIONS = ("reference", "torch")
"""Those that take float64."""

DILATIONS: list[int | list[int]] = [1, 3, [1, 1, 2, 2, 5], [2, 1, 2, 4, 1]]


def torch_conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int | list[int], causal: bool) -> Tensor:
    """Channel by channel, through torch's conv1d."""
    channels = []
    for channel, kernel in enumerate(weight):
        own = dilation if isinstance(dilation, int) else dilation[channel]
        reach = (len(kernel) - 1) * own
        left = reach if causal else reach // 2
        padded = F.pad(x[:, None, :, channel], (left, reach - left))
        own_bias = None if bias is None else bias[channel : channel + 1]
        channels.append(F.conv1d(padded, kernel[None, None], own_bias, dilation=own)[:, 0])
    return torch.stack(channels, dim=2)


def random_documents(batch: int, time: int, share: float, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, time, generator=draw) < share).cumsum(dim=1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dilation", DILATIONS, ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", [1, 2, 5])
def test_values_and_gradients_are_those_of_torch(
    implementation: str, dilation: int | list[int], causal: bool, kernel: int
) -> None:
    x = torch.randn(2, 13, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    expected = torch_conv(x, weight, bias, dilation, causal)
    found, _ = depthwise_conv(x, weight, bias, dilation=dilation, causal=causal, implementation=implementation)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    inputs = (x, weight, bias)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad))


@given(
    time=st.integers(1, 30),
    kernel=st.integers(1, 6),
    dilation=st.sampled_from(DILATIONS),
    causal=st.booleans(),
    share=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_packed_documents_equal_separate_ones(
    time: int, kernel: int, dilation: int | list[int], causal: bool, share: float, seed: int
) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(2, time, 5, dtype=torch.float64), torch.randn(5, kernel, dtype=torch.float64)
    documents = random_documents(2, time, share, seed)
    expected = torch.empty_like(x)
    for row in range(2):
        for document in documents[row].unique():
            inside = documents[row] == document
            expected[row, inside] = torch_conv(x[row : row + 1, inside], weight, None, dilation, causal)[0]
    for implementation in IMPLEMENTATIONS:
        found, _ = depthwise_conv(
            x, weight, dilation=dilation, causal=causal, document_ids=documents, implementation=implementation
        )
        torch.testing.assert_close(found, expected)


@given(
    time=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    kernel=st.integers(1, 5),
    dilation=st.sampled_from(DILATIONS),
    packed=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_pieces_and_steps_equal_the_whole(
    time: int, cuts: list[int], kernel: int, dilation: int | list[int], packed: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(2, time, 5, dtype=torch.float64), torch.randn(5, kernel, dtype=torch.float64)
    documents = random_documents(2, time, 0.1, seed) if packed else None
    whole, last = depthwise_conv(x, weight, dilation=dilation, document_ids=documents)
    borders = sorted({0, time, *(cut for cut in cuts if cut < time)})
    for implementation in IMPLEMENTATIONS:
        state, pieces = None, []
        for start, end in itertools.pairwise(borders):
            own = None if documents is None else documents[:, start:end]
            before = None if state is None else tuple(part.clone() for part in state)
            y, after = depthwise_conv(
                x[:, start:end], weight, dilation=dilation, state=state, document_ids=own, implementation=implementation
            )
            if before is not None:
                assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True)), "a given state is kept"
            pieces.append(y)
            state = after
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
        assert all(torch.equal(a, b) for a, b in zip(state, last, strict=True))
    if documents is None:
        state = empty_state(group_channels(dilation, 5, kernel), 2, dtype=torch.float64)
        stepped = []
        for position in range(time):
            y, state = depthwise_conv_step(x[:, position], weight, dilation=dilation, state=state)
            stepped.append(y)
        torch.testing.assert_close(torch.stack(stepped, dim=1), whole)
        torch.testing.assert_close(tuple(state), tuple(last))


def test_gradients_flow_through_pieces() -> None:
    x = torch.randn(1, 9, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(1, 9, 5, dtype=torch.float64)
    whole, _ = depthwise_conv(x, weight, dilation=2)
    expected = torch.autograd.grad(whole, (x, weight), grad)
    for implementation in IMPLEMENTATIONS:
        first, state = depthwise_conv(x[:, :4], weight, dilation=2, implementation=implementation)
        second, _ = depthwise_conv(x[:, 4:], weight, dilation=2, state=state, implementation=implementation)
        found = torch.autograd.grad(torch.cat([first, second], dim=1), (x, weight), grad)
        torch.testing.assert_close(found, expected)


def test_the_state_is_as_small_as_the_dilations_allow() -> None:
    grouped = group_channels([1, 1, 2, 2, 5], 5, 4)
    assert grouped.past_size == 3 * (1 + 1 + 2 + 2 + 5)
    assert grouped.span == 15
    assert group_channels(torch.tensor([2, 1, 2, 4, 1]), 5, 4).past_size == 3 * 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dilation": 0}, "dilation is 0"),
        ({"dilation": [1, 2]}, "dilation has 2 entries"),
        ({"implementation": "fastest"}, "implementation 'fastest' cannot be used here: it is unknown"),
        ({"document_ids": torch.zeros(1, 3, dtype=torch.int64)}, "document_ids has shape"),
        ({"causal": False, "state": empty_state(group_channels(1, 5, 3), 1)}, "takes no state"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        depthwise_conv(torch.randn(1, 4, 5), torch.randn(5, 3), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit"):
        depthwise_conv(torch.randn(1, 4, 5), torch.randn(4, 3))
