"""The depthwise convolution on a GPU through Triton: values, and the gradients of input, past and weights.

All groups of dilations that suit one size of program go through one launch. Inputs are kept in registers while a
program slides along time (`triton_programs.py`), and the matrix unit is not used: every channel has a kernel of its
own, so that a product could only be that of one channel's Toeplitz matrix, (R, R + K - 1), with columns that stand far
apart in memory. Such a block form multiplies R + K - 1 times for each output instead of K, and has to turn all inputs
in shared memory first; the multiply-adds of the direct form fill 70 % of its instructions for K = 32 as it is.

The sizes of programs are fixed (`triton_sizes.py`; `benchmarks/gpu.py` tries others) and not tuned at run time: with
them the order in which the gradient of the weights is summed would change from run to run.

The gradient of the weights is summed in two steps, without atomic additions: it is the same in every run.

Without a GPU the programs run in Triton's interpreter, where TRITON_INTERPRET=1 is set before triton is imported:
slow, and meant for tests.

Shapes: B batch, T time, D channels, K kernel, L length of a group's past.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from seqmix.kernels.depthwise_conv.channels import Dilations
from seqmix.kernels.depthwise_conv.triton_sizes import (
    CHANNELS_PER_WARP,
    IS_INTERPRETED,
    PROGRAMS_PER_PROCESSOR,
    block_of,
    by_outputs,
    gradient_sizes,
    part_of,
    passes_of,
    processors,
    sum_type,
    table_of,
    triton_type,
)
from seqmix.kernels.documents import Placement

_IS_INSTALLED = importlib.util.find_spec("triton") is not None

LONGEST = 2**30
"""Positions, the reach of the kernel included, that the programs can count."""


class _Task(Enum):
    """What the program `convolve` makes."""

    VALUES = 0
    INPUT_GRADIENT = 1
    PAST_GRADIENT = 2


def why_not(device: torch.device) -> str | None:
    """Why tensors on a device cannot be convolved here, in one sentence; None where they can."""
    if not _IS_INSTALLED:
        return "triton is not installed: install it with `pip install triton`"
    if device.type == "cuda" or IS_INTERPRETED:
        return None
    return (
        f"Triton programs need a CUDA device, and the tensors are on {device.type}: move them with .to('cuda'), "
        "or set TRITON_INTERPRET=1 before triton is imported to run them slowly anywhere"
    )


def available(device: torch.device) -> bool:
    """Whether tensors on a device can be convolved here."""
    return why_not(device) is None


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
    """The convolution of all channels, (batch, time, dim) in the type of x; past and position of a DepthwiseConvState.

    Equal dilations must be neighbours (`Dilations.order` is None or has been applied).

    Raises:
        ValueError: the device cannot run it (see `why_not`), or the sequence is longer than can be counted.
    """
    reason = why_not(x.device)
    if reason is not None:
        raise ValueError(reason)
    if x.shape[1] + dilations.span > LONGEST:
        raise ValueError(
            f"{x.shape[1]} positions and a reach of {dilations.span} are more than Triton programs can count "
            f"({LONGEST}): give the sequence in pieces, or take implementation 'torch'"
        )
    runs = placement.runs if placement.packed else None
    borders = [group.first for group in dilations.groups] + [dilations.groups[-1].last]
    return depthwise_conv(
        x, weight, bias, past, position, runs, borders, [group.dilation for group in dilations.groups], causal
    )


@torch.library.custom_op("seqmix::depthwise_conv_triton", mutates_args=())
def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    position: Tensor | None,
    runs: Tensor | None,
    borders: Sequence[int],
    dilations: Sequence[int],
    causal: bool,
) -> Tensor:
    """The operator behind `convolve`: group i has the channels borders[i] ... borders[i + 1] - 1 and dilations[i]."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(_Task.VALUES, x, weight, bias, past, position, runs, y, borders, dilations, causal)
    return y


@torch.library.custom_op("seqmix::depthwise_conv_triton_input_gradient", mutates_args=())
def _input_gradient(
    grad: Tensor,
    weight: Tensor,
    runs: Tensor | None,
    borders: Sequence[int],
    dilations: Sequence[int],
    causal: bool,
) -> Tensor:
    grad_x = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    _launch(_Task.INPUT_GRADIENT, grad, weight, None, None, None, runs, grad_x, borders, dilations, causal)
    return grad_x


@torch.library.custom_op("seqmix::depthwise_conv_triton_past_gradient", mutates_args=())
def _past_gradient(
    grad: Tensor,
    weight: Tensor,
    past: Tensor,
    position: Tensor,
    runs: Tensor | None,
    borders: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    if runs is not None:
        grad = grad * (runs == 0)[:, :, None]
    grad_past = torch.zeros(past.shape, dtype=past.dtype, device=past.device)
    _launch(_Task.PAST_GRADIENT, grad, weight, None, None, position, None, grad_past, borders, dilations, True)
    return grad_past


@torch.library.custom_op("seqmix::depthwise_conv_triton_weight_gradient", mutates_args=())
def _weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    past: Tensor | None,
    position: Tensor | None,
    runs: Tensor | None,
    borders: Sequence[int],
    dilations: Sequence[int],
    causal: bool,
) -> Tensor:
    from seqmix.kernels.depthwise_conv import triton_programs

    batch, time, dim = x.shape
    kernel = weight.shape[1]
    if x.numel() == 0:
        return torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
    x, grad = _channels_together(x), _channels_together(grad)
    taps, passes = passes_of(kernel)
    sizes = gradient_sizes()
    table, alignment = table_of(tuple(borders), tuple(dilations), kernel, sizes.block, x.device)
    # Of the group that has the most.
    bundles = max(-(-batch * min(d, time) * -(-time // (sizes.outputs * d)) // sizes.segments) for d in dilations)
    splits = max(1, min(bundles, PROGRAMS_PER_PROCESSOR * processors(x.device) // (len(table) * passes)))
    parts = torch.empty(splits, kernel, dim, dtype=sum_type(x), device=x.device)
    with on(x.device):
        triton_programs.weight_gradient[(len(table) * splits, passes)](
            x,
            x if past is None else past.contiguous(),
            x if position is None else position.contiguous(),
            grad,
            x if runs is None else runs.contiguous(),
            parts,
            table,
            len(table),
            batch,
            splits,
            -(-bundles // splits),
            time,
            dim,
            *x.stride()[:2],
            0 if past is None else past.shape[1],
            *grad.stride()[:2],
            K=kernel,
            KC=taps,
            R=sizes.outputs,
            PART=part_of(sizes.outputs, kernel),
            S=sizes.segments,
            BD=sizes.block,
            ALIGNMENT=alignment,
            CAUSAL=causal,
            HAS_PAST=past is not None,
            PACKED=runs is not None,
            SUM=triton_type(parts.dtype),
            num_warps=sizes.warps,
            enable_fp_fusion=False,
        )
    return parts.sum(0).t().to(weight.dtype).contiguous()


@depthwise_conv.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@_input_gradient.register_fake
def _(grad: Tensor, *rest: Any) -> Tensor:
    return torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)


@_past_gradient.register_fake
def _(grad: Tensor, weight: Tensor, past: Tensor, *rest: Any) -> Tensor:
    return torch.empty(past.shape, dtype=past.dtype, device=past.device)


@_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, past, position, runs, ctx.borders, ctx.dilations, ctx.causal = inputs
    # Only the gradient of the weights reads the inputs.
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, past, position, runs)
    ctx.bias_type = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, past, position, runs = ctx.saved_tensors
    groups = (ctx.borders, ctx.dilations)
    grad_x = grad_weight = grad_bias = grad_past = None
    if ctx.needs_input_grad[0]:
        grad_x = _input_gradient(grad, weight, runs, *groups, ctx.causal)
    if ctx.needs_input_grad[1]:
        grad_weight = _weight_gradient(grad, x, weight, past, position, runs, *groups, ctx.causal)
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 1), dtype=sum_type(grad)).to(ctx.bias_type)
    if ctx.needs_input_grad[3]:
        grad_past = _past_gradient(grad, weight, past, position, runs, *groups)
    return grad_x, grad_weight, grad_bias, grad_past, None, None, None, None, None


depthwise_conv.register_autograd(_backward, setup_context=_keep)


def _launch(
    task: _Task,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    position: Tensor | None,
    runs: Tensor | None,
    out: Tensor,
    borders: Sequence[int],
    dilations: Sequence[int],
    causal: bool,
) -> None:
    """Fills `out`, one launch for all groups of which a program makes the same number of outputs."""
    from seqmix.kernels.depthwise_conv import triton_programs

    batch, time, dim = source.shape
    kernel = weight.shape[1]
    if out.numel() == 0 or time == 0:
        return
    source = _channels_together(source)
    taps, _ = passes_of(kernel)
    device = source.device
    is_past = task is _Task.PAST_GRADIENT
    for outputs, members in by_outputs(dilations, kernel, time, is_past).items():
        block = block_of(max(borders[i + 1] - borders[i] for i in members))
        table, alignment = table_of(tuple(borders), tuple(dilations), kernel, block, device, members)
        ends = {dilations[i]: (kernel - 1) * dilations[i] if is_past else time for i in members}
        columns = max(min(d, end) * -(-end // (outputs * d)) for d, end in ends.items())
        with on(device):
            triton_programs.convolve[(len(table) * columns * batch,)](
                source,
                source if past is None else past.contiguous(),
                source if position is None else position.contiguous(),
                weight.t().contiguous(),
                weight if bias is None else bias.contiguous(),
                source if runs is None else runs.contiguous(),
                out,
                table,
                len(table),
                columns,
                time,
                dim,
                *source.stride()[:2],
                out.shape[1] if past is None else past.shape[1],
                *out.stride()[:2],
                K=kernel,
                KC=taps,
                R=outputs,
                PART=part_of(outputs, kernel),
                BD=block,
                ALIGNMENT=alignment,
                CAUSAL=causal,
                TASK=task.value,
                HAS_PAST=past is not None,
                HAS_BIAS=bias is not None,
                PACKED=runs is not None,
                SUM=triton_type(sum_type(source)),
                num_warps=max(1, block // CHANNELS_PER_WARP),
                enable_fp_fusion=False,
            )


def _channels_together(tensor: Tensor) -> Tensor:
    """The tensor with its channels beside each other in memory, copied only where they are not."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
