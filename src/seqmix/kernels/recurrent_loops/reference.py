"""The specification of the gated recurrences, loops over time; torch's layouts and order of gates.

`gates` is what comes from the input, W_ih x[t] and its biases; W_hh is (gates * hidden, hidden).

    Elman:  h[t] = tanh(gates[t] + W_hh h[t-1])
    GRU:    r, z, n = gates[t];  R, Z, N = W_hh h[t-1] + b_hh                         arXiv 1406.1078, reset after W_hh
            h[t] = (1 - z') tanh(n + sigmoid(r + R) N) + z' h[t-1] with z' = sigmoid(z + Z)
    LSTM:   i, f, g, o = gates[t] + W_hh h[t-1]
            c[t] = sigmoid(f) c[t-1] + sigmoid(i) tanh(g);  h[t] = sigmoid(o) tanh(c[t])

Where a document begins, h[t-1] and c[t-1] are zero.

Shapes: B batch, T time, H hidden, G H gates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gru_cell(gates_B3H: Tensor, recurrent_B3H: Tensor, hidden_BH: Tensor) -> Tensor:
    """h[t] from both projections and h[t-1]."""
    reset, update, new = gates_B3H.chunk(3, dim=-1)
    more_reset, more_update, more_new = recurrent_B3H.chunk(3, dim=-1)
    new = torch.tanh(new + torch.sigmoid(reset + more_reset) * more_new)
    return new + torch.sigmoid(update + more_update) * (hidden_BH - new)


def lstm_cell(gates_B4H: Tensor, cell_BH: Tensor) -> tuple[Tensor, Tensor]:
    """h[t] and c[t] from the sum of both projections and c[t-1]."""
    enter, forget, new, leave = gates_B4H.chunk(4, dim=-1)
    cell_BH = torch.sigmoid(forget) * cell_BH + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(leave) * torch.tanh(cell_BH), cell_BH


def elman(gates_BTH: Tensor, weight: Tensor, hidden_BH: Tensor, starts_BT: Tensor | None) -> Tensor:
    """h at every position."""
    outputs = []
    for t, gates_BH in enumerate(gates_BTH.unbind(1)):
        hidden_BH = torch.tanh(torch.addmm(gates_BH, _restart(hidden_BH, starts_BT, t), weight.t()))
        outputs.append(hidden_BH)
    return torch.stack(outputs, dim=1)


def gru(gates_BT3H: Tensor, weight: Tensor, bias: Tensor | None, hidden_BH: Tensor, starts_BT: Tensor | None) -> Tensor:
    """h at every position."""
    outputs = []
    for t, gates_B3H in enumerate(gates_BT3H.unbind(1)):
        hidden_BH = _restart(hidden_BH, starts_BT, t)
        hidden_BH = gru_cell(gates_B3H, F.linear(hidden_BH, weight, bias), hidden_BH)
        outputs.append(hidden_BH)
    return torch.stack(outputs, dim=1)


def lstm(
    gates_BT4H: Tensor, weight: Tensor, hidden_BH: Tensor, cell_BH: Tensor, starts_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h and c at every position."""
    outputs, cells = [], []
    for t, gates_B4H in enumerate(gates_BT4H.unbind(1)):
        hidden_BH, cell_BH = _restart(hidden_BH, starts_BT, t), _restart(cell_BH, starts_BT, t)
        hidden_BH, cell_BH = lstm_cell(torch.addmm(gates_B4H, hidden_BH, weight.t()), cell_BH)
        outputs.append(hidden_BH)
        cells.append(cell_BH)
    return torch.stack(outputs, dim=1), torch.stack(cells, dim=1)


def _restart(memory_BH: Tensor, starts_BT: Tensor | None, t: int) -> Tensor:
    return memory_BH if starts_BT is None else memory_BH.masked_fill(starts_BT[:, t, None], 0.0)
