"""The depthwise dilated convolution of a sequence or of one more position: which implementation does it.

Shapes: B batch, T time, D channels, K kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seqmix.kernels.depthwise_conv import grouped, native, reference, triton, triton_step
from seqmix.kernels.depthwise_conv.channels import (
    Dilations,
    group_channels,
    newest,
    ring_of,
    roll,
    roll_together,
    unroll,
)
from seqmix.kernels.depthwise_conv.native_rings import rings_after
from seqmix.kernels.documents import Placement, place_piece
from seqmix.kernels.library import warn_when_missing

BY_GROUP = {"reference": reference.convolve, "torch": grouped.convolve}
"""Forms that take the channels of one dilation at a time; the others take all at once."""
IMPLEMENTATIONS = (*BY_GROUP, "native", "triton")
MAX_RUNS_PER_ROW = 5
"""The grouped form copies a row for each of its documents; with more than this on average the taps are cheaper."""
TAPS_PER_RUN = 4
"""On a CPU a copied row costs as much as this many taps, so that a short kernel does not pay for the copies."""


class DepthwiseConvState(NamedTuple):
    """past (batch, total): the rings of the recent inputs; position and document (batch,) int64 as in a State."""

    past: Tensor
    position: Tensor
    document: Tensor


def empty_state(
    dilations: Dilations, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> DepthwiseConvState:
    """The state before the first input."""
    count = torch.zeros(batch, dtype=torch.int64, device=device)
    return DepthwiseConvState(torch.zeros(batch, dilations.past_size, device=device, dtype=dtype), count, count.clone())


def _choose(x: Tensor, weight: Tensor, past: Tensor | None, placement: Placement) -> str:
    """The fastest implementation that takes these."""
    if x.dtype == torch.float64:
        return "reference"
    if native.available(x, weight, past):
        return "native"
    if x.device.type == "cuda" and triton.available(x.device):
        return "triton"
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        warn_when_missing()
    if placement.packed:
        if torch.compiler.is_compiling():
            return "reference"
        runs = int((placement.runs[:, -1] - placement.runs[:, 0] + 1).sum())
        if runs > min(MAX_RUNS_PER_ROW, weight.shape[1] / TAPS_PER_RUN) * len(x):
            return "reference"
    return "torch"


def why_not(implementation: str, x: Tensor, weight: Tensor, past: Tensor | None) -> str | None:
    """Why an implementation cannot take these, in one sentence; None where it can."""
    if implementation not in IMPLEMENTATIONS:
        return f"it is unknown: choose one of {', '.join(IMPLEMENTATIONS)}"
    if implementation == "native":
        return native.why_not(x, weight, past)
    return triton.why_not(x.device) if implementation == "triton" else None


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int | Sequence[int] | Tensor | Dilations = 1,
    causal: bool = True,
    state: DepthwiseConvState | None = None,
    document_ids: Tensor | None = None,
    implementation: str | None = None,
    keep_state: bool = True,
) -> tuple[Tensor, DepthwiseConvState | None]:
    """Convolves every channel with its own dilated kernel.

    Args:
        x: (batch, time, dim).
        weight: (dim, kernel); `weight[:, -1]` is the tap at the position itself when causal. The non-causal
            form is centred as torch's padding="same".
        bias: (dim,).
        dilation: an int, or an integer for each channel, (dim,).
        state: where an earlier piece ended (causal only); it is not changed.
        document_ids: (batch, time); taps that cross a change of the id are zero.
        implementation: None for the best one available, "native" (C++, on a CPU), "triton" (on a GPU), "torch", or
            "reference".
        keep_state: False where nothing will continue the sequence, which saves a copy of its end.

    Returns:
        y (batch, time, dim) and the state after the piece (None when not causal or not kept).

    Raises:
        ValueError: shapes that do not fit or are empty, a state for a non-causal convolution, an implementation that
            is unknown or not available here.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[2]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit: they must be "
            "(batch, time, dim) and (dim, kernel)"
        )
    if not weight.numel():
        raise ValueError(f"weight has shape {tuple(weight.shape)}: give at least one channel and one tap")
    if state is not None and not causal:
        raise ValueError("a non-causal convolution takes no state: give the whole sequence at once")
    dilations = group_channels(dilation, x.shape[2], weight.shape[1])
    placement = place_piece(
        x.shape[0],
        x.shape[1],
        x.device,
        None if state is None else state.position,
        None if state is None else state.document,
        document_ids,
    )
    if dilations.order is not None:
        order = torch.tensor(dilations.order, device=x.device)
        x, weight = x[:, :, order], weight[order]
        bias = None if bias is None else bias[order]
    if x.shape[1] == 0:
        return x, _unchanged(state, dilations, x) if causal and keep_state else None
    past, position = (None, None) if state is None else (state.past, state.position)
    if implementation is None:
        implementation = _choose(x, weight, past, placement)
    reason = why_not(implementation, x, weight, past)
    if reason is not None:
        raise ValueError(f"implementation {implementation!r} cannot be used here: {reason}")
    if implementation in BY_GROUP:
        y = _convolve_groups(BY_GROUP[implementation], x, weight, dilations, past, position, placement, causal)
        y = y if bias is None else y + bias
    else:
        convolve = native.convolve if implementation == "native" else triton.convolve
        y = convolve(x, weight, bias, dilations, past, position, placement, causal)
    after = None
    if causal and keep_state:
        rings = _rings_after(x, weight, dilations, past, position, placement, document_ids is not None)
        after = DepthwiseConvState(rings, placement.position, placement.document)
    if dilations.order is not None:
        y = y[:, :, order.argsort()]
    return y, after


def _unchanged(state: DepthwiseConvState | None, dilations: Dilations, x: Tensor) -> DepthwiseConvState:
    """The state after no input at all."""
    return empty_state(dilations, x.shape[0], x.device, x.dtype) if state is None else state


def _convolve_groups(
    convolve: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    dilations: Dilations,
    past: Tensor | None,
    position: Tensor | None,
    placement: Placement,
    causal: bool,
) -> Tensor:
    outputs = []
    for group in dilations.groups:
        recent = None if past is None or position is None else unroll(past, position, group)
        part = x[:, :, group.first : group.last]
        outputs.append(convolve(part, weight[group.first : group.last], group, recent, placement, causal))
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


def _rings_after(
    x: Tensor,
    weight: Tensor,
    dilations: Dilations,
    past: Tensor | None,
    position: Tensor | None,
    placement: Placement,
    has_documents: bool,
) -> Tensor:
    if native.available(x, weight, past):
        return rings_after([x], dilations, past, position, placement.position)
    rings = []
    for group in dilations.groups:
        part = x[:, :, group.first : group.last]
        recent = None if past is None or position is None else unroll(past, position, group)
        latest = newest(recent, part, group)
        if past is None and not has_documents:
            rings.append(roll_together(latest, x.shape[1], group))
        else:
            rings.append(roll(latest, placement.position, group))
    return torch.cat(rings, dim=1) if len(rings) > 1 else rings[0]


def depthwise_conv_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int | Sequence[int] | Tensor | Dilations = 1,
    state: DepthwiseConvState,
) -> tuple[Tensor, DepthwiseConvState]:
    """One more input x (batch, dim) of the state's document; the rings in `state` are overwritten in place.

    Weight, bias and dilation as in `depthwise_conv`. The cost is the same at every position.
    """
    kernel = weight.shape[1]
    dilations = group_channels(dilation, x.shape[1], kernel)
    if dilations.order is not None:
        order = torch.tensor(dilations.order, device=x.device)
        x, weight = x[:, order], weight[order]
    elif triton_step.available(x, weight, state.past):
        y = triton_step.step(x, weight, bias, dilations, state.past, state.position)
        return y, DepthwiseConvState(state.past, state.position + 1, state.document)
    back = torch.arange(kernel - 1, 0, -1, device=x.device)
    outputs = []
    for group in dilations.groups:
        own = x[:, group.first : group.last]
        taps = weight[group.first : group.last]
        y = own * taps[:, -1]
        if kernel > 1:
            ring = ring_of(state.past, group)
            slots = (state.position[:, None] - back * group.dilation) % group.length
            sources = ring.gather(1, slots[:, :, None].expand(-1, -1, group.width))
            y = y + torch.einsum("bkd,dk->bd", sources, taps[:, :-1])
            slot = (state.position % group.length)[:, None, None].expand(-1, 1, group.width)
            ring.scatter_(1, slot, own[:, None].to(ring.dtype))
        outputs.append(y)
    y = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
    if dilations.order is not None:
        y = y[:, order.argsort()]
    if bias is not None:
        y = y + bias
    return y, DepthwiseConvState(state.past, state.position + 1, state.document)
