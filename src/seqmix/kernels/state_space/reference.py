"""The specification of the scalar-decay state space, a loop over time (Mamba-2, arXiv 2405.21060).

    h[t] = exp(dt[t] * A) * h[t - 1] + dt[t] * x[t] (outer) B[t]        h is (head width, state) for each head
    y[t] = h[t] · C[t] + D * x[t]

Where a document begins, h[t - 1] is zero.

Shapes: B batch, T time, H heads, P head width, G groups of heads that share B and C, N state.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    """y (batch, time, heads, width) and the state after the last position; `chunk` has no meaning here."""
    share = x_BTHP.shape[2] // B_BTGN.shape[2]
    decay_BTH = torch.exp(dt_BTH * A_H)
    if runs_BT is not None:
        before = torch.cat([torch.zeros_like(runs_BT[:, :1]), runs_BT[:, :-1]], dim=1)
        decay_BTH = torch.where((runs_BT == before)[:, :, None], decay_BTH, decay_BTH.new_zeros(()))
    B_BTHN, C_BTHN = (tensor.repeat_interleave(share, dim=2) for tensor in (B_BTGN, C_BTGN))
    outputs = []
    for t in range(x_BTHP.shape[1]):
        written = (dt_BTH[:, t, :, None] * x_BTHP[:, t])[..., None] * B_BTHN[:, t, :, None]
        state_BHPN = decay_BTH[:, t, :, None, None] * state_BHPN + written
        outputs.append((state_BHPN * C_BTHN[:, t, :, None]).sum(-1) + D_H[:, None] * x_BTHP[:, t])
    return torch.stack(outputs, dim=1), state_BHPN
