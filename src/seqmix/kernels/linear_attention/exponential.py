"""Causal linear attention with exponential features, normed, for features of any size.

    y[t] = sum_s w[t, s] v[s] / sum_s w[t, s],   w[t, s] = sum_m exp(q[t, m] + k[s, m])        s <= t, one document

q and k are the logarithms of the features. The sums of each feature are held divided by exp of its largest k so far,
the running maximum, and a target's weights are divided by the largest exp(q + that maximum). So nothing overflows,
the sum of the weights is at least 1, and what underflows is below the rounding of what remains: no epsilon is needed.
Both divisors cancel in y, hence have no gradient.

Shapes: B batch, T time, S source, H heads, M features, V width of values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.linear_attention import chunked, reference
from seqmix.kernels.linear_attention.both_ways import attend_both_ways
from seqmix.kernels.linear_attention.chunked import spans_of

IMPLEMENTATIONS = {"reference": reference.scan, "chunked": chunked.scan}


def exponential_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    top: Tensor,
    sums: Tensor,
    *,
    runs: Tensor | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum above over a piece that continues a state, with memory that grows as the time.

    Args:
        q, k: (batch, heads, time, features), logarithms. v: (batch, heads, time, width).
        top: (batch, heads, features), the largest k of each feature so far; minus infinity where there is none.
        sums: (batch, heads, features, width + 1), of exp(k - top) (outer) v; the last column, of exp(k - top) alone.
        runs: (batch, time) integers that differ between neighbouring documents; 0 continues the state's document.
        chunk: positions the chunked form handles at once, a power of two.
        implementation: "reference", a loop, or "chunked"; None takes the loop for float64, else chunked.

    Returns:
        y (batch, heads, time, width), and top and sums after the last position.

    Raises:
        ValueError: a chunk that is no power of two, an unknown implementation.
    """
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"chunk is {chunk}: it must be a power of two")
    if implementation is None:
        implementation = "reference" if q.dtype == torch.float64 else "chunked"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is not known: choose one of {', '.join(IMPLEMENTATIONS)}")
    if q.shape[2] == 0:
        return v.clone(), top, sums
    with torch.autocast(q.device.type, enabled=False):
        return IMPLEMENTATIONS[implementation](q, k, F.pad(v, (0, 1), value=1.0), top, sums, runs, chunk)


def exponential_attention_step(
    q: Tensor, k: Tensor, v: Tensor, top: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One position of `exponential_attention`, without the time axis."""
    with torch.autocast(q.device.type, enabled=False):
        return reference.step(q, k, F.pad(v, (0, 1), value=1.0), top, sums)


def exponential_attention_both_ways(
    q_BHTM: Tensor, k_BHTM: Tensor, v_BHTV: Tensor, *, runs: Tensor | None = None, chunk: int = 64
) -> Tensor:
    """The sum with s over the whole document of t, (batch, heads, time, width): its maxima are the documents'."""
    with torch.no_grad():
        if runs is None:
            top_BHTM = k_BHTM.amax(dim=2, keepdim=True)
        else:
            index_BHTM = runs[:, None, :, None].expand_as(k_BHTM)
            largest = torch.full_like(k_BHTM, -torch.inf).scatter_reduce(2, index_BHTM, k_BHTM, "amax")
            top_BHTM = largest.gather(2, index_BHTM)
        shift_BHTM = top_BHTM - (q_BHTM + top_BHTM).amax(dim=-1, keepdim=True)
    read, written = torch.exp(q_BHTM + shift_BHTM), torch.exp(k_BHTM - top_BHTM)
    values = F.pad(v_BHTV, (0, 1), value=1.0)
    read, written, values = (part.transpose(1, 2) for part in (read, written, values))
    mixed = attend_both_ways(read, written, values, runs, chunk=chunk)
    return (mixed[..., :-1] / mixed[..., -1:]).transpose(1, 2)


def exponential_weights(q_BHTM: Tensor, k_BHSM: Tensor, links_TS: Tensor) -> Tensor:
    """w[t, s] / sum_s w[t, s] over the linked sources, (batch, heads, time, source): exact for features of any size."""
    # One target at a time: all features of all pairs at once would be a tensor of time * source * features.
    rows = [torch.logsumexp(q_BHTM[:, :, t, None] + k_BHSM, dim=-1) for t in range(q_BHTM.shape[2])]
    return torch.stack(rows, dim=2).masked_fill(~links_TS, -torch.inf).softmax(dim=-1)


def exponential_attention_flops(time: int, heads: int, features: int, width: int, chunk: int) -> int:
    """Product FLOPs of the chunked form over one row: pairs in a chunk, sums and their reading, padding included."""
    count, length = spans_of(time, chunk)
    columns = width + 1
    return heads * count * length * ((length - 1) * (features + columns) + 4 * features * columns)
