"""The token shift of the RWKV family: every input beside the one before it.

    shift(x)[t] = x[t - 1], zero where a document begins;      x + mu * (shift(x) - x) is what a projection reads

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqmix.kernels.documents import Placement, begins
from seqmix.mixer import State


@dataclass
class ShiftState(State):
    """last: (batch, dim), the input of the last position, in the type of x."""

    last: Tensor


def token_shift(x_BTD: Tensor, last_BD: Tensor, placement: Placement) -> Tensor:
    """The input before each position; that of the first position is `last`, or zero where it begins a document."""
    shifted = torch.cat([last_BD[:, None].to(x_BTD.dtype), x_BTD[:, :-1]], dim=1)[:, : x_BTD.shape[1]]
    return shifted.masked_fill(begins(placement.runs)[..., None], 0.0) if placement.packed else shifted


def shift_alone(x_BTD: Tensor) -> Tensor:
    """The input before each position of a sequence that nothing came before."""
    return torch.cat([torch.zeros_like(x_BTD[:, :1]), x_BTD[:, :-1]], dim=1)


def last_input(x_BTD: Tensor, last_BD: Tensor) -> Tensor:
    """What `token_shift` of the next piece starts from."""
    return x_BTD[:, -1].clone() if x_BTD.shape[1] else last_BD.clone()
