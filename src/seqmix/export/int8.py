"""int8 matrices: a scale for each output, symmetric.

W[o, i] ~ scale[o] * q[o, i],  scale[o] = max_i |W[o, i]| / 127,  q in -127 ... 127
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ZERO_POINT = 128
"""MatMulNBits stores unsigned numbers, of which it takes this away."""


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values (out, in) and float32 scales (out,) of a matrix; a row of zeros has scale 0."""
    wide = weight.detach().float()
    scales = wide.abs().amax(dim=1) / 127
    quotients = wide / torch.where(scales > 0, scales, 1)[:, None]
    return quotients.round().clamp(-127, 127).to(torch.int8), scales


def packed_blocks(weight: Tensor, block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Values (out, blocks, block) and scales (out * blocks,) as MatMulNBits takes them; the last block is padded."""
    values, scales = to_int8(weight)
    out, width = values.shape
    blocks = -(-width // block)
    stored = np.full((out, blocks * block), _ZERO_POINT, np.uint8)
    stored[:, :width] = (values.to(torch.int16) + _ZERO_POINT).to(torch.uint8).numpy()
    return stored.reshape(out, blocks, block), np.repeat(scales.numpy(), blocks)
