"""The state space with a scalar decay per head and input-dependent B, C and dt: Mamba-2's core (arXiv 2405.21060).

`reference.py` is the specification, a loop; `chunked.py` the fast form in plain torch, matrix products over chunks of
time; `native.py` the compiled form on a CPU; `installed.py` the kernels of other packages on a GPU, where there are.

Shapes: B batch, T time, H heads, P head width, G groups of heads that share B and C, N state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.chunks import chunks_of
from seqmix.kernels.library import why_missing
from seqmix.kernels.state_space import chunked, installed, native, reference

IMPLEMENTATIONS = {"reference": reference.scan, "chunked": chunked.scan, "native": native.scan}


def state_space_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    state: Tensor | None = None,
    runs: Tensor | None = None,
    chunk: int = 64,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] (outer) B[t];  y[t] = h[t] · C[t] + D x[t], for every head.

    Computed in float32 whatever the inputs are (in float64 for float64), but for the products that a GPU kernel of
    another package makes of 16-bit inputs, which it sums in float32.

    Args:
        x: (batch, time, heads, width).
        dt: (batch, time, heads), the step sizes, positive.
        A, D: (heads,); A is not positive.
        B, C: (batch, time, groups, size); heads / groups neighbouring heads share one.
        state: (batch, heads, width, size), where an earlier piece ended; it is not changed. None is zero.
        runs: (batch, time) integers that differ between documents; 0 continues the state's document.
        chunk: positions handled at once by the chunked form; how a scan's FLOPs are counted, whoever computes it.
        implementation: "native", "chunked", "reference", "mamba_ssm" or "fla"; None takes the loop for float64, a GPU
            kernel of those two packages where that applies (see `installed.py`), the compiled form on a CPU, else
            chunked.

    Returns:
        y (batch, time, heads, width) in the type of x, and the state after the last position.

    Raises:
        ValueError: shapes that do not fit, a chunk below 1, an unknown implementation.
    """
    _check(x, dt, A, B, C, D, chunk)
    if implementation is None:
        implementation = "reference" if x.dtype == torch.float64 else _choose(x)
    if implementation in installed.KERNELS:
        return installed.scan(implementation, x, dt, A, B, C, D, state, runs)
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join([*IMPLEMENTATIONS, *installed.KERNELS])
        raise ValueError(f"implementation {implementation!r} is not available here: choose one of {known}")
    if implementation == "native" and not native.is_available(x):
        reason = why_missing() or f"it computes in float32 on a CPU, and x is {x.dtype} on {x.device.type}"
        raise ValueError(f"implementation 'native' is not available here: {reason}")
    wide = torch.promote_types(x.dtype, torch.float32)
    if state is None:
        state = torch.zeros(*x.shape[:1], *x.shape[2:], B.shape[3], dtype=wide, device=x.device)
    if x.shape[1] == 0:
        return x.clone(), state.to(wide)
    # Of no rows the chunked form cannot tell its sizes.
    scan = IMPLEMENTATIONS[implementation if len(x) else "reference"]
    with torch.autocast(x.device.type, enabled=False):
        y, after = scan(
            x.to(wide), dt.to(wide), A.to(wide), B.to(wide), C.to(wide), D.to(wide), state.to(wide), runs, chunk
        )
    return y.to(x.dtype), after


def state_space_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One position of the scan: as `state_space_scan` without the time axis; the cost is always the same."""
    batch, heads, width = x.shape
    groups, size = B.shape[1:]
    kind = state.dtype
    with torch.autocast(x.device.type, enabled=False):
        x_, dt, A, B, C, D = (tensor.to(kind) for tensor in (x, dt, A, B, C, D))
        written = (dt[..., None] * x_).view(batch, groups, -1, 1) * B[:, :, None]
        decay = torch.exp(dt * A)[..., None, None]
        state = torch.addcmul(written.view(batch, heads, width, size), decay, state)
        read = torch.bmm(state.view(batch * groups, -1, size), C.reshape(batch * groups, size, 1))
        y = read.view(batch, heads, width) + D[:, None] * x_
    return y.to(x.dtype), state


def decayed_weights(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The lower triangle (batch, heads, time, source) that the scan multiplies x by, without the skip D.

    M[t, s] = C[t] · B[s] * dt[s] * exp(A * (dt[s + 1] + ... + dt[t])).
    """
    time, share = dt.shape[1], dt.shape[2] // B.shape[2]
    logs = (dt * A).double().cumsum(dim=1).transpose(1, 2)
    apart = (logs[..., :, None] - logs[..., None, :]).to(dt.dtype)
    linked = torch.ones(time, time, dtype=torch.bool, device=dt.device).tril()
    scores = torch.einsum("btgn,bsgn->bgts", C, B).repeat_interleave(share, dim=1)
    return scores * apart.masked_fill(~linked, -torch.inf).exp() * dt.transpose(1, 2)[:, :, None]


def scan_flops(time: int, heads: int, width: int, groups: int, size: int, chunk: int) -> int:
    """Product FLOPs of the chunked scan over one row: scores, inside, states and their reading, padding included."""
    count, length = chunks_of(time, chunk)
    return 2 * count * length * (length * (groups * size + heads * width) + 2 * heads * width * size)


def step_flops(heads: int, width: int, size: int) -> int:
    """Product FLOPs of one step for one row: the state is read once."""
    return 2 * heads * width * size


def _choose(x: Tensor) -> str:
    return installed.choose(x) or ("native" if native.is_available(x) else "chunked")


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int) -> None:
    if x.dim() != 4 or dt.shape != x.shape[:3]:
        raise ValueError(
            f"x {tuple(x.shape)} and dt {tuple(dt.shape)} do not fit: they must be (batch, time, heads, width) "
            "and (batch, time, heads)"
        )
    if B.dim() != 4 or B.shape != C.shape or B.shape[:2] != x.shape[:2] or x.shape[2] % B.shape[2]:
        raise ValueError(
            f"B {tuple(B.shape)} and C {tuple(C.shape)} do not fit x {tuple(x.shape)}: they must be (batch, time, "
            "groups, size) with groups that divide the heads"
        )
    if A.shape != x.shape[2:3] or D.shape != x.shape[2:3]:
        raise ValueError(f"A {tuple(A.shape)} and D {tuple(D.shape)} must be (heads,) = {tuple(x.shape[2:3])}")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}: it must be at least 1")


__all__ = ["chunks_of", "decayed_weights", "scan_flops", "state_space_scan", "state_space_step", "step_flops"]
