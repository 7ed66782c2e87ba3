"""One more position of the depthwise convolution on a GPU: all groups of dilations in one launch.

In plain torch a step is a dozen small launches for each dilation, and each takes longer to start than to run.

Shapes: B batch, D channels, K kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seqmix.kernels.depthwise_conv import triton
from seqmix.kernels.depthwise_conv.channels import Dilations
from seqmix.kernels.depthwise_conv.triton_sizes import IS_INTERPRETED, sum_type, table_of, triton_type

MOST_TAPS = 64
"""The program is as long as the kernel."""

BLOCK, WARPS = 64, 1
"""Small blocks: one row has few channels, and all processors should have some."""


def available(x: Tensor, weight: Tensor, past: Tensor) -> bool:
    """Whether a step can go this way: on a GPU, without gradients, and with a kernel that is not too long."""
    return (
        x.device.type == "cuda"
        and weight.shape[1] <= MOST_TAPS
        and triton.available(x.device)
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or past.requires_grad))
    )


def step(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilations: Dilations, past: Tensor, position: Tensor
) -> Tensor:
    """y (batch, dim) in the type of x; x takes its slot in `past`. Equal dilations must be neighbours."""
    borders = [group.first for group in dilations.groups] + [dilations.groups[-1].last]
    return depthwise_conv_step(x, weight, bias, past, position, borders, [group.dilation for group in dilations.groups])


@torch.library.custom_op("seqmix::depthwise_conv_step_triton", mutates_args=("past",))
def depthwise_conv_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor,
    position: Tensor,
    borders: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    """The operator behind `step`: group i has the channels borders[i] ... borders[i + 1] - 1 and dilations[i]."""
    from seqmix.kernels.depthwise_conv import triton_step_program

    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y
    x = x if x.stride(1) == 1 else x.contiguous()
    assert past.is_contiguous()
    batch, dim = x.shape
    kernel = weight.shape[1]
    block = 8 if IS_INTERPRETED else BLOCK
    table, alignment = table_of(tuple(borders), tuple(dilations), kernel, block, x.device)
    with triton.on(x.device):
        triton_step_program.step[(len(table) * batch,)](
            x,
            past,
            position.contiguous(),
            weight.contiguous(),
            weight if bias is None else bias.contiguous(),
            y,
            table,
            len(table),
            dim,
            x.stride(0),
            past.shape[1],
            K=kernel,
            BD=block,
            ALIGNMENT=alignment,
            HAS_BIAS=bias is not None,
            SUM=triton_type(sum_type(x)),
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return y


@depthwise_conv_step.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
