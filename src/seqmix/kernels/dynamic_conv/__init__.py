"""The dynamic convolution: every position has kernels of its own, one for each head of neighbouring channels.

`reference.py` is the specification, `chunked.py` the fast form. Neither ever holds a window for every position.

Shapes: B batch, T time, D channels, H heads, K kernel, L length of the ring, K - 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.depthwise_conv import DepthwiseConvState, group_channels, unroll
from seqmix.kernels.depthwise_conv.channels import newest, ring_of, roll
from seqmix.kernels.documents import place_piece
from seqmix.kernels.dynamic_conv import chunked, reference

IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reference": reference.convolve,
    "chunked": chunked.convolve,
}

__all__ = ["IMPLEMENTATIONS", "dynamic_conv", "dynamic_conv_step"]


def dynamic_conv(
    x: Tensor,
    weight: Tensor,
    *,
    causal: bool = True,
    state: DepthwiseConvState | None = None,
    document_ids: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, DepthwiseConvState | None]:
    """Convolves every head with the kernel that its position has.

    Args:
        x: (batch, time, dim).
        weight: (batch, time, heads, kernel); `weight[..., -1]` is the tap at the position itself when causal. The
            non-causal form is centred as torch's padding="same".
        state: where an earlier piece ended (causal only), as of `depthwise_conv` with dilation 1; it is not changed.
        document_ids: (batch, time); taps that cross a change of the id are zero.
        implementation: "chunked", "reference", or None: the reference for float64, else the fast one.

    Returns:
        y (batch, time, dim) and the state after the piece (None when not causal).

    Raises:
        ValueError: shapes that do not fit or are empty, a state for a non-causal convolution, an unknown
            implementation.
    """
    if x.dim() != 3 or weight.dim() != 4 or weight.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit: they must be "
            "(batch, time, dim) and (batch, time, heads, kernel)"
        )
    batch, time, dim = x.shape
    heads, kernel = weight.shape[2:]
    if heads < 1 or kernel < 1 or dim % heads:
        raise ValueError(
            f"weight has {heads} heads of {kernel} taps: give at least one tap, and heads that divide dim {dim}"
        )
    if state is not None and not causal:
        raise ValueError("a non-causal convolution takes no state: give the whole sequence at once")
    if implementation is None:
        implementation = "reference" if x.dtype == torch.float64 else "chunked"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}")
    group = group_channels(1, dim, kernel).groups[0]
    position, document = (None, None) if state is None else (state.position, state.document)
    placement = place_piece(batch, time, x.device, position, document, document_ids)
    left = kernel - 1 if causal else (kernel - 1) // 2
    recent = x.new_zeros(batch, left, dim) if state is None else unroll(state.past, state.position, group).to(x.dtype)
    padded = torch.cat([recent, x, x.new_zeros(batch, kernel - 1 - left, dim)], dim=1)
    if placement.packed:
        # What stands before continues document 0, and after the end is none.
        runs = F.pad(F.pad(placement.runs, (left, 0)), (0, kernel - 1 - left), value=-1)
        is_same = runs.unfold(1, kernel, 1) == placement.runs[:, :, None]
        weight = torch.where(is_same[:, :, None], weight, weight.new_zeros(()))
    y = IMPLEMENTATIONS[implementation](padded, weight)
    if not causal:
        return y, None
    past = roll(newest(recent, x, group), placement.position, group)
    return y, DepthwiseConvState(past, placement.position, placement.document)


def dynamic_conv_step(x: Tensor, weight: Tensor, *, state: DepthwiseConvState) -> tuple[Tensor, DepthwiseConvState]:
    """One more input x (batch, dim), with its kernels (batch, heads, kernel); the ring in `state` is overwritten."""
    heads, kernel = weight.shape[1:]
    group = group_channels(1, x.shape[1], kernel).groups[0]
    window = x[:, None]
    if group.length:
        ring = ring_of(state.past, group)
        slots = (state.position[:, None] + torch.arange(group.length, device=x.device)) % group.length
        earlier = ring.gather(1, slots[:, :, None].expand(-1, -1, group.width))
        window = torch.cat([earlier.to(x.dtype), window], dim=1)
        ring.scatter_(1, slots[:, :1, None].expand(-1, -1, group.width), x[:, None].to(ring.dtype))
    y = torch.einsum("bhk,bkhw->bhw", weight.to(x.dtype), window.unflatten(2, (heads, -1)))
    return y.flatten(1), DepthwiseConvState(state.past, state.position + 1, state.document)
