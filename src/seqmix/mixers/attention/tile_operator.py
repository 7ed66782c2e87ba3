"""Attention by tiles as one differentiable operation of PyTorch, so that `torch.compile` and the FLOP counter see one.

Shapes: B batch, H heads, G groups of heads that share keys and values, T time, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seqmix.mixers.attention.tile_layouts import TILE, Layout, Listed, Lists, Near
from seqmix.mixers.attention.tiled import mix_tiles, mix_tiles_backward


def _layout(
    q: Tensor,
    runs: Tensor | None,
    order: Tensor | None,
    tiles: Tensor | None,
    sources: Tensor | None,
    hidden: Tensor | None,
    sizes: Sequence[int],
    near: Sequence[int],
) -> Layout:
    time = q.shape[2]
    if tiles is None or sources is None or hidden is None:
        before, after, spacing = near
        return Near(time, before, after, spacing, runs, q.device)
    return Listed(time, Lists(tiles, sources, hidden, sizes, order))


def _ordered(order: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors if order is None else tuple(tensor.index_select(2, order) for tensor in tensors)


def _back(order: Tensor | None, tensor: Tensor) -> Tensor:
    return tensor if order is None else torch.empty_like(tensor).index_copy_(2, order, tensor)


@torch.library.custom_op("seqmix::tiled_attention", mutates_args=())
def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor | None,
    runs: Tensor | None,
    order: Tensor | None,
    tiles: Tensor | None,
    sources: Tensor | None,
    hidden: Tensor | None,
    sizes: Sequence[int],
    near: Sequence[int],
    links: int,
) -> tuple[Tensor, Tensor]:
    """The values mixed (B, H, T, K), and what the backward needs of the softmax.

    Args:
        slopes: (H,), of ALiBi. runs: (1 or B, T), for a window, in the order of the tiles.
        order: (T,), the position at each place of the tiles; None for the positions themselves.
        tiles, sources, hidden, sizes: as in `Lists`; None for a window.
        near: for a window: the positions before and after, and how far they are from each other.
        links: pairs of target and source over all rows, for the FLOP counter.
    """
    layout = _layout(q, runs, order, tiles, sources, hidden, sizes, near)
    mixed, sums = mix_tiles(layout, slopes, *_ordered(order, q, k, v))
    return _back(order, mixed), sums


@tiled_attention.register_fake
def _(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, heads, time, _ = q.shape
    groups = k.shape[1]
    sums = q.new_empty(batch, groups, -(-time // TILE), heads // groups * TILE, 1, dtype=torch.float32)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), sums


@torch.library.custom_op("seqmix::tiled_attention_backward", mutates_args=())
def _backward_of_tiled(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mixed: Tensor,
    sums: Tensor,
    slopes: Tensor | None,
    runs: Tensor | None,
    order: Tensor | None,
    tiles: Tensor | None,
    sources: Tensor | None,
    hidden: Tensor | None,
    sizes: Sequence[int],
    near: Sequence[int],
    links: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    layout = _layout(q, runs, order, tiles, sources, hidden, sizes, near)
    grads = mix_tiles_backward(layout, slopes, sums, *_ordered(order, grad, q, k, v, mixed))
    return tuple(_back(order, one) for one in grads)  # type: ignore[return-value]


@_backward_of_tiled.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *optional = inputs[:9]
    ctx.save_for_backward(q, k, v, *output, *optional)
    ctx.rest = inputs[9:]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    none = (None,) * 9
    if grad is None:
        return (None, None, None, *none)
    return (*_backward_of_tiled(grad, *ctx.saved_tensors, *ctx.rest), *none)


tiled_attention.register_autograd(_differentiate, setup_context=_keep)
