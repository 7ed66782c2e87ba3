"""SwiGLU's gate in C++ (`native/gate.cpp`), as an operator that autograd and torch.compile see."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from seqmix.kernels.library import STORAGE, function


class _Call(ctypes.Structure):
    """SeqmixGate of native/gate.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "storage", "threads")),
        *((name, ctypes.c_void_p) for name in ("gate", "up", "grad")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("gate", "up", "grad")),
        *((name, ctypes.c_void_p) for name in ("product", "grad_gate", "grad_up")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("product", "grad_gate", "grad_up")),
    )


def _run(name: str, **tensors: Tensor) -> None:
    """Calls the C function on tensors (rows, width) by the names of _Call."""
    like = tensors["gate"]
    call = _Call(
        *like.shape,
        STORAGE[like.dtype],
        torch.get_num_threads(),
        **{field: tensor.data_ptr() for field, tensor in tensors.items()},
        **{f"{field}_stride": tensor.stride(0) for field, tensor in tensors.items()},
    )
    function(name)(ctypes.byref(call))


def _rows(x: Tensor) -> Tensor:
    """x as (rows, width) with a contiguous width; a half of a wider tensor stays where it is."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()


@torch.library.custom_op("seqmix::swiglu", mutates_args=(), device_types="cpu")
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """As the reference's; both of one precision and shape."""
    product = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    _run("gate", gate=_rows(gate), up=_rows(up), product=_rows(product))
    return product


@swiglu.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)


@torch.library.custom_op("seqmix::swiglu_gradient", mutates_args=(), device_types="cpu")
def _swiglu_gradient(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    grad_gate, grad_up = (torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2))
    _run(
        "gate_gradient",
        gate=_rows(gate),
        up=_rows(up),
        grad=_rows(grad.to(gate.dtype)),
        grad_gate=_rows(grad_gate),
        grad_up=_rows(grad_up),
    )
    return grad_gate, grad_up


@_swiglu_gradient.register_fake
def _(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    like = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    return like, torch.empty_like(like)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return _swiglu_gradient(grad, *ctx.saved_tensors)


swiglu.register_autograd(_backward, setup_context=_keep)
