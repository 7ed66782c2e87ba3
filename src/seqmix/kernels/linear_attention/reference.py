"""The specification of exponential linear attention, a loop over time.

    top[t] = max(top[t-1], k[t])                                            for each feature
    S[t] = exp(top[t-1] - top[t]) S[t-1] + exp(k[t] - top[t]) (outer) v[t]  the last column of v is 1
    r = S[t]^T exp(q[t] + top[t] - max(q[t] + top[t]));   y[t] = r without its last number, divided by that

Where a document begins, top[t-1] is minus infinity.

Shapes: B batch, T time, H heads, M features, C columns of values, the last one 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def step(
    q_BHM: Tensor, k_BHM: Tensor, v_BHC: Tensor, top_BHM: Tensor, sums_BHMC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y (batch, heads, C - 1) of one position, and top and sums after it."""
    with torch.no_grad():
        after_BHM = torch.maximum(top_BHM, k_BHM)
        faded_BHM = torch.exp(top_BHM - after_BHM)
        reading = q_BHM + after_BHM
        shift_BHM = after_BHM - reading.amax(dim=-1, keepdim=True)
    written = torch.exp(k_BHM - after_BHM)[..., None] * v_BHC[..., None, :]
    sums_BHMC = sums_BHMC * faded_BHM[..., None] + written
    read_BHC = (torch.exp(q_BHM + shift_BHM)[..., None, :] @ sums_BHMC)[..., 0, :]
    return read_BHC[..., :-1] / read_BHC[..., -1:], after_BHM, sums_BHMC


def scan(
    q_BHTM: Tensor,
    k_BHTM: Tensor,
    v_BHTC: Tensor,
    top_BHM: Tensor,
    sums_BHMC: Tensor,
    runs_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (batch, heads, time, C - 1), and top and sums after the last position; `chunk` has no meaning here."""
    is_new = None
    if runs_BT is not None:
        is_new = torch.diff(runs_BT, dim=1, prepend=torch.zeros_like(runs_BT[:, :1])) != 0
    outputs = []
    for t in range(q_BHTM.shape[2]):
        if is_new is not None:
            top_BHM = top_BHM.masked_fill(is_new[:, t, None, None], -torch.inf)
        y, top_BHM, sums_BHMC = step(q_BHTM[:, :, t], k_BHTM[:, :, t], v_BHTC[:, :, t], top_BHM, sums_BHMC)
        outputs.append(y)
    return torch.stack(outputs, dim=2), top_BHM, sums_BHMC
