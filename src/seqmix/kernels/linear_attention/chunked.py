"""Exponential linear attention as matrix products, over chunks of time and, inside a chunk, over halves of halves.

A weight w[t, s] = sum_m exp(q[t, m] + k[s, m] - c[t]) is a matrix product once it is cut in two at some reference r:

    exp(q[t, m] - c[t] + r[m]) * exp(k[s, m] - r[m])

Neither factor overflows where k[s] <= r <= top[t], the running maximum at t, for then the second is at most 1, and the
first is because c[t] = max(q[t] + top[t]). The running maximum anywhere from s to t is such a reference, but one
reference for a whole chunk is not. So a chunk is halved: for targets in its later half and sources in its earlier
one, the maximum at the end of the earlier half serves; the same again inside each half, down to single positions,
which are their own reference. The products add up to those of the triangle.

Shapes: B batch, T time, H heads, M features, C columns of values, the last one 1, J chunks, Q positions in a chunk,
N pairs of neighbouring blocks, P positions in a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def spans_of(time: int, chunk: int) -> tuple[int, int]:
    """(number of chunks, positions in each): `chunk`, or the next power of two for a shorter time."""
    length = min(chunk, 1 << (time - 1).bit_length())
    return -(-time // length), length


class _Maxima(NamedTuple):
    """The running maximum of each feature: here (B, H, J, Q, M); before and after each chunk (B, H, J, M)."""

    here: Tensor
    before: Tensor
    after: Tensor


def scan(
    q_BHTM: Tensor,
    k_BHTM: Tensor,
    v_BHTC: Tensor,
    top_BHM: Tensor,
    sums_BHMC: Tensor,
    runs_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (batch, heads, time, C - 1), and top and sums after the last position."""
    time = q_BHTM.shape[2]
    count, length = spans_of(time, chunk)
    fill = count * length - time

    def split(tensor: Tensor, value: float = 0.0) -> Tensor:
        padded = F.pad(tensor, (0, 0, 0, fill), value=value) if fill else tensor
        return padded.unflatten(2, (count, length))

    # Positions after the end write nothing.
    q, k, v = split(q_BHTM), split(k_BHTM, -torch.inf), split(v_BHTC)
    runs_BJQ = None
    if runs_BT is not None:
        runs_BJQ = torch.cat([runs_BT, runs_BT[:, -1:].expand(-1, fill)], dim=1).unflatten(1, (count, length))
    with torch.no_grad():
        maxima = _running_maxima(k, top_BHM, runs_BJQ)
        largest_BHJQ1 = (q + maxima.here).amax(dim=-1, keepdim=True)
    q = q - largest_BHJQ1
    mixed = (q + k).exp_().sum(dim=-1, keepdim=True) * v
    mixed = _add_inside(mixed, q, k, v, maxima.here, runs_BJQ)
    mixed, sums_BHMC = _add_earlier_chunks(mixed, q, k, v, maxima, sums_BHMC, runs_BJQ)
    y = mixed[..., :-1] / mixed[..., -1:]
    return y.flatten(2, 3)[:, :, :time], maxima.after[:, :, -1], sums_BHMC


def _running_maxima(k_BHJQM: Tensor, top_BHM: Tensor, runs_BJQ: Tensor | None) -> _Maxima:
    """Within chunks by doubling, then from chunk to chunk; nothing crosses a border of documents."""
    here, size = k_BHJQM.clone(), 1
    while size < here.shape[3]:
        pairs = here.unflatten(3, (-1, 2, size))
        last = pairs[:, :, :, :, 0, -1:]
        if runs_BJQ is not None:
            _, targets = _same_run(runs_BJQ, size)
            last = last.masked_fill(~targets, -torch.inf)
        pairs[:, :, :, :, 1].clamp_(min=last)
        size *= 2
    continues_BJ = None if runs_BJQ is None else _continues(runs_BJQ)[:, None, :, -1]
    before, after = [], []
    for j, last in enumerate(here[:, :, :, -1].unbind(2)):
        before.append(top_BHM)
        earlier = top_BHM if continues_BJ is None else top_BHM.masked_fill(~continues_BJ[:, :, j, None], -torch.inf)
        top_BHM = torch.maximum(last, earlier)
        after.append(top_BHM)
    before_BHJM = torch.stack(before, dim=2)
    earlier_BHJQM = before_BHJM[:, :, :, None]
    if runs_BJQ is not None:
        earlier_BHJQM = earlier_BHJQM.masked_fill(~_continues(runs_BJQ)[:, None, ..., None], -torch.inf)
    return _Maxima(torch.maximum(here, earlier_BHJQM), before_BHJM, torch.stack(after, dim=2))


def _continues(runs_BJQ: Tensor) -> Tensor:
    """bool (batch, chunks, positions): whether a position is of the document that the chunk before it ended in."""
    before_BJ = torch.cat([torch.zeros_like(runs_BJQ[:, :1, 0]), runs_BJQ[:, :-1, -1]], dim=1)
    return runs_BJQ == before_BJ[..., None]


def _same_run(runs_BJQ: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """For pairs of neighbouring blocks: which positions of each are of the document at the end of the first.

    Both bool (batch, 1, chunks, pairs, size, 1).
    """
    first, second = runs_BJQ.unflatten(2, (-1, 2, size)).unbind(3)
    border = first[..., -1:]
    return (first == border)[:, None, ..., None], (second == border)[:, None, ..., None]


def _add_inside(mixed: Tensor, q: Tensor, k: Tensor, v: Tensor, top: Tensor, runs_BJQ: Tensor | None) -> Tensor:
    """`mixed` and what the positions of a chunk read of earlier ones in it; all (B, H, J, Q, ...)."""
    size, length = 1, k.shape[3]
    while size < length:
        sources = [tensor.unflatten(3, (-1, 2, size))[:, :, :, :, 0] for tensor in (k, v, top)]
        k_BHJNPM, v_BHJNPC, reference = sources[0], sources[1], sources[2][..., -1:, :]
        q_BHJNPM = q.unflatten(3, (-1, 2, size))[:, :, :, :, 1]
        read, written = q_BHJNPM + reference, k_BHJNPM - reference
        if runs_BJQ is not None:
            of_sources, of_targets = _same_run(runs_BJQ, size)
            # Before the exponential: beyond a border the reference is none, and an infinite factor has no gradient.
            read, written = read.masked_fill(~of_targets, -torch.inf), written.masked_fill(~of_sources, -torch.inf)
        earlier, later = mixed.unflatten(3, (-1, 2, size)).unbind(4)
        later = later + (read.exp_() @ written.exp_().transpose(-1, -2)) @ v_BHJNPC
        mixed = torch.stack([earlier, later], dim=4).flatten(3, 5)
        size *= 2
    return mixed


def _add_earlier_chunks(
    mixed: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    maxima: _Maxima,
    sums_BHMC: Tensor,
    runs_BJQ: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`mixed` and what is read of the sums before each chunk, and the sums after the last one."""
    read_BHJQM = q + maxima.before[:, :, :, None]
    written_BHJQM = k - maxima.after[:, :, :, None]
    faded_BHJM = torch.exp(maxima.before - maxima.after)
    if runs_BJQ is not None:
        continues_BJQ = _continues(runs_BJQ)
        is_last = runs_BJQ == runs_BJQ[..., -1:]
        read_BHJQM = read_BHJQM.masked_fill(~continues_BJQ[:, None, ..., None], -torch.inf)
        written_BHJQM = written_BHJQM.masked_fill(~is_last[:, None, ..., None], -torch.inf)
        faded_BHJM = faded_BHJM.masked_fill(~continues_BJQ[:, None, :, -1:], 0)
    added_BHJMC = written_BHJQM.exp_().transpose(-1, -2) @ v
    before = []
    for faded_BHM, added_BHMC in zip(faded_BHJM.unbind(2), added_BHJMC.unbind(2), strict=True):
        before.append(sums_BHMC)
        sums_BHMC = torch.addcmul(added_BHMC, faded_BHM[..., None], sums_BHMC)
    return mixed + read_BHJQM.exp_() @ torch.stack(before, dim=2), sums_BHMC
