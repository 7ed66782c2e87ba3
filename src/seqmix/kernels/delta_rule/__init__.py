"""The generalised delta rule: a matrix state that forgets by channel, removes what a key holds and writes (RWKV-7).

`reference.py` is the specification, a loop; `chunked.py` the fast form in plain torch, matrix products over chunks of
time; `native.py` the compiled form on a CPU.

Shapes: B batch, T time, H heads, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.delta_rule import chunked, native, reference
from seqmix.kernels.library import why_missing

IMPLEMENTATIONS = {"reference": reference.scan, "chunked": chunked.scan, "native": native.scan}

LONGEST_CHUNK = 64
"""The product of a chunk's decays and its inverse must be float32 numbers; RWKV-7's decays are above 0.545."""


def delta_rule(
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    rate: Tensor,
    *,
    state: Tensor | None = None,
    runs: Tensor | None = None,
    chunk: int = 16,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """S[t] = S[t-1] diag(exp(log_decay[t])) - (S[t-1] kappa[t]) (rate[t] kappa[t])ᵀ + v[t] k[t]ᵀ;  y[t] = S[t] r[t].

    Computed in float32 whatever the inputs are (in float64 for float64).

    Args:
        r, k: (batch, time, heads, key width), what reads and what is written.
        log_decay: likewise, at most 0, and in the sum over a chunk at least -80.
        v: (batch, time, heads, value width).
        kappa: (batch, time, heads, key width), of length at most 1: what is removed. rate: likewise, in (0, 1): how
            much of it, for each channel.
        state: (batch, heads, value width, key width), where an earlier piece ended; it is not changed. None is zero.
        runs: (batch, time) integers that differ between documents; 0 continues the state's document.
        chunk: positions handled at once by the chunked form, at most 64.
        implementation: "native", "chunked" or "reference"; None takes the loop for float64 outside of a compiler, else
            the compiled form where it can run.

    Returns:
        y (batch, time, heads, value width) in the type of v, and the state after the last position.

    Raises:
        ValueError: shapes that do not fit, a chunk below 1 or above 64, an unknown implementation.
    """
    _check(r, log_decay, k, v, kappa, rate, chunk)
    if implementation is None:
        plain = v.dtype == torch.float64 and not torch.compiler.is_compiling()
        best = "native" if native.is_available(v, r.shape[3]) else "chunked"
        implementation = "reference" if plain else best
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "native" and not native.is_available(v, r.shape[3]):
        reason = why_missing() or (
            f"it computes in float32 on a CPU with keys of at most {native.WIDEST} channels, and v is {v.dtype} on "
            f"{v.device.type} with keys of {r.shape[3]}"
        )
        raise ValueError(f"implementation 'native' is not available here: {reason}")
    wide = torch.promote_types(v.dtype, torch.float32)
    if state is None:
        state = torch.zeros(len(v), *v.shape[2:], r.shape[3], dtype=wide, device=v.device)
    if v.numel() == 0:
        return v.clone(), state.to(wide, copy=True)
    with torch.autocast(v.device.type, enabled=False):
        r, log_decay, k, v_, kappa, rate, state = (each.to(wide) for each in (r, log_decay, k, v, kappa, rate, state))
        y, after = IMPLEMENTATIONS[implementation](r, log_decay, k, v_, kappa, rate, state, runs, chunk)
    return y.to(v.dtype), after


def delta_rule_step(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, kappa: Tensor, rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One position: as `delta_rule` without the time axis; the cost is always the same."""
    kind = state.dtype
    with torch.autocast(v.device.type, enabled=False):
        r, log_decay, k, v_, kappa, rate = (each.to(kind) for each in (r, log_decay, k, v, kappa, rate))
        y, after = reference.step(r, log_decay.exp(), k, v_, kappa, rate * kappa, state)
    return y.to(v.dtype), after


def mixing_weights(r: Tensor, log_decay: Tensor, k: Tensor, kappa: Tensor, rate: Tensor, *, chunk: int = 16) -> Tensor:
    """The lower triangle M (batch, heads, time, source) that `delta_rule` multiplies v by.

    M[t, s] = k[s]ᵀ G[s+1] ... G[t] r[t] with G[t] = diag(exp(log_decay[t])) - kappa[t] (rate[t] kappa[t])ᵀ: what comes
    out when the value at s is the s-th unit vector.
    """
    batch, time, heads, _ = r.shape
    units = torch.eye(time, dtype=r.dtype, device=r.device)[:, None].expand(batch, -1, heads, -1)
    return delta_rule(r, log_decay, k, units, kappa, rate, chunk=chunk)[0].transpose(1, 2)


def scan_flops(time: int, heads: int, key_width: int, value_width: int, chunk: int) -> int:
    """Product FLOPs of the chunked form over one row."""
    return heads * chunked.flops(time, key_width, value_width, chunk)


def step_flops(heads: int, key_width: int, value_width: int) -> int:
    """Product FLOPs of one step for one row: the state is read twice. The loop takes this for each position."""
    return 4 * heads * key_width * value_width


def _check(r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, kappa: Tensor, rate: Tensor, chunk: int) -> None:
    if v.dim() != 4 or r.dim() != 4 or r.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"r {tuple(r.shape)} and v {tuple(v.shape)} do not fit: they must be (batch, time, heads, key width) and "
            "(batch, time, heads, value width)"
        )
    for name, tensor in (("log_decay", log_decay), ("k", k), ("kappa", kappa), ("rate", rate)):
        if tensor.shape != r.shape:
            raise ValueError(f"{name} {tuple(tensor.shape)} must have the shape of r, {tuple(r.shape)}")
    if not 1 <= chunk <= LONGEST_CHUNK:
        raise ValueError(f"chunk is {chunk}: it must be between 1 and {LONGEST_CHUNK}")


__all__ = ["delta_rule", "delta_rule_step", "mixing_weights", "scan_flops", "step_flops"]
