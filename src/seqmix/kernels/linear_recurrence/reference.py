"""The specification of the gated linear recurrence, a loop over time.

    h[t] = a[t] * h[t - 1] + b[t]        for every channel; where a document begins, h[t - 1] is zero

Shapes: B batch, T time, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scan(a_BTD: Tensor, b_BTD: Tensor, state_BD: Tensor, runs_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """h (batch, time, channels) and the last of it."""
    kept_BTD = without_borders(a_BTD, runs_BT)
    states = []
    for t in range(b_BTD.shape[1]):
        state_BD = kept_BTD[:, t] * state_BD + b_BTD[:, t]
        states.append(state_BD)
    return (torch.stack(states, dim=1) if states else torch.zeros_like(b_BTD)), state_BD


def without_borders(a_BTD: Tensor, runs_BT: Tensor | None) -> Tensor:
    """The factors, zero where a document begins."""
    if runs_BT is None:
        return a_BTD
    before = torch.cat([torch.zeros_like(runs_BT[:, :1]), runs_BT[:, :-1]], dim=1)
    return torch.where((runs_BT == before)[:, :, None], a_BTD, a_BTD.new_zeros(()))
