"""The FLOP counter against numbers worked out by hand, above all where torch's own counter is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.flop_counter import FlopCounter


def count(function: Callable[[], object]) -> int:
    with FlopCounter() as counter:
        function()
    return counter.total


@pytest.mark.parametrize("grad", [True, False])
def test_linear_layers_and_matrix_products(grad: bool) -> None:
    x = torch.randn(2, 5, 8)
    layer = nn.Linear(8, 3)
    with torch.set_grad_enabled(grad):
        assert count(lambda: layer(x)) == 2 * 10 * 8 * 3
        assert count(lambda: x @ torch.randn(8, 3)) == 2 * 10 * 8 * 3
        assert count(lambda: x @ torch.randn(8)) == 2 * 10 * 8
        assert count(lambda: x @ torch.randn(2, 8, 3)) == 2 * 10 * 8 * 3
        assert count(lambda: torch.einsum("btd,hd->bth", x, torch.randn(3, 8))) == 2 * 10 * 8 * 3
    with torch.inference_mode():
        assert count(lambda: layer(x)) == 2 * 10 * 8 * 3


def test_element_wise_work_is_no_product() -> None:
    x = torch.randn(2, 5, 8)
    assert count(lambda: (x * x + x.cumsum(1)).softmax(-1)) == 0


@pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, 1, 1), (6, 1, 3), (2, 2, 1)])
def test_convolutions_honour_groups_forward_and_backward(groups: int, stride: int, dilation: int) -> None:
    layer = nn.Conv1d(6, 12, 4, groups=groups, stride=stride, dilation=dilation, bias=False)
    x = torch.randn(3, 6, 20, requires_grad=True)
    y = layer(x)
    forward = 2 * y.numel() * (6 // groups) * 4
    assert count(lambda: layer(x)) == forward
    assert count(lambda: layer(x).sum().backward()) == 3 * forward
    assert count(lambda: layer(x.detach()).sum().backward()) == 2 * forward


def test_transposed_convolutions() -> None:
    layer = nn.ConvTranspose1d(6, 4, 3, groups=2, stride=2, bias=False)
    x = torch.randn(3, 6, 10, requires_grad=True)
    forward = 2 * x.numel() * (4 // 2) * 3
    assert count(lambda: layer(x)) == forward
    assert count(lambda: layer(x).sum().backward()) == 3 * forward


def attention_inputs(kv_heads: int = 4, sources: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 4, 9, 8), torch.randn(2, kv_heads, sources, 8), torch.randn(2, kv_heads, sources, 8)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_attention_counts_its_links(grad: bool, dtype: torch.dtype) -> None:
    q, k, v = (part.to(dtype).requires_grad_(grad) for part in attention_inputs())
    a_link = 2 * (8 + 8)
    mask = torch.rand(9, 9) < 0.5
    mask[:, 0] = True
    by_row = torch.rand(2, 1, 9, 9) < 0.5
    by_row[..., 0] = True
    additive = torch.zeros(9, 9, dtype=dtype).masked_fill(~mask, -torch.inf)
    attention = F.scaled_dot_product_attention
    assert count(lambda: attention(q, k, v)) == 8 * 81 * a_link
    assert count(lambda: attention(q, k, v, is_causal=True)) == 8 * 45 * a_link
    assert count(lambda: attention(q, k, v, attn_mask=mask)) == 8 * int(mask.sum()) * a_link
    assert count(lambda: attention(q, k, v, attn_mask=by_row)) == 4 * int(by_row.sum()) * a_link
    assert count(lambda: attention(q, k, v, attn_mask=additive)) == 8 * int(mask.sum()) * a_link


def test_attention_with_shared_heads_and_another_length() -> None:
    q, k, v = attention_inputs(kv_heads=2, sources=5)
    attention = F.scaled_dot_product_attention
    assert count(lambda: attention(q, k, v, enable_gqa=True)) == 8 * 45 * 32
    links = 1 + 2 + 3 + 4 + 5 * 5
    assert count(lambda: attention(q, k, v, is_causal=True, enable_gqa=True)) == 8 * links * 32


def test_the_backward_of_attention_takes_five_products_of_its_links() -> None:
    q, k, v = (part.requires_grad_() for part in attention_inputs())
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert count(lambda: y.sum().backward()) == 8 * 45 * 2 * 5 * 8


@pytest.mark.parametrize("grad", [True, False])
def test_an_lstm_counts_both_products_of_every_position(grad: bool) -> None:
    layer = nn.LSTM(5, 7, num_layers=2, batch_first=True)
    x = torch.randn(3, 11, 5)
    expected = 2 * 3 * 11 * 4 * 7 * ((5 + 7) + (7 + 7))
    with torch.set_grad_enabled(grad):
        assert count(lambda: layer(x)) == expected


def test_operations_are_told_apart_and_counting_ends_with_the_block() -> None:
    x = torch.randn(4, 6)
    with FlopCounter() as counter:
        x @ torch.randn(6, 3)
        F.conv1d(x[None], torch.randn(2, 4, 3))
    x @ torch.randn(6, 3)
    assert dict(counter.by_operation) == {"mm": 2 * 4 * 6 * 3, "convolution": 2 * 2 * 4 * 4 * 3}
    assert counter.summary() == "convolution 192, mm 144"
