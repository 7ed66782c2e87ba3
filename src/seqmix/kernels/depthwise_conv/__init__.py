"""The depthwise dilated convolution: one kernel and one dilation for each channel.

`reference.py` is the specification, `grouped.py` the fast form in plain torch, `channels.py` the ring buffers
of the state.

Shapes: B batch, T time, D channels, K kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seqmix.kernels.depthwise_conv import grouped, reference
from seqmix.kernels.depthwise_conv.channels import (
    Dilations,
    group_channels,
    newest,
    ring_of,
    roll,
    roll_together,
    unroll,
)
from seqmix.kernels.documents import Placement, place_piece

IMPLEMENTATIONS = {"reference": reference.convolve, "torch": grouped.convolve}
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


def _choose(implementation: str | None, x: Tensor, placement: Placement, kernel: int) -> str:
    if implementation is not None:
        if implementation not in IMPLEMENTATIONS:
            known = ", ".join(IMPLEMENTATIONS)
            raise ValueError(f"implementation {implementation!r} is not available here: choose one of {known}")
        return implementation
    if x.dtype == torch.float64:
        return "reference"
    if placement.packed:
        if torch.compiler.is_compiling():
            return "reference"
        runs = int((placement.runs[:, -1] - placement.runs[:, 0] + 1).sum())
        if runs > min(MAX_RUNS_PER_ROW, kernel / TAPS_PER_RUN) * len(x):
            return "reference"
    return "torch"


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
        implementation: None for the best one available, "torch", or "reference".

    Returns:
        y (batch, time, dim) and the state after the piece (None when not causal).

    Raises:
        ValueError: shapes that do not fit, a state for a non-causal convolution, an unknown implementation.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[2]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit: they must be "
            "(batch, time, dim) and (dim, kernel)"
        )
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
    convolve = IMPLEMENTATIONS[_choose(implementation, x, placement, weight.shape[1])]
    outputs, rings = [], []
    for group in dilations.groups:
        part = x[:, :, group.first : group.last]
        recent = None if state is None else unroll(state.past, state.position, group)
        outputs.append(convolve(part, weight[group.first : group.last], group, recent, placement, causal))
        if causal:
            latest = newest(recent, part, group)
            if state is None and document_ids is None:
                rings.append(roll_together(latest, x.shape[1], group))
            else:
                rings.append(roll(latest, placement.position, group))
    y = torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]
    if dilations.order is not None:
        y = y[:, :, order.argsort()]
    if bias is not None:
        y = y + bias
    after = None
    if causal:
        past = torch.cat(rings, dim=1) if len(rings) > 1 else rings[0]
        after = DepthwiseConvState(past, placement.position, placement.document)
    return y, after


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
