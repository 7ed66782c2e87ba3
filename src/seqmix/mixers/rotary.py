"""Rotary position embedding: every pair of channels turns by an angle that grows with the position.

    pair i of d channels at position m turns by m * theta^(-2i/d)                          arXiv 2104.09864

The pairing is the half-split one of Llama and Hugging Face: channel i goes with channel i + d/2 (the paper's own
pairs are neighbours; the two differ by a permutation of the channels). Of an odd d the last channel stays as it is.

Shapes: T time, K channels of a head; anything may stand before them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotation(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cosines and sines (..., width // 2) of positions (...), computed in float64 and given as `dtype`."""
    pairs = width // 2
    exponents = torch.arange(pairs, dtype=torch.float64, device=positions.device) / max(pairs, 1)
    angles = positions.to(torch.float64)[..., None] * theta**-exponents
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotation(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns the pairs of x (..., T, K) by angles (..., T, K // 2)."""
    if x.dtype != torch.float64 and not torch.compiler.is_compiling():
        return _Turn.apply(x, cosines, sines)
    pairs = x.shape[-1] // 2
    first, second, rest = x.split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    turned = [first * cosines - second * sines, second * cosines + first * sines]
    return torch.cat([*turned, rest] if x.shape[-1] % 2 else turned, dim=-1)


class _Turn(torch.autograd.Function):
    """The same with half of the passes over memory; back it goes by the opposite angles, which have no gradient.

    What comes out lies in order, as products of heads want it, and its gradient as x does, which is mostly a
    projection's output seen by heads.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        ctx.like = torch.empty_like(x, device="meta")
        return _turned(x, cosines, sines, x.new_empty(x.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _turned(grad, cosines, -sines, torch.empty_like(ctx.like, device=grad.device)), None, None


def _turned(x: Tensor, cosines: Tensor, sines: Tensor, out: Tensor) -> Tensor:
    pairs = x.shape[-1] // 2
    first, second = x[..., :pairs], x[..., pairs : 2 * pairs]
    torch.mul(first, cosines, out=out[..., :pairs]).addcmul_(second, sines, value=-1)
    torch.mul(second, cosines, out=out[..., pairs : 2 * pairs]).addcmul_(first, sines)
    if x.shape[-1] % 2:
        out[..., 2 * pairs :] = x[..., 2 * pairs :]
    return out


def rotate(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    """x (..., T, K) turned by its positions (..., T), which may leave leading sizes to broadcasting."""
    return apply_rotation(x, *rotation(positions, x.shape[-1], theta, x.dtype))
