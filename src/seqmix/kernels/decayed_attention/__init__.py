"""Linear attention whose state decays by channel, with a bonus for the present position (RWKV-6).

`reference.py` is the specification, a loop; `chunked.py` the fast form, matrix products over chunks of time.

Shapes: B batch, T time, H heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.decayed_attention import chunked, reference

IMPLEMENTATIONS = {"reference": reference.scan, "chunked": chunked.scan}


def decayed_attention(
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    bonus: Tensor,
    *,
    state: Tensor | None = None,
    runs: Tensor | None = None,
    chunk: int = 16,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """y[t] = S[t-1] r[t] + (r[t] · bonus * k[t]) v[t];  S[t] = S[t-1] diag(exp(log_decay[t])) + v[t] k[t]ᵀ.

    Computed in float32 whatever the inputs are (in float64 for float64), sums of logarithms in float64.

    Args:
        r, k: (batch, time, heads, key width), what reads and what is written.
        log_decay: likewise, at most 0; any size.
        v: (batch, time, heads, value width).
        bonus: (heads, key width).
        state: (batch, heads, value width, key width), where an earlier piece ended; it is not changed. None is zero.
        runs: (batch, time) integers that differ between documents; 0 continues the state's document.
        chunk: positions handled at once by the chunked form.
        implementation: "chunked" or "reference"; None takes the loop for float64 outside of a compiler.

    Returns:
        y (batch, time, heads, value width) in the type of v, and the state after the last position.

    Raises:
        ValueError: shapes that do not fit, a chunk below 1, an unknown implementation.
    """
    _check(r, log_decay, k, v, bonus, chunk)
    if implementation is None:
        plain = v.dtype == torch.float64 and not torch.compiler.is_compiling()
        implementation = "reference" if plain else "chunked"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}")
    wide = torch.promote_types(v.dtype, torch.float32)
    if state is None:
        state = torch.zeros(len(v), *v.shape[2:], r.shape[3], dtype=wide, device=v.device)
    if v.numel() == 0:
        return v.clone(), state.to(wide, copy=True)
    with torch.autocast(v.device.type, enabled=False):
        r, log_decay, k, v_, bonus, state = (each.to(wide) for each in (r, log_decay, k, v, bonus, state))
        y, after = IMPLEMENTATIONS[implementation](r, log_decay, k, v_, bonus, state, runs, chunk)
    return y.to(v.dtype), after


def decayed_attention_step(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, bonus: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One position: as `decayed_attention` without the time axis; the cost is always the same."""
    kind = state.dtype
    with torch.autocast(v.device.type, enabled=False):
        r, log_decay, k, v_, bonus = (each.to(kind) for each in (r, log_decay, k, v, bonus))
        y, after = reference.step(r, log_decay.exp(), k, v_, bonus, state)
    return y.to(v.dtype), after


def mixing_weights(r: Tensor, log_decay: Tensor, k: Tensor, bonus: Tensor, *, chunk: int = 16) -> Tensor:
    """The lower triangle M (batch, heads, time, source) that `decayed_attention` multiplies v by.

    M[t, s] = r[t] · exp(log_decay[s+1] + ... + log_decay[t-1]) * k[s], and r[t] · bonus * k[t] on the diagonal: what
    comes out when the value at s is the s-th unit vector.
    """
    batch, time, heads, _ = r.shape
    units = torch.eye(time, dtype=r.dtype, device=r.device)[:, None].expand(batch, -1, heads, -1)
    return decayed_attention(r, log_decay, k, units, bonus, chunk=chunk)[0].transpose(1, 2)


def scan_flops(time: int, heads: int, key_width: int, value_width: int, chunk: int) -> int:
    """Product FLOPs of the chunked form over one row."""
    return heads * chunked.flops(time, key_width, value_width, chunk)


def step_flops(heads: int, key_width: int, value_width: int) -> int:
    """Product FLOPs of one step for one row: the state is read once. The loop takes this for each position."""
    return 2 * heads * key_width * value_width


def _check(r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, bonus: Tensor, chunk: int) -> None:
    if v.dim() != 4 or r.dim() != 4 or r.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"r {tuple(r.shape)} and v {tuple(v.shape)} do not fit: they must be (batch, time, heads, key width) and "
            "(batch, time, heads, value width)"
        )
    for name, tensor in (("log_decay", log_decay), ("k", k)):
        if tensor.shape != r.shape:
            raise ValueError(f"{name} {tuple(tensor.shape)} must have the shape of r, {tuple(r.shape)}")
    if bonus.shape != r.shape[2:]:
        raise ValueError(f"bonus {tuple(bonus.shape)} must be (heads, key width) = {tuple(r.shape[2:])}")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}: it must be at least 1")


__all__ = ["decayed_attention", "decayed_attention_step", "mixing_weights", "scan_flops", "step_flops"]
