"""The dynamic convolution tap by tap, in pieces of time that stay in the cache, with a backward of its own.

A loop over the taps reads and writes the whole output once a tap; within a piece those passes never leave the cache.
Sums are kept in float32. Autograd of that loop would make and add up a gradient as large as x for every tap; here
each tap's part is added in place. The gradient of the weights is a product of each head's gradient with its window,
which is a view. Memory is linear in time and, but for the weights themselves, does not grow with the kernel.

Shapes: B batch, T time, P padded time (T + K - 1), H heads of W neighbouring channels, D channels (H * W), K kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 18
"""Numbers of a piece on a CPU: few enough for its cache, enough to outweigh the call of an operation."""


def _pieces(padded_BPD: Tensor, weight_BTHK: Tensor) -> Iterator[tuple[slice, int, int]]:
    """(rows, first, last) that together cover every position; a GPU takes them all at once."""
    batch, time = weight_BTHK.shape[:2]
    rows, steps = batch, time
    if padded_BPD.device.type == "cpu":
        positions = max(1, PIECE // padded_BPD.shape[2])
        rows, steps = max(1, positions // max(1, time)), positions
    for row in range(0, batch, max(1, rows)):
        for first in range(0, time, steps):
            yield slice(row, row + rows), first, min(first + steps, time)


@torch.library.custom_op("seqmix::dynamic_conv", mutates_args=())
def convolve(padded: Tensor, weight: Tensor) -> Tensor:
    """As the reference."""
    batch, time, heads, kernel = weight.shape
    wide = torch.promote_types(padded.dtype, torch.float32)
    y = padded.new_empty(batch, time, padded.shape[2])
    for rows, first, last in _pieces(padded, weight):
        source = padded[rows, first : last + kernel - 1].to(wide).unflatten(2, (heads, -1))
        taps = weight[rows, first:last].to(wide)
        total = taps[..., 0, None] * source[:, : last - first]
        for tap in range(1, kernel):
            total.addcmul_(taps[..., tap, None], source[:, tap : tap + last - first])
        y[rows, first:last] = total.flatten(2)
    return y


@convolve.register_fake
def _(padded: Tensor, weight: Tensor) -> Tensor:
    return padded.new_empty(*weight.shape[:2], padded.shape[2])


@torch.library.custom_op("seqmix::dynamic_conv_backward", mutates_args=())
def _backward(grad: Tensor, padded: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `padded` and `weight`."""
    heads, kernel = weight.shape[2:]
    wide = torch.promote_types(padded.dtype, torch.float32)
    grad_padded = torch.zeros(padded.shape, dtype=wide, device=padded.device)
    grad_weight = weight.new_empty(weight.shape)
    for rows, first, last in _pieces(padded, weight):
        own = grad[rows, first:last].to(wide).unflatten(2, (heads, -1))
        source = padded[rows, first : last + kernel - 1].to(wide).unflatten(2, (heads, -1))
        grad_source = grad_padded[rows, first : last + kernel - 1].unflatten(2, (heads, -1))
        taps = weight[rows, first:last].to(wide)
        # Contiguous whatever the weights are: its rows are written through views.
        grad_taps = torch.empty(taps.shape, dtype=wide, device=taps.device)
        for tap in range(kernel):
            grad_source[:, tap : tap + last - first].addcmul_(taps[..., tap, None], own)
        for row, sources in enumerate(source):
            # The windows of one row are a view: position and head advance by one head's width of memory.
            windows = sources.unfold(0, kernel, 1).flatten(0, 1)
            torch.bmm(own[row].flatten(0, 1)[:, None], windows, out=grad_taps[row].flatten(0, 1)[:, None])
        grad_weight[rows, first:last] = grad_taps
    return grad_padded.to(padded.dtype), grad_weight


@_backward.register_fake
def _(grad: Tensor, padded: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return padded.new_empty(padded.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return _backward(grad, *ctx.saved_tensors)


convolve.register_autograd(_gradients, setup_context=_save)
