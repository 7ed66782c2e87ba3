"""The specification of the dynamic convolution, a loop over the taps.

    y[t, c] = sum_k weight[t, head(c), k] * x[t - left + k, c]        left = K - 1 when causal, floor((K - 1) / 2) else

Shapes: B batch, T time, P padded time (T + K - 1), H heads of W neighbouring channels, D channels (H * W), K kernel.
"""

from __future__ import annotations

from torch import Tensor


def convolve(padded_BPD: Tensor, weight_BTHK: Tensor) -> Tensor:
    """y (batch, time, channels); tap k of position t reads position t + k of `padded`."""
    time, heads, kernel = weight_BTHK.shape[1:]
    padded_BPHW = padded_BPD.unflatten(2, (heads, -1))
    y = weight_BTHK[..., 0, None] * padded_BPHW[:, :time]
    for tap in range(1, kernel):
        y = y + weight_BTHK[..., tap, None] * padded_BPHW[:, tap : tap + time]
    return y.flatten(2).to(padded_BPD.dtype)
