"""The cross-entropy of a language model's head, from hidden states and the head's weight.

`reference.py` is the specification and holds all logits; `chunked.py` never does: it forms them for some tokens at a
time, and takes the gradients along.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.cross_entropy import chunked, reference

IMPLEMENTATIONS = {"reference": reference, "chunked": chunked}

__all__ = ["linear_cross_entropy", "linear_token_losses"]


def _operands(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With all leading dimensions in one."""
    if weight.dim() != 2 or hidden.shape[-1] != weight.shape[1] or hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)} do not "
            "fit: they must be (..., dim), (vocabulary, dim) and (...)"
        )
    return hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1)


def _implementation(name: str | None, hidden: Tensor) -> str:
    if name is None:
        return "reference" if hidden.dtype == torch.float64 else "chunked"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {name!r} is not known: choose one of {', '.join(IMPLEMENTATIONS)}")
    return name


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    divisor: Tensor | float | None = None,
    ignore_index: int = -100,
    implementation: str | None = None,
) -> Tensor:
    """The loss of a head without bias, a scalar in float32 or wider.

    Args:
        hidden: (..., dim). weight: (vocabulary, dim). targets: (...), int64.
        divisor: what the sum of the losses is divided by; None for their number, which gives the mean.
        ignore_index: targets of this value are left out.
        implementation: None for the best one, "chunked" (no second derivative), or "reference".

    Under autocast the products are of its precision; the sums over the vocabulary are in float32.

    Raises:
        ValueError: shapes or precisions that do not fit, an unknown implementation.
    """
    hidden_ND, weight_VD, targets_N = _operands(hidden, weight, targets)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if divisor is None:
        divisor = (targets_N != ignore_index).sum()
    divisor = torch.as_tensor(divisor, device=hidden.device).to(wide)
    form = IMPLEMENTATIONS[_implementation(implementation, hidden)]
    return form.summed_loss(hidden_ND, weight_VD, targets_N, divisor, ignore_index)


def linear_token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, implementation: str | None = None
) -> Tensor:
    """The loss of each token, shaped as `targets`, in float32 or wider; 0 where a target is left out.

    Arguments as in `linear_cross_entropy`. The chunked backward pass forms the logits a second time.
    """
    hidden_ND, weight_VD, targets_N = _operands(hidden, weight, targets)
    form = IMPLEMENTATIONS[_implementation(implementation, hidden)]
    return form.token_losses(hidden_ND, weight_VD, targets_N, ignore_index).view(targets.shape)
