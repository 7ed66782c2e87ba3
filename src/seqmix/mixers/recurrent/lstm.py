"""The long short-term memory: a recurrence through products and gates, not linear in any stream of values.

    i, f, g, o = W_ih x[t] + b_ih + W_hh h[t-1] + b_hh          torch.nn.LSTM's layout and order of gates
    c[t] = sigmoid(f) * c[t-1] + sigmoid(i) * tanh(g)           Hochreiter & Schmidhuber 1997, Gers et al. 2000
    h[t] = sigmoid(o) * tanh(c[t]);   y = h, or W_out h where the hidden width is another

Its matrix is the Jacobian; see `recurrent_base`.

Shapes: B batch, T time, D model width, H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.errors import InputError
from seqmix.kernels.documents import Placement, begins
from seqmix.kernels.recurrent_loops import lstm_cell, lstm_loop
from seqmix.mixers.recurrent.base import Recurrent, RecurrentConfig, RecurrentState, runs_of

SHORTEST_SPAN = 8
"""The fused form pays from about this many positions a call on; where documents are shorter, the loop is faster."""


@dataclass
class LSTMState(RecurrentState):
    """cell: (batch, hidden), c after the last position, in float32 or wider."""

    cell: Tensor

    @property
    def memories(self) -> tuple[Tensor, ...]:
        return self.hidden, self.cell


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(RecurrentConfig):
    """forget_bias: what the forget gate's bias starts at (1 keeps the cell longer); None draws it like all others."""

    forget_bias: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.forget_bias is not None and not self.bias:
            raise InputError(f"forget_bias is {self.forget_bias} but bias is off: leave one of the two out")


class LSTM(Recurrent):
    """y = W_out h, with h from the recurrence of gates; W_out is there only where `hidden` differs from `dim`."""

    config_class = LSTMConfig
    config: LSTMConfig
    state_class = LSTMState
    gates = 4
    memories = 2

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(8, {}), (5, {"hidden": 7, "forget_bias": 1.0}), (6, {"hidden": 3, "bias": False})]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.config.forget_bias is not None and self.bias_ih is not None and self.bias_hh is not None:
            forget = slice(self.hidden, 2 * self.hidden)
            with torch.no_grad():
                self.bias_ih[forget] = self.config.forget_bias
                self.bias_hh[forget] = 0

    def _loop(
        self, x: Tensor, memories: Sequence[Tensor], placement: Placement, implementation: str | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        weights = self._weights(x.dtype)
        is_fused = implementation is None and x.dtype != torch.float64 and not torch.compiler.is_compiling()
        if is_fused:
            starts = _border_columns(placement.runs) if placement.packed else [0]
            if len(starts) == 1 or x.shape[1] >= SHORTEST_SPAN * len(starts):
                return _run_fused(x, memories, weights, placement, starts)
        weight_ih, weight_hh, *biases = weights
        gates = F.linear(x, weight_ih, biases[0] + biases[1] if biases else None)
        outputs, cells = lstm_loop(gates, weight_hh, *memories, runs=runs_of(placement), implementation=implementation)
        return outputs, (outputs[:, -1].clone(), cells[:, -1].clone())

    def _cell(self, gates: Tensor, recurrent: Tensor, memories: Sequence[Tensor]) -> Sequence[Tensor]:
        return lstm_cell(gates + recurrent, memories[1])


def _run_fused(
    x_BTD: Tensor, memories: Sequence[Tensor], weights: list[Tensor], placement: Placement, starts: list[int]
) -> tuple[Tensor, Sequence[Tensor]]:
    """As the loop, through torch's fused LSTM over the spans of time in which no row begins a document."""
    begin_BT = begins(placement.runs) if placement.packed else None
    outputs = []
    for start, end in zip(starts, [*starts[1:], x_BTD.shape[1]], strict=True):
        if begin_BT is not None:
            memories = [memory.masked_fill(begin_BT[:, start, None], 0.0) for memory in memories]
        before = tuple(memory[None] for memory in memories)
        y, *after = torch.lstm(x_BTD[:, start:end], before, weights, len(weights) == 4, 1, 0.0, False, False, True)
        memories = [memory[0] for memory in after]
        outputs.append(y)
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], memories


def _border_columns(runs: Tensor) -> list[int]:
    """0 and the positions at which any row begins a document."""
    begin = (runs[:, 1:] != runs[:, :-1]).any(dim=0)
    return [0, *(begin.nonzero()[:, 0] + 1).tolist()]
