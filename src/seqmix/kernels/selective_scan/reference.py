"""The specification of the selective scan, a loop over time (Mamba, arXiv 2312.00752).

    s[t] = softplus(dt[t] + dt_bias)                                         softplus only where it is asked for
    h[t, d, n] = exp(s[t, d] A[d, n]) h[t-1, d, n] + s[t, d] x[t, d] B[t, n]
    y[t, d] = (sum_n C[t, n] h[t, d, n] + D[d] x[t, d]) silu(z[t, d])        the gate only where there is a z

Where a document begins, h[t-1] is zero.

Shapes: B batch, T time, D channels, N states of a channel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def scan(
    x_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None,
    z_BTD: Tensor | None,
    dt_bias_D: Tensor | None,
    state_BDN: Tensor,
    runs_BT: Tensor | None,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """y (batch, time, channels) and the state after the last position."""
    s_BTD = step_sizes(dt_BTD, dt_bias_D, dt_softplus)
    starts_BT = None if runs_BT is None else borders(runs_BT)
    outputs = []
    for t in range(x_BTD.shape[1]):
        decay_BDN = torch.exp(s_BTD[:, t, :, None] * A_DN)
        if starts_BT is not None:
            decay_BDN = torch.where(starts_BT[:, t, None, None], decay_BDN.new_zeros(()), decay_BDN)
        written_BDN = (s_BTD[:, t] * x_BTD[:, t])[:, :, None] * B_BTN[:, t, None]
        state_BDN = decay_BDN * state_BDN + written_BDN
        outputs.append((state_BDN * C_BTN[:, t, None]).sum(-1))
    y_BTD = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x_BTD)
    return skip_and_gate(y_BTD, x_BTD, D_D, z_BTD), state_BDN


def step_sizes(dt_BTD: Tensor, dt_bias_D: Tensor | None, dt_softplus: bool) -> Tensor:
    """dt with its bias, through softplus where it is asked for."""
    biased = dt_BTD if dt_bias_D is None else dt_BTD + dt_bias_D
    return F.softplus(biased) if dt_softplus else biased


def skip_and_gate(y_BTD: Tensor, x_BTD: Tensor, D_D: Tensor | None, z_BTD: Tensor | None) -> Tensor:
    """(y + D x) silu(z)."""
    y_BTD = y_BTD if D_D is None else y_BTD + D_D * x_BTD
    return y_BTD if z_BTD is None else y_BTD * F.silu(z_BTD)


def borders(runs_BT: Tensor) -> Tensor:
    """(batch, time) bool: whether the state before a position is of another document."""
    before = torch.cat([torch.zeros_like(runs_BT[:, :1]), runs_BT[:, :-1]], dim=1)
    return runs_BT != before
