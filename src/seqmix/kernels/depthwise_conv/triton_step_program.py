"""The GPU program of one more position of the depthwise convolution; `triton_step.py` is what calls it."""
# Triton compiles this text itself: it is not Python that a type checker knows.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from seqmix.kernels.depthwise_conv.triton_programs import place_block


@triton.jit
def step(
    x,
    past,
    position,
    weight,
    bias,
    y,
    table,
    blocks,
    dim,
    stride_row,
    past_size,
    K: tl.constexpr,
    BD: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SUM: tl.constexpr,
):
    """One more position x (batch, dim) of every row: y (batch, dim), and x in its slot of the past.

    position (batch,) is that of x, weight (dim, K), bias (dim,).
    """
    block, row = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    channels, first, last, dilation, length, offset = place_block(table, block, K, ALIGNMENT, BD)
    inside = channels < last
    now = tl.load(position + row)
    own = tl.load(x + row * stride_row + channels, mask=inside, other=0.0)
    total = tl.zeros((BD,), SUM)
    if HAS_BIAS:
        total += tl.load(bias + channels, mask=inside, other=0.0).to(SUM)
    taps = weight + channels.to(tl.int64) * K
    ring = past + row * past_size + offset - first + channels
    for back in tl.static_range(K - 1, 0, -1):
        slot = (now + length - back * dilation) % length * (last - first)
        tap = tl.load(taps + (K - 1 - back), mask=inside, other=0.0).to(SUM)
        total = tl.fma(tap, tl.load(ring + slot, mask=inside, other=0.0).to(SUM), total)
    total = tl.fma(tl.load(taps + (K - 1), mask=inside, other=0.0).to(SUM), own.to(SUM), total)
    tl.store(y + row * dim + channels, total.to(y.dtype.element_ty), mask=inside)
    if K > 1:
        # Its slot holds the oldest input until here, which the first tap has read.
        slot = now % length * (last - first)
        tl.store(ring + slot, own.to(past.dtype.element_ty), mask=inside)
