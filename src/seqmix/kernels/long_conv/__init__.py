"""The long convolution: for every channel a filter as long as you like, over sequences of any length.

`reference.py` is the specification, a sum over the lags; `fft.py` the fast form; `online.py` has what one position at
a time takes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.long_conv import fft, reference
from seqmix.kernels.long_conv.fft import smooth_length, transform_flops
from seqmix.kernels.long_conv.online import (
    NEAR,
    ahead,
    block_length,
    online_taps,
    recent_sum,
    step_flops,
    tile_length,
)

IMPLEMENTATIONS = {"reference": reference.convolve, "fft": fft.convolve}


def long_conv(
    u: Tensor,
    taps: Tensor,
    *,
    past: Tensor | None = None,
    runs: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """y[t] = sum over s <= t of taps[t - s] * u[s], channel by channel.

    Args:
        u: (batch, time, dim).
        taps: (dim, kernel), `taps[:, k]` for the source k positions back; longer or shorter than the sequence.
        past: (batch, positions, dim), the inputs just before u in order of time, zeros where a document is younger;
            None for a beginning.
        runs: (batch, time) integers that differ between neighbouring documents; 0 continues the past.
        implementation: "fft", "reference", or None: the reference for float64, else the transforms.

    Returns:
        y (batch, time, dim) in the type of u.

    Raises:
        ValueError: shapes that do not fit, no tap, an unknown implementation.
    """
    if u.dim() != 3 or taps.dim() != 2 or taps.shape[0] != u.shape[2]:
        raise ValueError(
            f"u {tuple(u.shape)} and taps {tuple(taps.shape)} do not fit: they must be "
            "(batch, time, dim) and (dim, kernel)"
        )
    if not taps.numel():
        raise ValueError(f"taps has shape {tuple(taps.shape)}: give at least one channel and one tap")
    if past is not None and (past.dim() != 3 or past.shape[::2] != u.shape[::2]):
        raise ValueError(
            f"past has shape {tuple(past.shape)}: it must be (batch, positions, dim) with the batch and dim of u, "
            f"{u.shape[0]} and {u.shape[2]}"
        )
    if runs is not None and runs.shape != u.shape[:2]:
        raise ValueError(f"runs has shape {tuple(runs.shape)}: it must be (batch, time) = {tuple(u.shape[:2])}")
    if implementation is None:
        implementation = "reference" if u.dtype == torch.float64 else "fft"
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"implementation {implementation!r} is unknown: choose one of {known}")
    if not u.numel():
        return u
    reach = taps.shape[1] - 1
    if past is not None and past.shape[1] > reach:
        past = past[:, past.shape[1] - reach :]
    return IMPLEMENTATIONS[implementation](u, taps, past, runs)


def long_conv_flops(time: int) -> int:
    """FLOPs of one channel of a sequence without past: the transforms of input, filter and output."""
    return 3 * transform_flops(smooth_length(max(1, 2 * time - 1)))


__all__ = [
    "IMPLEMENTATIONS",
    "NEAR",
    "ahead",
    "block_length",
    "long_conv",
    "long_conv_flops",
    "online_taps",
    "recent_sum",
    "step_flops",
    "tile_length",
]
