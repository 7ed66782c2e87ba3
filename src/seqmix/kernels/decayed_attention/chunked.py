"""The decayed attention as matrix products over chunks of time, whose decays may be as small as they like.

With L[t] the sum of a chunk's logarithms of decays up to t, and l[t] that before t:

    y[t] = sum_{s < t} (r[t] · exp(l[t] - L[s]) * k[s]) v[s] + (r[t] · bonus * k[t]) v[t] + (r[t] * exp(l[t])) h
    h after the chunk = exp(L[end]) * h + sum_s (exp(L[end] - L[s]) * k[s]) v[s]ᵀ

A decay of a pair is no product of one number of each position: dividing by exp(L[s]) would leave float32's range. So
a chunk is cut into blocks: pairs of one block take their decays pair by pair, and those with an earlier block one to
the block's start and one from there, both at most 1. Sums of logarithms are formed in float64, because a tiny decay
would drown what comes after it.

Shapes: B batch, T time, H heads, K key width, V value width, J chunks, Q positions in a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.chunks import borders_of, chunks_of, join, split

BLOCK = 4
LEAST_LOG = -1000.0
"""exp of it is 0 in float64 too; below it nothing changes but the rounding of sums."""


def flops(time: int, key_width: int, value_width: int, chunk: int) -> int:
    """Product FLOPs of one head of one row, padding included; the pairs of one block are element-wise work."""
    count, length = chunks_of(time, chunk)
    pairs = sum(size * start for start, size in _blocks(length))
    return 2 * count * (pairs * key_width + length * value_width * (length + 2 * key_width))


def scan(
    r_BTHK: Tensor,
    log_decay_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    bonus_HK: Tensor,
    state_BHVK: Tensor,
    runs_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """y (batch, time, heads, value width) and the state after the last position."""
    batch, time, heads, _ = r_BTHK.shape
    count, length = chunks_of(time, chunk)
    logs = log_decay_BTHK.double().clamp(min=LEAST_LOG)
    present_BTH1 = (r_BTHK * bonus_HK * k_BTHK).sum(-1, keepdim=True)
    r, logs, k, v, present = (split(each, count, length) for each in (r_BTHK, logs, k_BTHK, v_BTHV, present_BTH1))
    upto = logs.cumsum(dim=2)
    before = upto - logs
    scores = _scores(r, k, before, upto) + torch.diag_embed(present[..., 0])
    kept = upto[:, :, -1:].to(r.dtype).exp()
    leaving = k * (upto[:, :, -1:] - upto).to(r.dtype).exp()
    asking = r * before.to(r.dtype).exp()
    if runs_BT is not None:
        within, from_start, to_end, whole = borders_of(runs_BT, count, length, heads)
        scores = scores * within
        asking, leaving, kept = asking * from_start, leaving * to_end, kept * whole
    added = leaving.transpose(2, 3) @ v
    state = state_BHVK.flatten(0, 1).transpose(1, 2)
    states = []
    for added_j, kept_j in zip(added.unbind(0), kept.transpose(2, 3).unbind(0), strict=True):
        states.append(state)
        state = torch.addcmul(added_j, kept_j, state)
    y = scores @ v + asking @ torch.stack(states)
    return join(y, batch, time), state.transpose(1, 2).unflatten(0, (batch, heads))


def _blocks(length: int) -> list[tuple[int, int]]:
    """(start, size) of each block."""
    return [(start, min(BLOCK, length - start)) for start in range(0, length, BLOCK)]


def _scores(r: Tensor, k: Tensor, before: Tensor, upto: Tensor) -> Tensor:
    """(chunks, batch * heads, positions, positions): r[t] · exp(before[t] - upto[s]) * k[s] below the diagonal."""
    length = r.shape[2]
    rows = []
    for start, size in _blocks(length):
        here = slice(start, start + size)
        r_here, before_here = r[:, :, here], before[:, :, here]
        below = torch.ones(size, size, dtype=torch.bool, device=r.device).tril(-1)[..., None]
        apart = (before_here[:, :, :, None] - upto[:, :, None, here]).to(r.dtype)
        decayed = k[:, :, None, here] * apart.masked_fill(~below, -torch.inf).exp()
        parts = [(decayed * r_here[:, :, :, None]).sum(-1)]
        if start:
            border = before_here[:, :, :1]
            asking = r_here * (before_here - border).to(r.dtype).exp()
            answering = k[:, :, :start] * (border - upto[:, :, :start]).to(r.dtype).exp()
            parts.insert(0, asking @ answering.transpose(2, 3))
        rows.append(F.pad(torch.cat(parts, dim=3), (0, length - start - size)))
    return torch.cat(rows, dim=2)
