"""The depthwise convolution in C++ (`native/depthwise_conv.cpp`), as operators that autograd and torch.compile see.

All groups of channels are done in one call that reads and writes (batch, time, dim); the past is read from its rings.

Shapes: B batch, T time, D channels, K kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqmix.kernels.depthwise_conv.channels import Dilations
from seqmix.kernels.documents import Placement
from seqmix.kernels.library import STORAGE, can_run, function, is_available, why_missing

_FIELDS_OF_GROUP = 6


class _Stream(ctypes.Structure):
    """SeqmixStream: a (batch, time, dim) tensor with contiguous channels."""

    _fields_ = (("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("time_stride", ctypes.c_int64))


class _Call(ctypes.Structure):
    """SeqmixConv of native/depthwise_conv.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "time", "dim", "kernel", "storage", "source")),
        ("inputs", _Stream * 2),
        ("sink", ctypes.c_int64),
        ("factors", _Stream * 3),
        ("outputs", _Stream * 3),
        ("grad", _Stream),
        ("grad_weight", ctypes.c_void_p),
        ("grad_bias", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("turned", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("groups", ctypes.c_void_p),
        ("num_groups", ctypes.c_int64),
        ("runs", ctypes.c_void_p),
        ("past", ctypes.c_void_p),
        ("past_size", ctypes.c_int64),
        ("position", ctypes.c_void_p),
        ("position_after", ctypes.c_void_p),
        ("past_after", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
    )


class Source(IntEnum):
    """How a value is made of one or two tensors a, b."""

    PLAIN = 0  # a
    PRODUCT = 1  # a * b


class Sink(IntEnum):
    """What is written of the convolution z, with up to three tensors a, b, c."""

    STORE = 0  # z
    TIMES = 1  # z * a
    TIMES_BOTH = 2  # z * a and z * b
    TIMES_GRADIENT = 3  # z * a and a * b
    GATE = 4  # z * silu(a) * b
    GATE_GRADIENT = 5  # z * c * silu'(a) * b and z * c * silu(a) and c * silu(a) * b


class Past(NamedTuple):
    """What an earlier piece left behind (past, position of a DepthwiseConvState), and the borders of documents."""

    past: Tensor | None = None
    position: Tensor | None = None
    runs: Tensor | None = None


NOTHING = Past()


def why_not(x: Tensor, weight: Tensor, past: Tensor | None) -> str | None:
    """Why the operators cannot take these, in one sentence; None where they can."""
    if not is_available():
        return why_missing()
    if not can_run(x, weight) or (past is not None and past.dtype != x.dtype):
        types = ", ".join(f"{t.dtype} on {t.device}" for t in (x, weight, past) if t is not None)
        return f"it takes float32 or bfloat16 on the CPU, with a state of the type of x, and was given {types}"
    if past is not None and past.requires_grad and torch.is_grad_enabled():
        return "its gradients do not reach an earlier piece: detach the state, or take implementation 'torch'"
    return None


def available(x: Tensor, weight: Tensor, past: Tensor | None) -> bool:
    """Whether the operators can take these."""
    return why_not(x, weight, past) is None


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilations: Dilations,
    past: Tensor | None,
    position: Tensor | None,
    placement: Placement,
    causal: bool,
) -> Tensor:
    """The convolution of all channels, (batch, time, dim); past and position those of a DepthwiseConvState.

    Equal dilations must be neighbours (`Dilations.order` is None or has been applied).
    """
    before = before_of(past, position, placement)
    return depthwise_conv(x, weight, bias, *before, table_of(dilations, causal))


def before_of(past: Tensor | None, position: Tensor | None, placement: Placement) -> Past:
    """What the operators need to know of the state and the documents."""
    runs = placement.runs if placement.packed else None
    return Past(*(None if tensor is None else tensor.contiguous() for tensor in (past, position, runs)))


def table_of(dilations: Dilations, causal: bool) -> list[int]:
    """SeqmixConvGroup of each group, one after another."""
    return [
        number
        for group in dilations.groups
        for number in (
            group.first,
            group.last,
            group.dilation,
            -group.length if causal else -(group.length // 2),
            group.length,
            group.offset,
        )
    ]


def turn(table: Sequence[int]) -> list[int]:
    """The table of the input gradient: its taps lie ahead of the output where those of the forward lie behind."""
    turned = list(table)
    for start in range(0, len(turned), _FIELDS_OF_GROUP):
        offset, length = turned[start + 3], turned[start + 4]
        turned[start + 3] = -offset - length
    return turned


def rows(x: Tensor) -> Tensor:
    """x with contiguous channels."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def run(
    table: Sequence[int],
    weight: Tensor,
    source: Source,
    inputs: Sequence[Tensor],
    sink: Sink,
    factors: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    bias: Tensor | None = None,
    past: Past = NOTHING,
    turned: bool = False,
) -> None:
    """Convolves the value of `inputs` and writes `outputs`; all (batch, time, dim) with contiguous channels."""
    call = _prepare(table, weight.shape[1], source, inputs, past)
    weight = weight.float().contiguous()
    bias = None if bias is None else bias.float().contiguous()
    call.sink = sink
    call.factors = _streams(factors, 3)
    call.outputs = _streams(outputs, 3)
    call.weight, call.bias, call.turned = weight.data_ptr(), _address(bias), turned
    function("depthwise_conv")(ctypes.byref(call))


def run_weight_gradient(
    table: Sequence[int],
    kernel: int,
    source: Source,
    inputs: Sequence[Tensor],
    grad: Tensor,
    *,
    with_bias: bool,
    past: Past = NOTHING,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight (dim, kernel) and bias (dim,), float32, from the values and `grad`, that of z."""
    call = _prepare(table, kernel, source, inputs, past)
    dim = inputs[0].shape[2]
    grad_weight = torch.empty(dim, kernel)
    grad_bias = torch.empty(dim) if with_bias else None
    call.grad = _streams([grad], 1)[0]
    call.grad_weight, call.grad_bias = grad_weight.data_ptr(), _address(grad_bias)
    function("depthwise_conv_weight_gradient")(ctypes.byref(call))
    return grad_weight, grad_bias


def fill_rings(
    table: Sequence[int], source: Source, inputs: Sequence[Tensor], past: Past, position_after: Tensor, size: int
) -> Tensor:
    """The rings (batch, size) after the values of `inputs`, at `position_after` of each row's last document."""
    call = _prepare(table, 1, source, inputs, past)
    rings = torch.empty(inputs[0].shape[0], size, dtype=inputs[0].dtype)
    position_after = position_after.contiguous()
    call.past_size = size
    call.position_after, call.past_after = position_after.data_ptr(), rings.data_ptr()
    function("depthwise_conv_past")(ctypes.byref(call))
    return rings


def _prepare(table: Sequence[int], kernel: int, source: Source, inputs: Sequence[Tensor], past: Past) -> _Call:
    """A call with everything but weights and results. It holds addresses: the tensors must outlive it."""
    x = inputs[0]
    groups = (ctypes.c_int64 * len(table))(*table)
    call = _Call(*x.shape, kernel, STORAGE[x.dtype], source, _streams(inputs, 2))
    call.groups, call.num_groups = ctypes.addressof(groups), len(table) // _FIELDS_OF_GROUP
    call.runs, call.past, call.position = _address(past.runs), _address(past.past), _address(past.position)
    call.past_size = 0 if past.past is None else past.past.shape[1]
    call.threads = torch.get_num_threads()
    call.owner = groups
    return call


def _streams(tensors: Sequence[Tensor], count: int) -> Any:
    return (_Stream * count)(*(_Stream(tensor.data_ptr(), *tensor.stride()[:2]) for tensor in tensors))


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


@torch.library.custom_op("seqmix::depthwise_conv", mutates_args=(), device_types="cpu")
def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    position: Tensor | None,
    runs: Tensor | None,
    table: Sequence[int],
) -> Tensor:
    """The operator behind `convolve`; the table is SeqmixConvGroup of each group."""
    y = torch.empty(x.shape, dtype=x.dtype)
    run(table, weight, Source.PLAIN, [rows(x)], Sink.STORE, [], [y], bias=bias, past=Past(past, position, runs))
    return y


@depthwise_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Any, past: Any, position: Any, runs: Any, table: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("seqmix::depthwise_conv_input_gradient", mutates_args=(), device_types="cpu")
def _input_gradient(grad: Tensor, weight: Tensor, runs: Tensor | None, table: Sequence[int]) -> Tensor:
    grad_x = torch.empty(grad.shape, dtype=grad.dtype)
    past = Past(runs=runs)
    run(turn(table), weight, Source.PLAIN, [rows(grad)], Sink.STORE, [], [grad_x], past=past, turned=True)
    return grad_x


@_input_gradient.register_fake
def _(grad: Tensor, weight: Tensor, runs: Any, table: Any) -> Tensor:
    return torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)


@torch.library.custom_op("seqmix::depthwise_conv_weight_gradient", mutates_args=(), device_types="cpu")
def _weight_gradient(
    grad: Tensor,
    x: Tensor,
    kernel: int,
    past: Tensor | None,
    position: Tensor | None,
    runs: Tensor | None,
    table: Sequence[int],
) -> tuple[Tensor, Tensor]:
    before = Past(past, position, runs)
    grad = rows(grad.to(x.dtype))
    grad_weight, grad_bias = run_weight_gradient(
        table, kernel, Source.PLAIN, [rows(x)], grad, with_bias=True, past=before
    )
    assert grad_bias is not None
    return grad_weight, grad_bias


@_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, kernel: int, past: Any, position: Any, runs: Any, table: Any) -> tuple[Tensor, Tensor]:
    dim = x.shape[2]
    return x.new_empty(dim, kernel, dtype=torch.float32), x.new_empty(dim, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, past, position, runs, table = inputs
    # Only the gradients of weight and bias read the inputs.
    ctx.save_for_backward(x if any(ctx.needs_input_grad[1:3]) else None, weight, past, position, runs)
    ctx.table = table
    ctx.bias_type = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, past, position, runs = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _input_gradient(grad, weight, runs, ctx.table)
    if any(ctx.needs_input_grad[1:3]):
        grad_weight, grad_bias = _weight_gradient(grad, x, weight.shape[1], past, position, runs, ctx.table)
        grad_weight = grad_weight.to(weight.dtype)
        grad_bias = grad_bias.to(ctx.bias_type) if ctx.needs_input_grad[2] else None
    return grad_x, grad_weight, grad_bias, None, None, None, None


depthwise_conv.register_autograd(_backward, setup_context=_keep)
