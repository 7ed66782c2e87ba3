"""RMSNorm and LayerNorm with what comes before them: the sum with a residual, or Mamba-2's gate.

`reference.py` is the specification, `native.py` the compiled form for the CPU, which reads and writes every row once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.library import can_run, why_missing
from seqmix.kernels.norm import native, reference

IMPLEMENTATIONS = ("reference", "torch", "native")
SMALL = 1 << 13
"""Below so many numbers the call of an operator of our own costs more than it saves."""

__all__ = ["add_norm", "gated_rms_norm"]


def _choose(implementation: str | None, *tensors: Tensor | None) -> str:
    given = [tensor for tensor in tensors if tensor is not None]
    fits = can_run(*given) and len({tensor.dtype for tensor in given}) == 1
    if implementation is None:
        if given[0].dtype == torch.float64:
            return "reference"
        # What is exported must run where seqmix is not installed.
        pays = given[0].numel() >= SMALL and not torch.compiler.is_exporting()
        return "native" if fits and pays else "torch"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is not known: choose one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "native" and not fits:
        raise ValueError(
            f"implementation 'native' cannot be used: {why_missing() or 'give tensors of one precision on the CPU'}"
        )
    return implementation


def add_norm(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float,
    centred: bool = False,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """A residual and its norm over the last dimension: (x + y, norm(x + y)), or (x, norm(x)) where y is None.

    Args:
        x, y: (..., dim). weight: (dim,). bias: (dim,), of a LayerNorm.
        centred: False for RMSNorm, True for LayerNorm.
        implementation: None for the best one available, "native", "torch", or "reference".

    Raises:
        ValueError: an RMSNorm with a bias, an implementation that is unknown or cannot take these tensors.
    """
    if bias is not None and not centred:
        raise ValueError("an RMSNorm has no bias: give centred=True for a LayerNorm, or leave the bias out")
    chosen = _choose(implementation, x, y, weight, bias)
    if chosen == "native":
        return native.add_norm(x, y, weight, bias, eps, centred)
    value = x if y is None else x + y
    # torch's fused norms want one precision; a norm of halves with weights in float32 comes up under autocast.
    if chosen == "reference" or value.dtype != weight.dtype:
        return value, reference.normed(value, weight, bias, eps, centred)
    if centred:
        return value, F.layer_norm(value, weight.shape, weight, bias, eps)
    return value, F.rms_norm(value, weight.shape, weight, eps)


def gated_rms_norm(
    x: Tensor, gate: Tensor, weight: Tensor, *, eps: float, groups: int = 1, implementation: str | None = None
) -> Tensor:
    """Mamba-2's norm: weight * rms norm of x * silu(gate), each group of channels normed on its own.

    Args:
        x, gate: (..., dim). weight: (dim,).
        groups: neighbouring channels in as many equal parts.
        implementation: as in `add_norm`; "torch" is the reference.
    """
    if x.shape[-1] % groups:
        raise ValueError(f"groups is {groups}: it must divide the width, {x.shape[-1]}")
    if _choose(implementation, x, gate, weight) == "native":
        return native.gated(x, gate, weight, eps, groups)
    return reference.gated(x, gate, weight, eps, groups)
