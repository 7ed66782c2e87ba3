"""The scan as matrix products over chunks of time (the state-space dual form, arXiv 2405.21060 section 6).

Inside a chunk every target reads every source through a decayed score; between chunks the state carries on:

    y = x · (C Bᵀ * decay(source -> target))ᵀ  +  h(before the chunk) · Cᵀ * decay(start -> target)
    h(after the chunk) = decay(chunk) * h(before) + (x * decay(source -> end)) · B

Time stands last, so that the heads of a group form one tall matrix and nothing is copied between the products.

Shapes: B batch, T time, H heads, P head width, G groups, N state, J chunks, Q positions in a chunk,
R = (H / G) * P rows that share B and C.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.chunks import chunks_of


def scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    state_BHPN: Tensor,
    runs_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """y (batch, time, heads, width) and the state after the last position."""
    batch, time, heads, width = x_BTHP.shape
    groups, size = B_BTGN.shape[2:]
    count, length = chunks_of(time, chunk)
    fill = count * length - time

    def split(tensor: Tensor) -> Tensor:
        """(batch, time, a, b) to (batch, chunks, a, b, positions); positions after the end are zero."""
        time_last = tensor.movedim(1, -1)
        padded = F.pad(time_last, (0, fill)) if fill else time_last
        return padded.unflatten(-1, (count, length)).movedim(-2, 1)

    x_BJHPQ, B_BJGNQ, C_BJGNQ = split(x_BTHP).contiguous(), split(B_BTGN), split(C_BTGN).contiguous()
    dt_BJHQ = split(dt_BTH[..., None])[:, :, :, 0]
    runs_BJQ = None
    if runs_BT is not None:
        padded_BT = torch.cat([runs_BT, runs_BT[:, -1:].expand(-1, fill)], dim=1)
        runs_BJQ = padded_BT.unflatten(1, (count, length))

    # A long chunk sums to large logarithms whose differences matter, hence the wider numbers.
    log_BJHQ = (dt_BJHQ * A_H[:, None]).double().cumsum(dim=-1)
    apart_BJHQQ = (log_BJHQ[..., :, None] - log_BJHQ[..., None, :]).to(x_BTHP.dtype)
    to_end_BJHQ = (log_BJHQ[..., -1:] - log_BJHQ).to(x_BTHP.dtype).exp()
    from_start_BJHQ = log_BJHQ.to(x_BTHP.dtype).exp()
    linked = torch.ones(length, length, dtype=torch.bool, device=x_BTHP.device).tril()
    if runs_BJQ is not None:
        linked = (linked & (runs_BJQ[..., :, None] == runs_BJQ[..., None, :]))[:, :, None]
        carried_BJ1 = torch.cat([torch.zeros_like(runs_BJQ[:, :1, :1]), runs_BJQ[:, :-1, -1:]], dim=1)
        from_start_BJHQ = from_start_BJHQ * (runs_BJQ == carried_BJ1)[:, :, None]
        to_end_BJHQ = to_end_BJHQ * (runs_BJQ == runs_BJQ[..., -1:])[:, :, None]
    decay_BJHQQ = apart_BJHQQ.masked_fill(~linked, -torch.inf).exp()

    rows = (batch * count * groups, -1)
    per_head = (batch * count * heads, -1)
    B_rNQ, C_rNQ = B_BJGNQ.reshape(*rows, length), C_BJGNQ.reshape(*rows, length)
    scores_BJGQQ = torch.bmm(C_rNQ.transpose(1, 2), B_rNQ).unflatten(0, (batch, count, groups))
    weights_BJHQQ = decay_BJHQQ.unflatten(2, (groups, -1)) * scores_BJGQQ[:, :, :, None]
    written_BJHPQ = x_BJHPQ * dt_BJHQ[:, :, :, None]
    inside = torch.bmm(
        written_BJHPQ.view(*per_head, length), weights_BJHQQ.view(*per_head, length).transpose(1, 2)
    ).view_as(x_BJHPQ)

    kept_rRQ = (written_BJHPQ * to_end_BJHQ[:, :, :, None]).view(*rows, length)
    added_BJHPN = torch.bmm(kept_rRQ, B_rNQ.transpose(1, 2)).view(batch, count, heads, width, size)
    before = []
    for decay_BH, added_BHPN in zip(from_start_BJHQ[..., -1].unbind(1), added_BJHPN.unbind(1), strict=True):
        before.append(state_BHPN)
        state_BHPN = torch.addcmul(added_BHPN, decay_BH[..., None, None], state_BHPN)
    before_rRN = torch.stack(before, dim=1).view(*rows, size)
    carried = torch.bmm(before_rRN.view(rows[0], -1, size), C_rNQ).view_as(x_BJHPQ)

    y_BJHPQ = torch.addcmul(inside, carried, from_start_BJHQ[:, :, :, None])
    y_BJHPQ = torch.addcmul(y_BJHPQ, x_BJHPQ, D_H[:, None, None])
    return y_BJHPQ.permute(0, 1, 4, 2, 3).reshape(batch, count * length, heads, width)[:, :time], state_BHPN
