"""The selective scan of Mamba: a diagonal recurrence whose step sizes, B and C depend on the input (arXiv 2312.00752).

`reference.py` is the specification, a loop; `native.py` the compiled form; `chunked.py` the fast form in plain torch.

Shapes: B batch, T time, D channels, N states of a channel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.library import why_missing
from seqmix.kernels.selective_scan import chunked, native, reference

IMPLEMENTATIONS = {"reference": reference.scan, "chunked": chunked.scan, "native": native.scan}


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state: Tensor | None = None,
    runs: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """h[t] = exp(s[t] A) h[t-1] + s[t] x[t] (outer) B[t];  y[t] = (h[t] · C[t] + D x[t]) silu(z[t]).

    Computed in float32 whatever the inputs are (in float64 for float64). Tensors whose last axis is contiguous are
    read where they lie.

    Args:
        x: (batch, time, channels).
        dt: (batch, time, channels); the step sizes are s = dt + dt_bias, through softplus with `dt_softplus`.
        A: (channels, states), negative. B, C: (batch, time, states). D, dt_bias: (channels,).
        z: (batch, time, channels), a gate on the output; None for none.
        state: (batch, channels, states), where an earlier piece ended; it is not changed. None is zero.
        runs: (batch, time) integers that differ between documents; 0 continues the state's document.
        implementation: "native", "chunked", "reference", or None: the loop for float64, else the best available.

    Returns:
        y (batch, time, channels) in the type of x, and the state after the last position.

    Raises:
        ValueError: shapes that do not fit, an implementation that is unknown or not available.
    """
    _check(x, dt, A, B, C)
    wide = torch.promote_types(x.dtype, torch.float32)
    scan = IMPLEMENTATIONS[_choose(implementation, x, wide)]
    if state is None:
        state = torch.zeros(x.shape[0], *A.shape, dtype=wide, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        x_, dt, A, B, C = (tensor.to(wide) for tensor in (x, dt, A, B, C))
        D, z, dt_bias = (None if tensor is None else tensor.to(wide) for tensor in (D, z, dt_bias))
        y, after = scan(x_, dt, A, B, C, D, z, dt_bias, state.to(wide), runs, dt_softplus)
    return y.to(x.dtype), after


def selective_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """One position of the scan: as `selective_scan` without the time axis; the cost is always the same."""
    kind = state.dtype
    with torch.autocast(x.device.type, enabled=False):
        biased = dt.to(kind) if dt_bias is None else dt.to(kind) + dt_bias.to(kind)
        s = F.softplus(biased) if dt_softplus else biased
        written = (s * x.to(kind))[..., None] * B.to(kind)[:, None]
        state = torch.addcmul(written, torch.exp(s[..., None] * A.to(kind)), state)
        y = torch.bmm(state, C.to(kind)[:, :, None])[:, :, 0]
        y = y if D is None else torch.addcmul(y, D.to(kind), x.to(kind))
        y = y if z is None else y * F.silu(z.to(kind))
    return y.to(x.dtype), state


def _choose(implementation: str | None, x: Tensor, wide: torch.dtype) -> str:
    if implementation is None:
        if wide == torch.float64:
            return "reference"
        return "native" if native.is_available(x) else "chunked"
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"implementation {implementation!r} is not available here: choose one of {known}")
    if implementation == "native" and not native.is_available(x):
        reason = why_missing() or f"it computes in float32 on a CPU, and x is {x.dtype} on {x.device.type}"
        raise ValueError(f"implementation 'native' is not available here: {reason}")
    return implementation


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    if x.dim() != 3 or dt.shape != x.shape:
        raise ValueError(
            f"x {tuple(x.shape)} and dt {tuple(dt.shape)} do not fit: both must be (batch, time, channels)"
        )
    if A.dim() != 2 or A.shape[0] != x.shape[2]:
        raise ValueError(f"A {tuple(A.shape)} must be (channels, states) with channels = {x.shape[2]}")
    expected = (*x.shape[:2], A.shape[1])
    if B.shape != expected or C.shape != expected:
        raise ValueError(f"B {tuple(B.shape)} and C {tuple(C.shape)} must be (batch, time, states) = {tuple(expected)}")


__all__ = ["selective_scan", "selective_step"]
