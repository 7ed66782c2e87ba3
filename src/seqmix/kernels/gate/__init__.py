"""SwiGLU's gate, silu(gate) * up.

`reference.py` is the specification, `native.py` the compiled form for the CPU, in one pass each way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.gate import native, reference
from seqmix.kernels.library import can_run, why_missing

IMPLEMENTATIONS = ("reference", "native")
SMALL = 1 << 13
"""Below so many numbers the call of an operator of our own costs more than it saves."""

__all__ = ["swiglu"]


def swiglu(gate: Tensor, up: Tensor, *, implementation: str | None = None) -> Tensor:
    """silu(gate) * up, both (..., width); halves of one wider tensor are read where they are.

    Args:
        implementation: None for the best one available, "native", or "reference".

    Raises:
        ValueError: shapes that differ, an implementation that is unknown or cannot take these tensors.
    """
    if gate.shape != up.shape:
        raise ValueError(f"gate {tuple(gate.shape)} and up {tuple(up.shape)} do not fit: their shapes must be equal")
    fits = can_run(gate, up) and gate.dtype == up.dtype
    if implementation is None:
        # What is exported must run where seqmix is not installed.
        pays = gate.numel() >= SMALL and not torch.compiler.is_exporting()
        implementation = "native" if fits and pays else "reference"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is not known: choose one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "reference":
        return reference.swiglu(gate, up)
    if not fits:
        raise ValueError(
            f"implementation 'native' cannot be used: {why_missing() or 'give tensors of one precision on the CPU'}"
        )
    return native.swiglu(gate, up)
