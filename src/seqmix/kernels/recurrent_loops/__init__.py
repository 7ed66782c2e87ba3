"""The recurrences whose every step is a product of the one before: Elman's, GRU and LSTM.

`reference.py` is the specification, loops whose every operation autograd sees; `operators.py` the same loops as one
operator each, with a backward of their own, which torch.compile does not unroll.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqmix.kernels.documents import begins
from seqmix.kernels.recurrent_loops import operators, reference
from seqmix.kernels.recurrent_loops.reference import gru_cell, lstm_cell

IMPLEMENTATIONS = ("operator", "reference")


def elman_loop(
    gates: Tensor,
    weight: Tensor,
    hidden: Tensor,
    *,
    runs: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """h[t] = tanh(gates[t] + W_hh h[t-1]) at every position, (batch, time, hidden).

    Args:
        gates: (batch, time, hidden), what comes from the input; at least one position.
        weight: (hidden, hidden), W_hh. hidden: (batch, hidden), h before the first position.
        runs: (batch, time) integers that differ between documents; 0 continues the state's document.
        implementation: "operator" or "reference"; None takes the reference for float64 outside of a compiler.

    Raises:
        ValueError: an unknown implementation.
    """
    loops = operators if _is_operator(implementation, gates) else reference
    return loops.elman(gates, weight, hidden, _starts(runs))


def gru_loop(
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    hidden: Tensor,
    *,
    runs: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """h of a GRU at every position; gates (batch, time, 3 hidden) in the order reset, update, new; as `elman_loop`.

    weight: (3 hidden, hidden), W_hh. bias: (3 hidden,), b_hh, or None.
    """
    loops = operators if _is_operator(implementation, gates) else reference
    return loops.gru(gates, weight, bias, hidden, _starts(runs))


def lstm_loop(
    gates: Tensor,
    weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    *,
    runs: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """h and c of an LSTM at every position; gates (batch, time, 4 hidden) in the order i, f, g, o; as `elman_loop`."""
    loops = operators if _is_operator(implementation, gates) else reference
    return loops.lstm(gates, weight, hidden, cell, _starts(runs))


def _is_operator(implementation: str | None, gates: Tensor) -> bool:
    if implementation is None:
        return gates.dtype != torch.float64 or torch.compiler.is_compiling()
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}")
    return implementation == "operator"


def _starts(runs: Tensor | None) -> Tensor | None:
    return None if runs is None else begins(runs)


__all__ = ["elman_loop", "gru_cell", "gru_loop", "lstm_cell", "lstm_loop"]
