"""The specification of the loss of a language model's head: the logits in full, then torch's own cross-entropy.

    logits = hidden weight^T;   loss[n] = ln sum_v exp(logits[n, v]) - logits[n, target[n]]

0 where the target is left out.

Shapes: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def token_losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore_index: int) -> Tensor:
    """The loss of each token (N,), in float32 or wider."""
    logits_NV = F.linear(hidden_ND, weight_VD)
    wide = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return F.cross_entropy(wide, targets_N, ignore_index=ignore_index, reduction="none")


def summed_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, divisor: Tensor, ignore_index: int) -> Tensor:
    """The sum of the tokens' losses over a divisor, a scalar."""
    return token_losses(hidden_ND, weight_VD, targets_N, ignore_index).sum() / divisor
