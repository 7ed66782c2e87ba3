"""What a mixer knows about where things stand, found by moving them.

none      the last output stays the same when the positions before it change places
relative  it does not, and the matrix of a constant input has the same rows everywhere, moved along the diagonal
absolute  it does not, and the rows differ: the mixer counts from the beginning
order     it does not, and there is no matrix to ask (a Jacobian): the recurrence itself is the order
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from seqmix.mixer import Mixer
from seqmix.properties.reference import Reference

Position = Literal["none", "relative", "absolute", "order"]
TIME = 24
ROUNDING = 1e-9


@torch.no_grad()
def knows_order(mixer: Mixer) -> bool:
    """Whether the last output changes when all positions before it change places."""
    module = Reference(mixer)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, TIME, mixer.dim, generator=generator, dtype=torch.float64)
    order = torch.cat([torch.randperm(TIME - 1, generator=generator), torch.tensor([TIME - 1])])
    y, moved = module.forward(x).y[:, -1], module.forward(x[:, order]).y[:, -1]
    return float((y - moved).abs().max()) > ROUNDING * float(y.abs().max())


@torch.no_grad()
def is_relative(mixer: Mixer) -> bool:
    """Whether on a constant input each row of the matrix is the one before it moved by one, up to the row's size.

    The first positions are left out: what a short convolution pads there is no part of the sequence.
    """
    module = Reference(mixer)
    token = torch.randn(1, 1, mixer.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    begin = mixer.traits.reach - 1
    return all(_rows_agree(part.matrix[..., begin:, begin:]) for part in module.mixing(token.expand(1, TIME, -1)))


def _rows_agree(matrix: Tensor) -> bool:
    """Whether row t + 1 without its first entry is a multiple of row t without its last."""
    here, following = matrix[..., :-1, :-1], matrix[..., 1:, 1:]
    # Where two rows are multiples of each other, the products of their sizes and of themselves agree.
    inner = (here * following).sum(-1).square()
    sizes = here.square().sum(-1) * following.square().sum(-1)
    return bool(((sizes - inner) <= ROUNDING * sizes).all())


def position(mixer: Mixer) -> Position:
    """What the mixer knows about positions; see above."""
    if not knows_order(mixer):
        return "none"
    if mixer.traits.matrix == "jacobian":
        return "order"
    return "relative" if is_relative(mixer) else "absolute"
