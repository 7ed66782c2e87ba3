"""The specification of linear attention with a decay of each channel and a bonus for the present, a loop over time.

    y[t] = S[t-1] r[t] + (r[t] · bonus * k[t]) v[t]                                          arXiv 2404.05892
    S[t] = S[t-1] diag(exp(log_decay[t])) + v[t] k[t]ᵀ      S is (value width, key width) for each head

Where a document begins, S[t-1] is zero.

Shapes: B batch, T time, H heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.documents import begins


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
    """y (batch, time, heads, value width) and the state after the last position; `chunk` has no meaning here."""
    decay_BTHK = log_decay_BTHK.exp()
    starts_BT = None if runs_BT is None else begins(runs_BT)
    outputs = []
    for t in range(r_BTHK.shape[1]):
        if starts_BT is not None:
            state_BHVK = state_BHVK.masked_fill(starts_BT[:, t, None, None, None], 0.0)
        now = (r_BTHK[:, t], decay_BTHK[:, t], k_BTHK[:, t], v_BTHV[:, t])
        y_BHV, state_BHVK = step(*now, bonus_HK, state_BHVK)
        outputs.append(y_BHV)
    return torch.stack(outputs, dim=1), state_BHVK


def step(
    r_BHK: Tensor, decay_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, bonus_HK: Tensor, state_BHVK: Tensor
) -> tuple[Tensor, Tensor]:
    """One position: y (batch, heads, value width) and the next state."""
    read_BHV = (state_BHVK @ r_BHK[..., None])[..., 0]
    y_BHV = torch.addcmul(read_BHV, (r_BHK * bonus_HK * k_BHK).sum(-1, keepdim=True), v_BHV)
    return y_BHV, torch.addcmul(v_BHV[..., None] * k_BHK[:, :, None], state_BHVK, decay_BHK[:, :, None])
