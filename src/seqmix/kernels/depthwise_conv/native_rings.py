"""The rings of the state, filled in C++: the recent values of each dilation, or of a product of two tensors.

Shapes: B batch, T time, D channels, L length of a ring, (K - 1) * dilation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seqmix.kernels.depthwise_conv.channels import Dilations, Group, ring_of
from seqmix.kernels.depthwise_conv.native import Past, Source, fill_rings, rows, table_of


def rings_after(
    values: Sequence[Tensor], dilations: Dilations, past: Tensor | None, position: Tensor | None, after: Tensor
) -> Tensor:
    """The rings (batch, total) at position `after` of each row's last document.

    Args:
        values: what is convolved, (batch, time, dim), or two tensors whose product is.
        past, position: of the state before, None at the start.
        after: (batch,), the position after the piece.
    """
    table = table_of(dilations, causal=True)
    lengths = [number for group in dilations.groups for number in group]
    return _rings(list(values), past, position, after, table, lengths, dilations.past_size)


@torch.library.custom_op("seqmix::depthwise_conv_rings", mutates_args=(), device_types="cpu")
def _rings(
    values: Sequence[Tensor],
    past: Tensor | None,
    position: Tensor | None,
    after: Tensor,
    table: Sequence[int],
    groups: Sequence[int],
    size: int,
) -> Tensor:
    source = Source.PRODUCT if len(values) == 2 else Source.PLAIN
    before = Past(*(None if tensor is None else tensor.contiguous() for tensor in (past, position)))
    return fill_rings(table, source, [rows(value) for value in values], before, after, size)


@_rings.register_fake
def _(values: Sequence[Tensor], past: Any, position: Any, after: Any, table: Any, groups: Any, size: int) -> Tensor:
    return values[0].new_empty(values[0].shape[0], size)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, past, _, after, _, ctx.groups, _ = inputs
    ctx.count = len(values)
    ctx.save_for_backward(*values, past, after)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Every slot's gradient goes back to where its value came from: a position of the piece, or the ring before."""
    *values, past, after = ctx.saved_tensors
    time = values[0].shape[1]
    grad_value = torch.zeros(values[0].shape, dtype=grad.dtype)
    grad_past = None if past is None else torch.zeros_like(past)
    for start in range(0, len(ctx.groups), len(Group._fields)):
        group = Group(*ctx.groups[start : start + len(Group._fields)])
        if group.length == 0:
            continue
        position = after[:, None] - torch.arange(1, group.length + 1)
        slots = (position % group.length)[:, :, None].expand(-1, -1, group.width)
        of_slot = ring_of(grad, group).gather(1, slots) * (position >= 0)[:, :, None]
        inside = min(group.length, time)
        grad_value[:, time - inside :, group.first : group.last] = of_slot[:, :inside].flip(1)
        if grad_past is not None:
            ring_of(grad_past, group).scatter_(1, slots[:, inside:], of_slot[:, inside:])
    grads = [grad_value] if ctx.count == 1 else [grad_value * values[1], grad_value * values[0]]
    return grads, grad_past, None, None, None, None, None


_rings.register_autograd(_backward, setup_context=_keep)
