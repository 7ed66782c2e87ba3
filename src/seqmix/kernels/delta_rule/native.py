"""The delta rule through the compiled CPU kernel, forward and backward, as operations torch.compile and autograd know.

The forward keeps the state before every `CHUNK` positions where a gradient is wanted; the backward makes those in
between once more.

Shapes: B batch, T time, H heads, K key width, V value width.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from seqmix.kernels.library import function
from seqmix.kernels.library import is_available as is_built

CHUNK = 16
"""SEQMIX_DELTA_CHUNK of native/delta_rule.h."""

WIDEST = 512
"""The most key channels the kernel takes: a row of the state stays in registers, or near them."""

_Address = ctypes.c_void_p
_Size = ctypes.c_int64
_INPUTS = ("r", "log_decay", "k", "v", "kappa", "rate", "state")


class _Call(ctypes.Structure):
    """SeqmixDeltaRule of native/delta_rule.h."""

    _fields_ = [
        *[(name, _Size) for name in ("batch", "time", "heads", "keys", "values", "threads")],
        *[(name, _Address) for name in (*_INPUTS, "runs", "y", "final_state", "kept", "grad_y", "grad_final")],
        *[(f"grad_{name}", _Address) for name in ("r", "log_decay", "k", "v", "kappa", "rate", "state")],
    ]


def is_available(v: Tensor, key_width: int) -> bool:
    """Whether the compiled kernel can take v and such keys; it computes in float32 on a CPU."""
    return is_built() and v.device.type == "cpu" and v.dtype != torch.float64 and key_width <= WIDEST


def scan(
    r_BTHK: Tensor,
    log_decay_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    kappa_BTHK: Tensor,
    rate_BTHK: Tensor,
    state_BHVK: Tensor,
    runs_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """y (batch, time, heads, value width) and the state after the last position; `chunk` only counts FLOPs."""
    inputs = (r_BTHK, log_decay_BTHK, k_BTHK, v_BTHV, kappa_BTHK, rate_BTHK, state_BHVK)
    keeps = torch.is_grad_enabled() and any(each.requires_grad for each in inputs)
    y, after, _ = _forward(*inputs, runs_BT, chunk, keeps)
    return y, after


@torch.library.custom_op("seqmix::delta_rule", mutates_args=())
def _forward(
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    rate: Tensor,
    state: Tensor,
    runs: Tensor | None,
    chunk: int,
    keeps: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the state after the last position, and the states before each chunk (none of them unless `keeps`)."""
    y, after = v.new_empty(v.shape), state.new_empty(state.shape)
    kept = state.new_empty(_kept_shape(v, state, keeps))
    # Names keep a contiguous copy alive until the call is over.
    inputs = [each.contiguous() for each in (r, log_decay, k, v, kappa, rate, state)]
    runs = None if runs is None else runs.long().contiguous()
    call = _describe(inputs, runs)
    call.y, call.final_state, call.kept = y.data_ptr(), after.data_ptr(), kept.data_ptr() if keeps else None
    function("delta_rule")(ctypes.byref(call))
    return y, after, kept


@_forward.register_fake
def _(
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    rate: Tensor,
    state: Tensor,
    runs: Tensor | None,
    chunk: int,
    keeps: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return v.new_empty(v.shape), state.new_empty(state.shape), state.new_empty(_kept_shape(v, state, keeps))


@torch.library.custom_op("seqmix::delta_rule_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_after: Tensor,
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    rate: Tensor,
    state: Tensor,
    runs: Tensor | None,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of r, log_decay, k, v, kappa, rate and state."""
    inputs = [each.contiguous() for each in (r, log_decay, k, v, kappa, rate, state)]
    runs = None if runs is None else runs.long().contiguous()
    grad_y, grad_after = grad_y.contiguous(), grad_after.contiguous()
    gradients = [each.new_empty(each.shape) for each in inputs]
    call = _describe(inputs, runs)
    call.kept, call.grad_y, call.grad_final = kept.data_ptr(), grad_y.data_ptr(), grad_after.data_ptr()
    for name, gradient in zip(_INPUTS, gradients, strict=True):
        setattr(call, f"grad_{name}", gradient.data_ptr())
    function("delta_rule_backward")(ctypes.byref(call))
    return tuple(gradients)  # type: ignore[return-value]  # seven of them


@_backward.register_fake
def _(
    grad_y: Tensor,
    grad_after: Tensor,
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    rate: Tensor,
    state: Tensor,
    runs: Tensor | None,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (r, log_decay, k, v, kappa, rate, state)
    return tuple(each.new_empty(each.shape) for each in inputs)  # type: ignore[return-value]  # as above


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:-2], output[2])


def _differentiate(ctx: Any, grad_y: Tensor, grad_after: Tensor, grad_kept: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(grad_y, grad_after, *ctx.saved_tensors), None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)


def _kept_shape(v: Tensor, state: Tensor, keeps: bool) -> tuple[int, ...]:
    return (*state.shape[:2], -(-v.shape[1] // CHUNK) if keeps else 0, *state.shape[2:])


def _describe(inputs: list[Tensor], runs: Tensor | None) -> _Call:
    r, v = inputs[0], inputs[3]
    addresses = [each.data_ptr() for each in inputs]
    call = _Call(*r.shape, v.shape[3], torch.get_num_threads(), *addresses)
    call.runs = None if runs is None else runs.data_ptr()
    return call
