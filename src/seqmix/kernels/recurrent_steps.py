"""Steps of recurrences through the compiled CPU kernels, each state brought up to date in place.

They are for decoding: no gradients, float32 on a CPU, contiguous states. `can_run` says whether that holds; where it
does not, the callers have forms in torch. A call takes a few microseconds, which for one token is what counts.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from seqmix.kernels.library import function
from seqmix.kernels.library import is_available as is_built

_Address = ctypes.c_void_p
_Size = ctypes.c_int64


class _Row(ctypes.Structure):
    _fields_ = [("data", _Address), ("batch", _Size), ("step", _Size)]


class _ConvStep(ctypes.Structure):
    _fields_ = [
        *[(name, _Size) for name in ("batch", "dim", "kernel", "length", "use_silu")],
        ("x", _Row),
        *[(name, _Address) for name in ("state", "weight", "bias", "y")],
    ]


class _SelectiveStep(ctypes.Structure):
    _fields_ = [
        *[(name, _Size) for name in ("batch", "dim", "size", "use_softplus")],
        *[(name, _Row) for name in ("x", "dt", "z", "B", "C")],
        *[(name, _Address) for name in ("A", "D", "dt_bias", "state", "y")],
    ]


class _StateSpaceStep(ctypes.Structure):
    _fields_ = [
        *[(name, _Size) for name in ("batch", "heads", "width", "groups", "size", "use_softplus")],
        *[(name, _Row) for name in ("x", "dt", "B", "C", "A", "D", "dt_bias")],
        *[(name, _Address) for name in ("state", "y")],
    ]


_NOTHING = _Row(None, 0, 0)


def can_run(state: Tensor, *others: Tensor | None) -> bool:
    """Whether a compiled step takes these: float32 on a CPU, the state contiguous, nothing that asks for gradients."""
    if not is_built() or torch.compiler.is_compiling() or not state.is_contiguous():
        return False
    tensors = [state, *(tensor for tensor in others if tensor is not None)]
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return not needs_grad and all(each.dtype == torch.float32 and each.device.type == "cpu" for each in tensors)


def conv_step(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, use_silu: bool) -> Tensor:
    """The short convolution of x (batch, dim) after the newest inputs in state (batch, dim, length)."""
    y = x.new_empty(x.shape)
    # Names keep a contiguous copy alive until the call is over.
    weight, bias = weight.contiguous(), _contiguous(bias)
    sizes = (*x.shape, weight.shape[1], state.shape[2], int(use_silu))
    call = _ConvStep(*sizes, _row(x), state.data_ptr(), weight.data_ptr(), _address(bias), y.data_ptr())
    function("conv_step")(ctypes.byref(call))
    return y


def selective_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    """One position of `selective_scan`: x, dt and z (batch, channels), state (batch, channels, states)."""
    y = x.new_empty(x.shape)
    A, B, C = A.contiguous(), _last_contiguous(B), _last_contiguous(C)
    D, dt_bias = _contiguous(D), _contiguous(dt_bias)
    rows = (_row(x), _row(dt), _NOTHING if z is None else _row(z), _row(B), _row(C))
    call = _SelectiveStep(*x.shape, A.shape[1], int(dt_softplus), *rows)
    call.A, call.D, call.dt_bias, call.state, call.y = (
        A.data_ptr(),
        _address(D),
        _address(dt_bias),
        state.data_ptr(),
        y.data_ptr(),
    )
    function("selective_step")(ctypes.byref(call))
    return y


def state_space_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    """One position of `state_space_scan`: x (batch, heads, width), dt (batch, heads), A, D and dt_bias (heads,).

    B and C (batch, groups, size), state (batch, heads, width, size).
    """
    y = torch.empty(x.shape)
    x, B, C = (each if each[0].is_contiguous() else each.contiguous() for each in (x, B, C))
    sizes = (*x.shape, B.shape[1], B.shape[2], int(dt_softplus))
    wholes = [_Row(each.data_ptr(), each.stride(0), 1) for each in (x, B, C)]
    heads = [_NOTHING if each is None else _Row(each.data_ptr(), 0, each.stride(0)) for each in (A, D, dt_bias)]
    call = _StateSpaceStep(*sizes, wholes[0], _row(dt), *wholes[1:], *heads, state.data_ptr(), y.data_ptr())
    function("state_space_step")(ctypes.byref(call))
    return y


def _row(tensor: Tensor) -> _Row:
    return _Row(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
