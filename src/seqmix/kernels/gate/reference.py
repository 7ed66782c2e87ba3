"""The specification of SwiGLU's gate: silu(gate) * up, with silu(a) = a / (1 + exp(-a)).  arXiv 2002.05202"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The product, shaped as both."""
    return F.silu(gate) * up
