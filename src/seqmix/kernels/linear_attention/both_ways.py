"""Linear attention over a whole document: every target reads every source, before it and after it.

    y[t] = sum_s (q[t] · k[s]) v[s]        s over the document of t

Shapes: B batch, T time, H heads, K width of queries and keys, V width of values.
"""

from __future__ import annotations

from torch import Tensor

from seqmix.kernels.state_space import state_space_scan


def attend_both_ways(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, runs: Tensor | None = None, *, chunk: int = 64
) -> Tensor:
    """The sum above, (batch, time, heads, V), with memory that grows as the time.

    Documents of a packed row cannot share one sum of keys and values, and one sum for each of them would take as much
    as there may be documents; so they are scanned forwards and backwards, and what is in both is taken off once.

    Args:
        runs: (batch, time) integers that differ between neighbouring documents, 0 the first; None for a single one.
        chunk: positions that the scans handle at once.
    """
    if runs is None:
        sums_BHKV = k_BTHK.permute(0, 2, 3, 1) @ v_BTHV.transpose(1, 2)
        return (q_BTHK.transpose(1, 2) @ sums_BHKV).transpose(1, 2)
    forwards = _sums_so_far(q_BTHK, k_BTHK, v_BTHV, runs, chunk)
    flipped = (tensor.flip(1) for tensor in (q_BTHK, k_BTHK, v_BTHV, runs.amax(dim=1, keepdim=True) - runs))
    backwards = _sums_so_far(*flipped, chunk).flip(1)
    return forwards + backwards - (q_BTHK * k_BTHK).sum(dim=-1, keepdim=True) * v_BTHV


def _sums_so_far(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, runs: Tensor, chunk: int) -> Tensor:
    steps = v_BTHV.new_ones(v_BTHV.shape[:3])
    nothing = v_BTHV.new_zeros(v_BTHV.shape[2])
    y, _ = state_space_scan(v_BTHV, steps, nothing, k_BTHK, q_BTHK, nothing, runs=runs, chunk=chunk)
    return y
