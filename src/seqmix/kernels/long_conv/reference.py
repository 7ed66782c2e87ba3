"""The specification of the long convolution, a loop over the lags.

    y[t, d] = sum over s <= t of taps[d, t - s] * u[s, d]        over the sources s in the document of t

Shapes: B batch, P past positions, T time, D channels, K taps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def convolve(u_BTD: Tensor, taps_DK: Tensor, past_BPD: Tensor | None, runs_BT: Tensor | None) -> Tensor:
    """y (batch, time, dim); a past continues run 0."""
    time = u_BTD.shape[1]
    before = 0 if past_BPD is None else past_BPD.shape[1]
    full = u_BTD if past_BPD is None else torch.cat([past_BPD, u_BTD], dim=1)
    y = torch.zeros_like(u_BTD)
    for lag in range(min(taps_DK.shape[1], before + time)):
        # Targets whose source stands in the past or in the piece; none of the others has one.
        first = max(0, lag - before)
        source = full[:, before + first - lag : before + time - lag]
        if runs_BT is not None:
            runs = torch.cat([runs_BT.new_zeros(len(runs_BT), before), runs_BT], dim=1)
            same = runs[:, before + first - lag : before + time - lag] == runs_BT[:, first:]
            source = torch.where(same[:, :, None], source, source.new_zeros(()))
        y = y + torch.cat([torch.zeros_like(y[:, :first]), taps_DK[:, lag] * source], dim=1)
    return y
