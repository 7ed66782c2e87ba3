"""Linear attention over a whole document: every target reads every source, before it and after it.

    y[t] = sum_s (q[t] · k[s]) v[s]        s over the document of t

Shapes: B batch, T time, H heads, K width of queries and keys, V width of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.state_space import state_space_scan


def attend_both_ways(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, runs: Tensor | None = None, *, chunk: int = 64
) -> Tensor:
    """The sum above, (batch, time, heads, V), with memory that grows as the time.

    Documents of a packed row cannot share one sum of keys and values, and one sum for each of them would take as much
    as there may be documents; so they are scanned forwards and backwards, and what is in both is taken off once.

    Args:
        runs: (batch, time) integers from 0 that grow by 1 where a document begins; None for a single one.
        chunk: positions that the scans handle at once.
    """
    with torch.autocast(q_BTHK.device.type, enabled=False):
        if runs is None:
            sums_BHKV = k_BTHK.permute(0, 2, 3, 1) @ v_BTHV.transpose(1, 2)
            return (q_BTHK.transpose(1, 2) @ sums_BHKV).transpose(1, 2)
        forwards = _sums_so_far(q_BTHK, k_BTHK, v_BTHV, runs, chunk)
        flipped_runs = (runs[:, -1:] - runs).flip(1)
        backwards = _sums_so_far(q_BTHK.flip(1), k_BTHK.flip(1), v_BTHV.flip(1), flipped_runs, chunk).flip(1)
        return forwards + backwards - (q_BTHK * k_BTHK).sum(dim=-1, keepdim=True) * v_BTHV


def _sums_so_far(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, runs: Tensor, chunk: int) -> Tensor:
    """The sum over s <= t alone: a state space with steps of 1 that forgets nothing and has no skip."""
    steps, nothing = v_BTHV.new_ones(v_BTHV.shape[:3]), v_BTHV.new_zeros(v_BTHV.shape[2])
    y, _ = state_space_scan(v_BTHV, steps, nothing, k_BTHK, q_BTHK, nothing, runs=runs, chunk=chunk)
    return y
