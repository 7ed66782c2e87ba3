"""The gated linear recurrence h[t] = a[t] h[t-1] + b[t], channel by channel.

`reference.py` is the specification, a loop; `native.py` the compiled form on a CPU; `chunked.py` the fast form in
plain torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.library import why_missing
from seqmix.kernels.linear_recurrence import chunked, native, reference

IMPLEMENTATIONS = {"reference": reference.scan, "chunked": chunked.scan, "native": native.scan}


def linear_recurrence(
    a: Tensor,
    b: Tensor,
    *,
    state: Tensor | None = None,
    runs: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """h[t] = a[t] h[t-1] + b[t], in float32 whatever the inputs are (in float64 for float64).

    Args:
        a, b: (batch, time, channels).
        state: (batch, channels), h before the first position; it is not changed. None is zero.
        runs: (batch, time) integers that differ between documents; 0 continues the state's document.
        implementation: "native", "chunked", "reference", or None: the loop for float64, else the best available.

    Returns:
        h (batch, time, channels) in the type of b, and the last h (batch, channels).

    Raises:
        ValueError: shapes that do not fit, an implementation that is unknown or not available.
    """
    if b.dim() != 3 or a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must both be (batch, time, channels)")
    expected = (b.shape[0], b.shape[2])
    if state is not None and state.shape != expected:
        raise ValueError(f"state has shape {tuple(state.shape)}: it must be (batch, channels) = {expected}")
    if runs is not None and runs.shape != b.shape[:2]:
        raise ValueError(f"runs has shape {tuple(runs.shape)}: it must be (batch, time) = {tuple(b.shape[:2])}")
    if implementation is None:
        best = "native" if native.is_available(b) else "chunked"
        implementation = "reference" if b.dtype == torch.float64 else best
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"implementation {implementation!r} is not available here: choose one of {known}")
    if implementation == "native" and not native.is_available(b):
        reason = why_missing() or f"it computes in float32 on a CPU, and b is {b.dtype} on {b.device.type}"
        raise ValueError(f"implementation 'native' is not available here: {reason}")
    wide = torch.promote_types(b.dtype, torch.float32)
    if state is None:
        state = torch.zeros(expected, dtype=wide, device=b.device)
    h, last = IMPLEMENTATIONS[implementation](a.to(wide), b.to(wide), state.to(wide), runs)
    return h.to(b.dtype), last


__all__ = ["linear_recurrence"]
