"""Operations with several implementations: a reference in plain torch that is the specification, and fast forms.

They import nothing else of seqmix, so that any PyTorch model can use them.
"""

from seqmix.kernels.depthwise_conv import DepthwiseConvState, depthwise_conv, depthwise_conv_step

__all__ = ["DepthwiseConvState", "depthwise_conv", "depthwise_conv_step"]
