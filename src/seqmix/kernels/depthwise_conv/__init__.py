"""The depthwise dilated convolution: one kernel and one dilation for each channel.

`operation.py` chooses among the implementations, `gates.py` computes the gates around it on the way. `reference.py`
is the specification, `grouped.py` the fast form in plain torch, `native.py` the one in C++, `triton.py` the one for
GPUs; `channels.py` has the ring buffers of the state.
"""

from seqmix.kernels.depthwise_conv.channels import Dilations, group_channels, unroll
from seqmix.kernels.depthwise_conv.gates import gated_depthwise_conv, swiglu_depthwise_conv
from seqmix.kernels.depthwise_conv.operation import (
    IMPLEMENTATIONS,
    DepthwiseConvState,
    depthwise_conv,
    depthwise_conv_step,
    empty_state,
)

__all__ = [
    "IMPLEMENTATIONS",
    "DepthwiseConvState",
    "Dilations",
    "depthwise_conv",
    "depthwise_conv_step",
    "empty_state",
    "gated_depthwise_conv",
    "group_channels",
    "swiglu_depthwise_conv",
    "unroll",
]
