"""The depthwise convolution with the gates that models put around it, computed on the way where a kernel can.

Shapes: B batch, T time, D channels, K kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.depthwise_conv import native, native_gates
from seqmix.kernels.depthwise_conv.channels import Dilations, group_channels
from seqmix.kernels.depthwise_conv.native_rings import rings_after
from seqmix.kernels.depthwise_conv.operation import DepthwiseConvState, depthwise_conv
from seqmix.kernels.documents import place_piece


def gated_depthwise_conv(
    projected: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int | Sequence[int] | Tensor | Dilations = 1,
    causal: bool = True,
    state: DepthwiseConvState | None = None,
    document_ids: Tensor | None = None,
) -> tuple[Tensor, DepthwiseConvState | None]:
    """C * (conv(B * u) + bias), LFM2's short convolution (arXiv 2511.23404) between its two products.

    Args:
        projected: (batch, time, 3 dim), B, C and u side by side.
        weight, bias, dilation, causal, state, document_ids: as in `depthwise_conv`; the state holds B * u.

    Returns:
        y (batch, time, dim) and the state after the piece (None when not causal).
    """
    gate_in, gate_out, value = projected.chunk(3, dim=-1)
    dilations = group_channels(dilation, weight.shape[0], weight.shape[1])
    past = None if state is None else state.past
    if projected.shape[1] == 0 or not _can_fuse(projected, weight, past, dilations):
        convolved, after = depthwise_conv(
            gate_in * value, weight, bias, dilation=dilations, causal=causal, state=state, document_ids=document_ids
        )
        return gate_out * convolved, after
    position, document = (None, None) if state is None else (state.position, state.document)
    batch, time = projected.shape[:2]
    placement = place_piece(batch, time, projected.device, position, document, document_ids)
    before = native.before_of(past, position, placement)
    y = native_gates.gated(projected, weight, bias, *before, native.table_of(dilations, causal))
    if not causal:
        return y, None
    rings = rings_after([gate_in, value], dilations, past, position, placement.position)
    return y, DepthwiseConvState(rings, placement.position, placement.document)


def swiglu_depthwise_conv(
    x: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int | Sequence[int] | Tensor | Dilations = 1,
    causal: bool = True,
    state: DepthwiseConvState | None = None,
    document_ids: Tensor | None = None,
) -> tuple[Tensor, DepthwiseConvState | None]:
    """(conv(x) + bias) * silu(a) * b.

    Args:
        x: (batch, time, dim).
        gates: (batch, time, 2 dim), a and b side by side.
        weight, bias, dilation, causal, state, document_ids: as in `depthwise_conv`.

    Returns:
        y (batch, time, dim) and the state after the piece (None when not causal).
    """
    first, second = gates.chunk(2, dim=-1)
    dilations = group_channels(dilation, weight.shape[0], weight.shape[1])
    past = None if state is None else state.past
    if x.shape[1] == 0 or gates.dtype != x.dtype or not _can_fuse(x, weight, past, dilations):
        convolved, after = depthwise_conv(
            x, weight, bias, dilation=dilations, causal=causal, state=state, document_ids=document_ids
        )
        return convolved * (F.silu(first) * second), after
    position, document = (None, None) if state is None else (state.position, state.document)
    placement = place_piece(x.shape[0], x.shape[1], x.device, position, document, document_ids)
    before = native.before_of(past, position, placement)
    y = native_gates.swiglu(x, gates, weight, bias, *before, native.table_of(dilations, causal))
    if not causal:
        return y, None
    rings = rings_after([x], dilations, past, position, placement.position)
    return y, DepthwiseConvState(rings, placement.position, placement.document)


def _can_fuse(x: Tensor, weight: Tensor, past: Tensor | None, dilations: Dilations) -> bool:
    return dilations.order is None and native.available(x, weight, past)
