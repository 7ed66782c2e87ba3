"""The selective scan through the compiled CPU kernels, as operations that torch.compile and autograd know.

Shapes: B batch, T time, D channels, N states of a channel, J chunks.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from seqmix.kernels.library import function
from seqmix.kernels.library import is_available as is_built

CHUNK = 16
"""Positions between two states that the backward starts from: as many numbers are kept as the input has, for N = 16."""

_Address = ctypes.c_void_p


class _Sequence(ctypes.Structure):
    _fields_ = [("data", _Address), ("batch", ctypes.c_int64), ("time", ctypes.c_int64)]


class _Scan(ctypes.Structure):
    """SeqmixSelectiveScan of native/selective_scan.h."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("batch", "time", "dim", "size", "chunk", "threads", "use_softplus")],
        *[(name, _Sequence) for name in ("x", "dt", "z", "B", "C")],
        *[(name, _Address) for name in ("A", "D", "dt_bias", "state", "runs", "y", "final_state", "kept")],
        ("grad_y", _Sequence),
        *[(name, _Address) for name in ("grad_final", "grad_x", "grad_dt", "grad_z", "grad_B", "grad_C", "grad_A")],
        *[(name, _Address) for name in ("grad_D", "grad_dt_bias", "grad_state")],
    ]


def is_available(x: Tensor) -> bool:
    """Whether the compiled kernel can take x; it computes in float32 on a CPU."""
    return is_built() and x.device.type == "cpu" and x.dtype != torch.float64


def scan(
    x_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None,
    z_BTD: Tensor | None,
    dt_bias_D: Tensor | None,
    state_BDN: Tensor,
    runs_BT: Tensor | None,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """As the reference: y (batch, time, channels) and the state after the last position, all in float32."""
    tensors = (x_BTD, dt_BTD, A_DN, B_BTN, C_BTN, D_D, z_BTD, dt_bias_D, state_BDN)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    y_BTD, after_BDN, _ = _forward(*tensors, runs_BT, dt_softplus, keep)
    return y_BTD, after_BDN


@torch.library.custom_op("seqmix::selective_scan", mutates_args=())
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    runs: Tensor | None,
    dt_softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and with `keep` the states before each chunk as (batch, chunks, states, channels)."""
    (batch, time, dim), size = x.shape, A.shape[1]
    y = x.new_empty(batch, time, dim)
    after = x.new_empty(batch, size, dim)
    kept = x.new_empty((batch, -(-time // CHUNK), size, dim) if keep else (0,))
    held = _held(x, dt, A, B, C, D, z, dt_bias, runs)
    call = _describe(held, dt_softplus)
    before = state.transpose(1, 2).contiguous()
    call.state, call.y, call.final_state = before.data_ptr(), y.data_ptr(), after.data_ptr()
    call.kept = kept.data_ptr() if keep else None
    function("selective_scan")(ctypes.byref(call))
    return y, after.transpose(1, 2).contiguous(), kept


@_forward.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    runs: Tensor | None,
    dt_softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, dim = x.shape
    sizes = (batch, (time + CHUNK - 1) // CHUNK, A.shape[1], dim) if keep else (0,)
    return x.new_empty(batch, time, dim), x.new_empty(batch, dim, A.shape[1]), x.new_empty(sizes)


@torch.library.custom_op("seqmix::selective_scan_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_after: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    runs: Tensor | None,
    kept: Tensor,
    dt_softplus: bool,
) -> list[Tensor]:
    """The gradients of x, dt, A, B, C, D, z, dt_bias and state; those of what is not there are empty or zero."""
    (batch, time, dim), size = x.shape, A.shape[1]
    held = _held(x, dt, A, B, C, D, z, dt_bias, runs)
    call = _describe(held, dt_softplus)
    grad_y = _channels_contiguous(grad_y)
    grad_x, grad_dt = (x.new_empty(batch, time, dim) for _ in range(2))
    grad_z = x.new_empty((batch, time, dim) if z is not None else (0,))
    grad_B, grad_C = (x.new_empty(batch, time, size) for _ in range(2))
    grad_A = x.new_zeros(batch, size, dim)
    grad_D, grad_bias = (x.new_zeros(batch, dim) for _ in range(2))
    grad_state = grad_after.transpose(1, 2).contiguous().clone()
    call.grad_y = _sequence(grad_y)
    call.kept = kept.data_ptr()
    call.grad_x, call.grad_dt, call.grad_z = grad_x.data_ptr(), grad_dt.data_ptr(), grad_z.data_ptr()
    call.grad_B, call.grad_C, call.grad_A = grad_B.data_ptr(), grad_C.data_ptr(), grad_A.data_ptr()
    call.grad_D, call.grad_dt_bias, call.grad_state = grad_D.data_ptr(), grad_bias.data_ptr(), grad_state.data_ptr()
    function("selective_scan_backward")(ctypes.byref(call))
    return [
        grad_x,
        grad_dt,
        grad_A.sum(0).T.contiguous(),
        grad_B,
        grad_C,
        grad_D.sum(0),
        grad_z,
        grad_bias.sum(0),
        grad_state.transpose(1, 2).contiguous(),
    ]


@_backward.register_fake
def _(
    grad_y: Tensor,
    grad_after: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    runs: Tensor | None,
    kept: Tensor,
    dt_softplus: bool,
) -> list[Tensor]:
    (batch, time, dim), size = x.shape, A.shape[1]
    whole, shared = (batch, time, dim), (batch, time, size)
    gate = whole if z is not None else (0,)
    sizes = [whole, whole, (dim, size), shared, shared, (dim,), gate, (dim,), (batch, dim, size)]
    return [x.new_empty(each) for each in sizes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, runs, ctx.dt_softplus, _ = inputs
    ctx.save_for_backward(*tensors, runs, output[2])


def _differentiate(ctx: Any, grad_y: Tensor, grad_after: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, runs, kept = ctx.saved_tensors
    grads = _backward(grad_y, grad_after, *tensors, runs, kept, ctx.dt_softplus)
    *found, grad_state = grads
    known = [None if tensor is None else grad for tensor, grad in zip(tensors, found, strict=True)]
    return (*known, grad_state, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)


def _held(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    runs: Tensor | None,
) -> dict[str, Tensor | None]:
    """The inputs in the layout that the C interface reads; they must live as long as the call."""
    return {
        "x": _channels_contiguous(x),
        "dt": _channels_contiguous(dt),
        "z": None if z is None else _channels_contiguous(z),
        "B": _channels_contiguous(B),
        "C": _channels_contiguous(C),
        "A": A.T.contiguous(),
        "D": None if D is None else D.contiguous(),
        "dt_bias": None if dt_bias is None else dt_bias.contiguous(),
        "runs": None if runs is None else runs.long().contiguous(),
    }


def _describe(held: dict[str, Tensor | None], dt_softplus: bool) -> _Scan:
    x, A = held["x"], held["A"]
    assert x is not None
    assert A is not None
    call = _Scan(*x.shape, A.shape[0], CHUNK, torch.get_num_threads(), int(dt_softplus))
    for name in ("x", "dt", "z", "B", "C"):
        tensor = held[name]
        if tensor is not None:
            setattr(call, name, _sequence(tensor))
    for name in ("A", "D", "dt_bias", "runs"):
        tensor = held[name]
        setattr(call, name, None if tensor is None else tensor.data_ptr())
    return call


def _channels_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(2) == 1 or tensor.shape[2] == 1 else tensor.contiguous()


def _sequence(tensor: Tensor) -> _Sequence:
    return _Sequence(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))
