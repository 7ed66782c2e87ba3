"""Operations with several implementations: a reference in plain torch that is the specification, and fast forms.

They import nothing else of seqmix, so that any PyTorch model can use them.
"""

from seqmix.kernels.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from seqmix.kernels.depthwise_conv import DepthwiseConvState, depthwise_conv, depthwise_conv_step
from seqmix.kernels.huggingface import patch_transformers

__all__ = [
    "DepthwiseConvState",
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "depthwise_conv",
    "depthwise_conv_step",
    "patch_transformers",
]
