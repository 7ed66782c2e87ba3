"""The norms in C++ (`native/norm.cpp`), as operators that autograd and torch.compile see.

The sum with a residual and the gate of Mamba-2 are computed on the way; so are their gradients.

Shapes: D width, E inner width; leading dimensions are rows.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from seqmix.kernels.library import STORAGE, function

_PLAIN, _ADD, _GATE = 0, 1, 2
"""SeqmixNormSource of native/norm.h."""


class _Call(ctypes.Structure):
    """SeqmixNorm of native/norm.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "dim", "groups", "storage", "source", "centred", "threads")),
        ("eps", ctypes.c_float),
        ("x", ctypes.c_void_p),
        ("other", ctypes.c_void_p),
        ("other_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "value", "normed", "mean", "scale")),
        *(
            (name, ctypes.c_void_p)
            for name in ("grad_normed", "grad_value", "grad_x", "grad_other", "grad_weight", "grad_bias")
        ),
    )


def _run(
    name: str, like: Tensor, *, source: int, groups: int = 1, centred: bool = False, eps: float = 0.0, **tensors: Any
) -> None:
    """Calls the C function; tensors by the names of _Call, those that are absent null."""
    width = like.shape[-1]
    gate = tensors.get("other")
    call = _Call(
        rows=like.numel() // max(1, width) * groups,
        dim=width // groups,
        groups=groups,
        storage=STORAGE[like.dtype],
        source=source,
        centred=centred,
        threads=torch.get_num_threads(),
        eps=eps,
        other_stride=0 if gate is None else gate.stride(0),
        **{field: tensor.data_ptr() for field, tensor in tensors.items() if tensor is not None},
    )
    function(name)(ctypes.byref(call))


def _rows(x: Tensor) -> Tensor:
    """x as (rows, width) with a contiguous width."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()


def _single(x: Tensor | None) -> Tensor | None:
    """What every row is scaled or shifted by, as the kernel reads it."""
    return None if x is None else x.float().contiguous()


@torch.library.custom_op("seqmix::add_norm", mutates_args=(), device_types="cpu")
def _add_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x + y, its norm, mean and scale of each row); without y the first is empty, and so is a mean not needed."""
    x = x.contiguous()
    normed = torch.empty_like(x)
    value = torch.empty_like(x) if y is not None else x.new_empty(0)
    rows = x.numel() // max(1, x.shape[-1])
    mean = x.new_empty(rows if centred else 0, dtype=torch.float32)
    scale = x.new_empty(rows, dtype=torch.float32)
    _run(
        "norm",
        x,
        source=_PLAIN if y is None else _ADD,
        centred=centred,
        eps=eps,
        x=x,
        weight=_single(weight),
        bias=_single(bias),
        normed=normed,
        mean=mean,
        scale=scale,
        other=None if y is None else _rows(y),
        value=None if y is None else value,
    )
    return value, normed, mean, scale


@_add_norm.register_fake
def _(x: Tensor, y: Any, weight: Tensor, bias: Any, eps: float, centred: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x.numel() // max(1, x.shape[-1])
    like = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    value = torch.empty_like(like) if y is not None else x.new_empty(0)
    mean = x.new_empty(rows if centred else 0, dtype=torch.float32)
    return value, like, mean, x.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op("seqmix::add_norm_gradient", mutates_args=(), device_types="cpu")
def _add_norm_gradient(
    grad_normed: Tensor,
    grad_value: Tensor | None,
    value: Tensor,
    weight: Tensor,
    mean: Tensor,
    scale: Tensor,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value (grad_value included), weight and bias, of which that of the bias may be empty."""
    value = value.contiguous()
    grad = torch.empty_like(value)
    grad_weight = weight.new_empty(weight.shape, dtype=torch.float32)
    grad_bias = torch.empty_like(grad_weight if centred else grad_weight[:0])
    _run(
        "norm_gradient",
        value,
        # The gradient of a sum reads the sum, which is here a plain input.
        source=_PLAIN,
        centred=centred,
        x=value,
        weight=_single(weight),
        mean=mean,
        scale=scale,
        grad_normed=grad_normed.to(value.dtype).contiguous(),
        grad_value=None if grad_value is None else grad_value.to(value.dtype).contiguous(),
        grad_x=grad,
        grad_weight=grad_weight,
        grad_bias=grad_bias if centred else None,
    )
    return grad, grad_weight, grad_bias


@_add_norm_gradient.register_fake
def _(
    grad_normed: Tensor, grad_value: Any, value: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    sums = weight.new_empty(weight.shape, dtype=torch.float32)
    return (
        torch.empty(value.shape, dtype=value.dtype, device=value.device),
        sums,
        torch.empty_like(sums if centred else sums[:0]),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, weight, bias, _, ctx.centred = inputs
    value, _, mean, scale = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, scale)
    ctx.save_for_backward(x if y is None else value, weight, mean, scale)
    ctx.types = [None if one is None else one.dtype for one in (x, y, weight, bias)]


def _backward(ctx: Any, grad_value: Tensor | None, grad_normed: Tensor | None, *rest: Any) -> tuple[Any, ...]:
    type_x, type_y, type_weight, type_bias = ctx.types
    grad = grad_value
    grad_weight = grad_bias = None
    if grad_normed is not None:
        grad, grad_weight, grad_bias = _add_norm_gradient(grad_normed, grad_value, *ctx.saved_tensors, ctx.centred)
        grad_weight, grad_bias = grad_weight.to(type_weight), None if type_bias is None else grad_bias.to(type_bias)
    of_x, of_y = (None if grad is None or one is None else grad.to(one) for one in (type_x, type_y))
    return of_x, of_y, grad_weight, grad_bias, None, None


_add_norm.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("seqmix::gated_norm", mutates_args=(), device_types="cpu")
def _gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int) -> tuple[Tensor, Tensor]:
    """(the norm, the scale of each group of each row)."""
    x = x.contiguous()
    normed = torch.empty_like(x)
    scale = x.new_empty(x.numel() // max(1, x.shape[-1]) * groups, dtype=torch.float32)
    _run(
        "norm",
        x,
        source=_GATE,
        groups=groups,
        eps=eps,
        x=x,
        weight=_single(weight),
        normed=normed,
        scale=scale,
        other=_rows(gate),
    )
    return normed, scale


@_gated_norm.register_fake
def _(x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int) -> tuple[Tensor, Tensor]:
    scale = x.new_empty(x.numel() // max(1, x.shape[-1]) * groups, dtype=torch.float32)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), scale


@torch.library.custom_op("seqmix::gated_norm_gradient", mutates_args=(), device_types="cpu")
def _gated_norm_gradient(
    grad: Tensor, x: Tensor, gate: Tensor, weight: Tensor, scale: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous()
    grad_x, grad_gate = torch.empty_like(x), torch.empty_like(x)
    grad_weight = weight.new_empty(weight.shape, dtype=torch.float32)
    _run(
        "norm_gradient",
        x,
        source=_GATE,
        groups=groups,
        x=x,
        weight=_single(weight),
        scale=scale,
        grad_normed=grad.to(x.dtype).contiguous(),
        grad_x=grad_x,
        grad_other=grad_gate,
        grad_weight=grad_weight,
        other=_rows(gate),
    )
    return grad_x, grad_gate, grad_weight


@_gated_norm_gradient.register_fake
def _(
    grad: Tensor, x: Tensor, gate: Tensor, weight: Tensor, scale: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    like = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return like, torch.empty_like(like), weight.new_empty(weight.shape, dtype=torch.float32)


def _keep_gated(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gate, weight, _, ctx.groups = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, gate, weight, output[1])


def _backward_gated(ctx: Any, grad: Tensor, of_scale: Any) -> tuple[Any, ...]:
    grad_x, grad_gate, grad_weight = _gated_norm_gradient(grad, *ctx.saved_tensors, ctx.groups)
    return grad_x, grad_gate, grad_weight.to(ctx.saved_tensors[2].dtype), None, None


_gated_norm.register_autograd(_backward_gated, setup_context=_keep_gated)


def add_norm(
    x: Tensor, y: Tensor | None, weight_D: Tensor, bias_D: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    """(x + y, or x without y; its norm); all of one precision."""
    value, normed, _, _ = _add_norm(x, y, weight_D, bias_D, eps, centred)
    return x if y is None else value, normed


def gated(x: Tensor, gate: Tensor, weight_E: Tensor, eps: float, groups: int) -> Tensor:
    """As the reference's; all of one precision."""
    return _gated_norm(x, gate, weight_E, eps, groups)[0]
