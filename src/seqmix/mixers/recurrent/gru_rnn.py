"""The gated recurrent unit and Elman's network: recurrences through products, not linear in any stream of values.

    GRU (arXiv 1406.1078, as torch.nn.GRU):   r, z, n = W_ih x[t] + b_ih;   R, Z, N = W_hh h[t-1] + b_hh
        h[t] = (1 - z') tanh(n + sigmoid(r + R) N) + z' h[t-1]   with z' = sigmoid(z + Z)
    Elman 1990 (as torch.nn.RNN):             h[t] = tanh(W_ih x[t] + b_ih + W_hh h[t-1] + b_hh)
    y = h, or W_out h where the hidden width is another

Their matrix is the Jacobian; see `recurrent_base`.

Shapes: B batch, T time, D model width, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.documents import Placement
from seqmix.kernels.recurrent_loops import elman_loop, gru_cell, gru_loop
from seqmix.mixers.recurrent.base import Recurrent, RecurrentConfig, runs_of


class GRU(Recurrent):
    """y = W_out h, with h from the recurrence of gates; W_out is there only where `hidden` differs from `dim`."""

    config_class = RecurrentConfig
    gates = 3

    def _loop(
        self, x: Tensor, memories: Sequence[Tensor], placement: Placement, implementation: str | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        weight_ih, weight_hh, *biases = self._weights(x.dtype)
        bias_ih, bias_hh = biases if biases else (None, None)
        gates = F.linear(x, weight_ih, bias_ih)
        outputs = gru_loop(gates, weight_hh, bias_hh, *memories, runs=runs_of(placement), implementation=implementation)
        return outputs, (outputs[:, -1].clone(),)

    def _cell(self, gates: Tensor, recurrent: Tensor, memories: Sequence[Tensor]) -> Sequence[Tensor]:
        return (gru_cell(gates, recurrent, memories[0]),)


class RNN(Recurrent):
    """y = W_out h, with h = tanh of both projections; W_out is there only where `hidden` differs from `dim`."""

    config_class = RecurrentConfig
    gates = 1

    def _loop(
        self, x: Tensor, memories: Sequence[Tensor], placement: Placement, implementation: str | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        weight_ih, weight_hh, *biases = self._weights(x.dtype)
        gates = F.linear(x, weight_ih, biases[0] + biases[1] if biases else None)
        outputs = elman_loop(gates, weight_hh, *memories, runs=runs_of(placement), implementation=implementation)
        return outputs, (outputs[:, -1].clone(),)

    def _cell(self, gates: Tensor, recurrent: Tensor, memories: Sequence[Tensor]) -> Sequence[Tensor]:
        return (torch.tanh(gates + recurrent),)
