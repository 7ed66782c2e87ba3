"""Who depends on whom, found by gradient.

Shapes: B batch, T time, S source, D model width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqmix.conformance.subject import Subject, normal, rounding


def gradient_sizes(outputs: list[Tensor], leaf: Tensor, target: int, seed: int) -> Tensor:
    """(source,): the largest gradient of a random combination of the outputs at `target`, for each source."""
    here = [part[:, target] for part in outputs]
    total = torch.stack(
        [(part * normal(*part.shape, seed=seed + index)).sum() for index, part in enumerate(here)]
    ).sum()
    if not total.requires_grad:
        return leaf.new_zeros(leaf.shape[1])
    (gradient,) = torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)
    return gradient.detach().abs().amax(dim=(0, 2))


def dependence(
    function: Callable[[Tensor], list[Tensor]], x: Tensor, subject: Subject, floor: float | None = None
) -> Tensor:
    """bool (target, source): whether outputs (batch, target, ...) depend on the inputs (batch, source, dim).

    A gradient counts above `floor` times the largest one of its target; None takes what rounding explains.
    """
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        outputs = function(leaf)
    share = rounding(x.dtype, subject.reduction(x.shape[1])) if floor is None else floor
    rows = []
    for target in range(outputs[0].shape[1]):
        sizes = gradient_sizes(outputs, leaf, target, seed=500 + target)
        rows.append(sizes > share * sizes.max())
    return torch.stack(rows)
