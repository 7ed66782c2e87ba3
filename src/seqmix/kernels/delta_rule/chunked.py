"""The delta rule as matrix products over chunks of time (the WY form: arXiv 2406.06484, with a decay of each channel).

With P[t] the product of a chunk's decays up to t, every key divided by its P and every query multiplied by its own,
the decays vanish and a chunk is a plain delta rule. What each position removes, U (Q, V), solves a unit triangular
system, and everything else is products (R = r P, A = kappa P before t, K = k / P, D = rate kappa / P):

    (I + tril(A Dᵀ, -1)) U = A h + tril(A Kᵀ, -1) V                h is the state before the chunk, (K, V)
    Y = R h + tril(R Kᵀ) V - tril(R Dᵀ) U
    h after the chunk = P[end] * (h + Kᵀ V - Dᵀ U)

U and Y are linear in h, so that all chunks are prepared at once and only the last line goes from chunk to chunk. A
quotient of two P is as exact as one of them; they may fall to 1e-30 before one leaves float32's range.

Shapes: B batch, T time, H heads, K key width, V value width, J chunks, Q positions in a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.chunks import borders_of, chunks_of, join, split


def flops(time: int, key_width: int, value_width: int, chunk: int) -> int:
    """Product FLOPs of one head of one row, padding included; a triangular solve of n rows takes n² a column."""
    count, length = chunks_of(time, chunk)
    inside = 4 * length * key_width + 2 * length * value_width
    solved = length * (key_width + value_width)
    corrected = length * (key_width + value_width)
    carried = 5 * key_width * value_width
    return count * length * (2 * (inside + corrected + carried) + solved)


def scan(
    r_BTHK: Tensor,
    log_decay_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    kappa_BTHK: Tensor,
    rate_BTHK: Tensor,
    state_BHVK: Tensor,
    runs_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """y (batch, time, heads, value width) and the state after the last position."""
    batch, time, heads, width = r_BTHK.shape
    count, length = chunks_of(time, chunk)
    r, log_decay, k, v, kappa, rate = (
        split(each, count, length) for each in (r_BTHK, log_decay_BTHK, k_BTHK, v_BTHV, kappa_BTHK, rate_BTHK)
    )
    v = v.contiguous()
    logs = log_decay.cumsum(dim=2)
    shrinking, growing = logs.exp(), (-logs).exp()
    # The decays up to the position before.
    earlier = F.pad(shrinking[:, :, :-1], (0, 0, 1, 0), value=1.0)
    queries = torch.cat([kappa * earlier, r * shrinking], dim=2)
    keys = torch.cat([k * growing, kappa * rate * growing], dim=2)
    strict = torch.ones(length, length, dtype=torch.bool, device=v.device).tril(-1)
    linked = torch.cat([strict, strict | torch.eye(length, dtype=torch.bool, device=v.device)]).repeat(1, 2)
    scores = queries @ keys.transpose(2, 3)
    kept = shrinking[:, :, -1:]
    if runs_BT is None:
        scores = scores.masked_fill(~linked, 0.0)
        leaving = keys * kept
    else:
        within, from_start, to_end, whole = borders_of(runs_BT, count, length, heads)
        scores = scores.masked_fill(~(linked & within.repeat(1, 1, 2, 2)), 0.0)
        queries = queries * from_start.repeat(1, 1, 2, 1)
        leaving = keys * kept * to_end.repeat(1, 1, 2, 1)
        kept = kept * whole
    asked, answered = (
        torch.cat([scores[:, :, rows, :length] @ v, queries[:, :, rows]], dim=3)
        for rows in (slice(length), slice(length, None))
    )
    removed = torch.linalg.solve_triangular(scores[:, :, :length, length:], asked, upper=False, unitriangular=True)
    answered = answered - scores[:, :, length:, length:] @ removed
    removed_inside, removed_from = removed.split([v.shape[3], width], dim=3)
    answered_inside, answered_from = answered.split([v.shape[3], width], dim=3)
    added = leaving.transpose(2, 3) @ torch.cat([v, -removed_inside], dim=2)
    state = state_BHVK.flatten(0, 1).transpose(1, 2)
    states = []
    for added_j, kept_j, from_j, leaving_j in zip(
        added.unbind(0),
        kept.transpose(2, 3).unbind(0),
        removed_from.unbind(0),
        leaving[:, :, length:].transpose(2, 3).unbind(0),
        strict=True,
    ):
        states.append(state)
        state = torch.baddbmm(torch.addcmul(added_j, kept_j, state), leaving_j, from_j @ state, alpha=-1)
    y = answered_inside + answered_from @ torch.stack(states)
    return join(y, batch, time), state.transpose(1, 2).unflatten(0, (batch, heads))
