"""The specification of the generalised delta rule with a decay of each channel, a loop over time (arXiv 2503.14456).

    S[t] = S[t-1] diag(exp(log_decay[t])) - (S[t-1] kappa[t]) (rate[t] * kappa[t])ᵀ + v[t] k[t]ᵀ
    y[t] = S[t] r[t]                                        S is (value width, key width) for each head

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
    kappa_BTHK: Tensor,
    rate_BTHK: Tensor,
    state_BHVK: Tensor,
    runs_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """y (batch, time, heads, value width) and the state after the last position; `chunk` has no meaning here."""
    decay_BTHK, replaced_BTHK = log_decay_BTHK.exp(), rate_BTHK * kappa_BTHK
    starts_BT = None if runs_BT is None else begins(runs_BT)
    outputs = []
    for t in range(r_BTHK.shape[1]):
        if starts_BT is not None:
            state_BHVK = state_BHVK.masked_fill(starts_BT[:, t, None, None, None], 0.0)
        now = (r_BTHK[:, t], decay_BTHK[:, t], k_BTHK[:, t], v_BTHV[:, t])
        y_BHV, state_BHVK = step(*now, kappa_BTHK[:, t], replaced_BTHK[:, t], state_BHVK)
        outputs.append(y_BHV)
    return torch.stack(outputs, dim=1), state_BHVK


def step(
    r_BHK: Tensor,
    decay_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    kappa_BHK: Tensor,
    replaced_BHK: Tensor,
    state_BHVK: Tensor,
) -> tuple[Tensor, Tensor]:
    """One position: y (batch, heads, value width) and the next state."""
    removed_BHV = (state_BHVK @ kappa_BHK[..., None])[..., 0]
    written_BHVK = v_BHV[..., None] * k_BHK[:, :, None] - removed_BHV[..., None] * replaced_BHK[:, :, None]
    state_BHVK = torch.addcmul(written_BHVK, state_BHVK, decay_BHK[:, :, None])
    return (state_BHVK @ r_BHK[..., None])[..., 0], state_BHVK
