"""Rotary position embedding: every pair of channels turns by an angle that grows with the position.

    pair i of d channels at position m turns by m * theta^(-2i/d)                          arXiv 2104.09864

The pairing is the half-split one of Llama and Hugging Face: channel i goes with channel i + d/2 (the paper's own
pairs are neighbours; the two differ by a permutation of the channels). Of an odd d the last channel stays as it is.

Shapes: T time, K channels of a head; anything may stand before them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cosines and sines (..., width // 2) of positions (...), computed in float64 and given as `dtype`."""
    pairs = width // 2
    exponents = torch.arange(pairs, dtype=torch.float64, device=positions.device) / max(pairs, 1)
    angles = positions.to(torch.float64)[..., None] * theta**-exponents
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotation(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns the pairs of x (..., T, K) by angles (..., T, K // 2)."""
    pairs = x.shape[-1] // 2
    # A split has one gradient, where slices would each have one as large as x.
    first, second, rest = x.split((pairs, pairs, x.shape[-1] % 2), dim=-1)
    turned = [first * cosines - second * sines, second * cosines + first * sines]
    return torch.cat([*turned, rest] if x.shape[-1] % 2 else turned, dim=-1)


def rotate(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    """x (..., T, K) turned by its positions (..., T), which may leave leading sizes to broadcasting."""
    return apply_rotation(x, *rotation(positions, x.shape[-1], theta, x.dtype))
