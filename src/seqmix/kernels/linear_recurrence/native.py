"""The gated linear recurrence through the compiled CPU kernels, as operations that torch.compile and autograd know."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from seqmix.kernels.library import function
from seqmix.kernels.library import is_available as is_built

_Address = ctypes.c_void_p
_Size = ctypes.c_int64


class _Channels(ctypes.Structure):
    _fields_ = [("data", _Address), ("batch", _Size), ("time", _Size)]


class _Call(ctypes.Structure):
    """SeqmixLinearRecurrence of native/linear_recurrence.h."""

    _fields_ = [
        *[(name, _Size) for name in ("batch", "time", "dim", "threads")],
        ("a", _Channels),
        ("b", _Channels),
        *[(name, _Address) for name in ("state", "runs", "h")],
        ("grad_h", _Channels),
        *[(name, _Address) for name in ("grad_a", "grad_b", "grad_state")],
    ]


def is_available(x: Tensor) -> bool:
    """Whether the compiled kernel can take x; it computes in float32 on a CPU."""
    return is_built() and x.device.type == "cpu" and x.dtype != torch.float64


def scan(a: Tensor, b: Tensor, state: Tensor, runs: Tensor | None) -> tuple[Tensor, Tensor]:
    """As the reference: h (batch, time, channels) and the last of it, in float32."""
    h = _forward(a, b, state, runs)
    return h, h[:, -1] if h.shape[1] else state


@torch.library.custom_op("seqmix::linear_recurrence", mutates_args=())
def _forward(a: Tensor, b: Tensor, state: Tensor, runs: Tensor | None) -> Tensor:
    h = b.new_empty(b.shape)
    a, b, state = _channels_contiguous(a), _channels_contiguous(b), state.contiguous()
    runs = None if runs is None else runs.long().contiguous()
    call = _describe(a, state, runs, h)
    call.b = _channels(b)
    function("linear_recurrence")(ctypes.byref(call))
    return h


@_forward.register_fake
def _(a: Tensor, b: Tensor, state: Tensor, runs: Tensor | None) -> Tensor:
    return b.new_empty(b.shape)


@torch.library.custom_op("seqmix::linear_recurrence_backward", mutates_args=())
def _backward(
    grad_h: Tensor, a: Tensor, state: Tensor, runs: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a, b and the state."""
    grad_a, grad_b = h.new_empty(h.shape), h.new_empty(h.shape)
    grad_state = state.new_zeros(state.shape)
    grad_h, a, state = _channels_contiguous(grad_h), _channels_contiguous(a), state.contiguous()
    runs = None if runs is None else runs.long().contiguous()
    call = _describe(a, state, runs, h)
    call.grad_h = _channels(grad_h)
    call.grad_a, call.grad_b, call.grad_state = grad_a.data_ptr(), grad_b.data_ptr(), grad_state.data_ptr()
    function("linear_recurrence_backward")(ctypes.byref(call))
    return grad_a, grad_b, grad_state


@_backward.register_fake
def _(grad_h: Tensor, a: Tensor, state: Tensor, runs: Tensor | None, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape), state.new_empty(state.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, _, state, runs = inputs
    ctx.save_for_backward(a, state, runs, output)


def _differentiate(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(grad_h, *ctx.saved_tensors), None)


_forward.register_autograd(_differentiate, setup_context=_save)


def _describe(a: Tensor, state: Tensor, runs: Tensor | None, h: Tensor) -> _Call:
    call = _Call(*h.shape, torch.get_num_threads(), _channels(a))
    call.state, call.h = state.data_ptr(), h.data_ptr()
    call.runs = None if runs is None else runs.data_ptr()
    return call


def _channels(tensor: Tensor) -> _Channels:
    return _Channels(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _channels_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(2) == 1 or tensor.shape[2] == 1 else tensor.contiguous()
