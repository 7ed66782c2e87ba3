"""The operators in C++ that compute gates around the depthwise convolution on the way.

    gated:   y = C * conv(B * u)               with B, C, u side by side in one tensor
    swiglu:  y = conv(x) * silu(a) * b         with a, b side by side in one tensor

Neither keeps a product for the backward: the convolution is formed once more there, which costs less than its memory
is worth.

Shapes: B batch, T time, D channels, K kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seqmix.kernels.depthwise_conv.native import Past, Sink, Source, rows, run, run_weight_gradient, turn


@torch.library.custom_op("seqmix::gated_depthwise_conv", mutates_args=(), device_types="cpu")
def gated(
    projected: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    position: Tensor | None,
    runs: Tensor | None,
    table: Sequence[int],
) -> Tensor:
    """C * conv(B * u), (batch, time, dim), from B, C, u in projected (batch, time, 3 dim)."""
    gate_in, gate_out, value = rows(projected).chunk(3, dim=2)
    y = projected.new_empty(gate_in.shape)
    before = Past(past, position, runs)
    run(table, weight, Source.PRODUCT, [gate_in, value], Sink.TIMES, [gate_out], [y], bias=bias, past=before)
    return y


@gated.register_fake
def _(projected: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return projected.new_empty(projected.shape[0], projected.shape[1], weight.shape[0])


@torch.library.custom_op("seqmix::gated_depthwise_conv_backward", mutates_args=(), device_types="cpu")
def _gated_backward(
    grad: Tensor,
    projected: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    position: Tensor | None,
    runs: Tensor | None,
    table: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of projected, weight and bias; the last two in float32."""
    grad = rows(grad.to(projected.dtype))
    gate_in, gate_out, value = rows(projected).chunk(3, dim=2)
    grad_projected = torch.empty(projected.shape, dtype=projected.dtype)
    grad_in, grad_out, grad_value = grad_projected.chunk(3, dim=2)
    before = Past(past, position, runs)
    through = torch.empty_like(grad)
    run(
        table,
        weight,
        Source.PRODUCT,
        [gate_in, value],
        Sink.TIMES_GRADIENT,
        [grad, gate_out],
        [grad_out, through],
        bias=bias,
        past=before,
    )
    run(
        turn(table),
        weight,
        Source.PLAIN,
        [through],
        Sink.TIMES_BOTH,
        [value, gate_in],
        [grad_in, grad_value],
        past=Past(runs=runs),
        turned=True,
    )
    grad_weight, grad_bias = run_weight_gradient(
        table, weight.shape[1], Source.PRODUCT, [gate_in, value], through, with_bias=True, past=before
    )
    assert grad_bias is not None
    return grad_projected, grad_weight, grad_bias


@_gated_backward.register_fake
def _(grad: Tensor, projected: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty(projected.shape, dtype=projected.dtype, device=grad.device), *_like_parameters(weight)


@torch.library.custom_op("seqmix::swiglu_depthwise_conv", mutates_args=(), device_types="cpu")
def swiglu(
    x: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    position: Tensor | None,
    runs: Tensor | None,
    table: Sequence[int],
) -> Tensor:
    """conv(x) * silu(a) * b, (batch, time, dim), from a, b in gates (batch, time, 2 dim)."""
    y = torch.empty(x.shape, dtype=x.dtype)
    before = Past(past, position, runs)
    factors = rows(gates).chunk(2, dim=2)
    run(table, weight, Source.PLAIN, [rows(x)], Sink.GATE, factors, [y], bias=bias, past=before)
    return y


@swiglu.register_fake
def _(x: Tensor, gates: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("seqmix::swiglu_depthwise_conv_backward", mutates_args=(), device_types="cpu")
def _swiglu_backward(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    position: Tensor | None,
    runs: Tensor | None,
    table: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, gates, weight and bias; the last two in float32."""
    grad, x = rows(grad.to(x.dtype)), rows(x)
    first, second = rows(gates).chunk(2, dim=2)
    grad_x = torch.empty(x.shape, dtype=x.dtype)
    grad_gates = torch.empty(gates.shape, dtype=gates.dtype)
    before = Past(past, position, runs)
    through = torch.empty(x.shape, dtype=x.dtype)
    run(
        table,
        weight,
        Source.PLAIN,
        [x],
        Sink.GATE_GRADIENT,
        [first, second, grad],
        [*grad_gates.chunk(2, dim=2), through],
        bias=bias,
        past=before,
    )
    run(turn(table), weight, Source.PLAIN, [through], Sink.STORE, [], [grad_x], past=Past(runs=runs), turned=True)
    grad_weight, grad_bias = run_weight_gradient(
        table, weight.shape[1], Source.PLAIN, [x], through, with_bias=True, past=before
    )
    assert grad_bias is not None
    return grad_x, grad_gates, grad_weight, grad_bias


@_swiglu_backward.register_fake
def _(grad: Tensor, x: Tensor, gates: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like_x, like_gates = (torch.empty(tensor.shape, dtype=tensor.dtype, device=x.device) for tensor in (x, gates))
    return like_x, like_gates, *_like_parameters(weight)


def _like_parameters(weight: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.empty(shape, device=weight.device) for shape in (weight.shape, weight.shape[:1]))  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.table = inputs
    ctx.save_for_backward(*tensors)


def _parameters(ctx: Any, grads: tuple[Tensor, Tensor], weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    """The gradients of weight and bias in their types, and of what else an operator is given: none."""
    grad_bias = None if bias is None else grads[1].to(bias.dtype)
    return grads[0].to(weight.dtype), grad_bias, None, None, None, None


def _backward_of_gated(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    projected, weight, bias, *before = ctx.saved_tensors
    grad_projected, *grads = _gated_backward(grad, projected, weight, bias, *before, ctx.table)
    return grad_projected, *_parameters(ctx, tuple(grads), weight, bias)


def _backward_of_swiglu(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, gates, weight, bias, *before = ctx.saved_tensors
    grad_x, grad_gates, *grads = _swiglu_backward(grad, x, gates, weight, bias, *before, ctx.table)
    return grad_x, grad_gates, *_parameters(ctx, tuple(grads), weight, bias)


gated.register_autograd(_backward_of_gated, setup_context=_keep)
swiglu.register_autograd(_backward_of_swiglu, setup_context=_keep)
