"""The long short-term memory: a recurrence through products and gates, not linear in any stream of values.

    i, f, g, o = W_ih x[t] + b_ih + W_hh h[t-1] + b_hh          torch.nn.LSTM's layout and order of gates
    c[t] = sigmoid(f) * c[t-1] + sigmoid(i) * tanh(g)           Hochreiter & Schmidhuber 1997, Gers et al. 2000
    h[t] = sigmoid(o) * tanh(c[t]);   y = h, or W_out h where the hidden width is another

No matrix times values gives y; the matrix that tells who listens to whom is the Jacobian: the Frobenius norm of
dy[t] / dx[s], which depends on the input.

Shapes: B batch, T time, D model width, H hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.documents import Placement
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place

SHORTEST_SPAN = 8
"""The fused form pays from about this many positions a call on; where documents are shorter, the loop is faster."""


@dataclass
class LSTMState(State):
    """hidden, cell: (batch, hidden), h and c after the last position, in float32 or wider."""

    hidden: Tensor
    cell: Tensor


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """hidden: the width of h, None for the model's width. bias: of the gates and the output projection.

    forget_bias: what the forget gate's bias starts at (1 keeps the cell longer); None draws it like all others.
    """

    hidden: int | None = None
    bias: bool = True
    forget_bias: float | None = None

    def __post_init__(self) -> None:
        if self.hidden is not None and self.hidden < 1:
            raise InputError(f"hidden is {self.hidden}: it must be at least 1, or None for the width of the model")
        if self.forget_bias is not None and not self.bias:
            raise InputError(f"forget_bias is {self.forget_bias} but bias is off: leave one of the two out")


class LSTM(Mixer):
    """y = W_out h, with h from the recurrence of gates; W_out is there only where `hidden` differs from `dim`."""

    config_class = LSTMConfig
    config: LSTMConfig

    def __init__(self, dim: int, config: LSTMConfig | None = None) -> None:
        super().__init__(dim, config)
        self.hidden = self.config.hidden or dim
        self.weight_ih = nn.Parameter(torch.empty(4 * self.hidden, dim))
        self.weight_hh = nn.Parameter(torch.empty(4 * self.hidden, self.hidden))
        bias = self.config.bias
        self.bias_ih = nn.Parameter(torch.empty(4 * self.hidden)) if bias else None
        self.bias_hh = nn.Parameter(torch.empty(4 * self.hidden)) if bias else None
        self.out_proj = nn.Linear(self.hidden, dim, bias=bias) if self.hidden != dim else nn.Identity()
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(8, {}), (5, {"hidden": 7, "forget_bias": 1.0}), (6, {"hidden": 3, "bias": False})]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        bound = 1 / math.sqrt(self.hidden)
        for parameter in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)
        if self.config.forget_bias is not None and self.bias_ih is not None and self.bias_hh is not None:
            forget = slice(self.hidden, 2 * self.hidden)
            with torch.no_grad():
                self.bias_ih[forget] = self.config.forget_bias
                self.bias_hh[forget] = 0

    @property
    def traits(self) -> Traits:
        return Traits(causal=True, content_dependent=True, state_growth="constant", matrix="jacobian")

    @property
    def receptive_field(self) -> None:
        return None

    def _weights(self, dtype: torch.dtype) -> list[Tensor]:
        """W_ih, W_hh and, where there are, b_ih, b_hh."""
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return [weight.to(dtype) for weight in weights if weight is not None]

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        before = self.init_state(len(x), device=x.device, dtype=x.dtype) if state is None else cast(LSTMState, state)
        placement = place(x, state, document_ids)
        dtype = before.cell.dtype
        with torch.autocast(x.device.type, enabled=False):
            run = _run_loop if dtype == torch.float64 or torch.compiler.is_compiling() else _run_fused
            y, hidden, cell = run(x.to(dtype), before.hidden, before.cell, self._weights(dtype), placement)
        after = LSTMState(placement.position, placement.document, hidden, cell)
        return Mixed(self.out_proj(y.to(x.dtype)), after)

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LSTMState:
        device = self.weight_ih.device if device is None else device
        wide = torch.promote_types(dtype or self.weight_ih.dtype, torch.float32)
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        hidden = torch.zeros(batch, self.hidden, dtype=wide, device=device)
        return LSTMState(count, count.clone(), hidden, hidden.clone())

    def step(self, x: Tensor, state: State) -> Mixed:
        before = cast(LSTMState, state)
        gates = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(
            before.hidden.to(x.dtype), self.weight_hh, self.bias_hh
        )
        hidden, cell = _cell(gates.to(before.cell.dtype), before.cell)
        after = LSTMState(before.position + 1, before.document, hidden, cell)
        return Mixed(self.out_proj(hidden.to(x.dtype)), after)

    def mixing(self, x: Tensor) -> list[Mixing]:
        """One head: the Frobenius norm of dy[t] / dx[s], by one batch of backward passes for each t. No values."""
        batch, time, dim = x.shape
        basis = torch.eye(dim, dtype=x.dtype, device=x.device)[:, None].expand(-1, batch, -1)
        matrix = x.new_zeros(batch, 1, time, time)
        with torch.enable_grad():
            source = x.detach().requires_grad_()
            start = self.init_state(batch, device=x.device, dtype=x.dtype)
            wide = start.cell.dtype
            hidden, _, _ = _run_loop(
                source.to(wide), start.hidden, start.cell, self._weights(wide), place(x, None, None)
            )
            y = self.out_proj(hidden.to(x.dtype))
            for t in range(time):
                (rows,) = torch.autograd.grad(y[:, t], source, basis, retain_graph=True, is_grads_batched=True)
                matrix[:, 0, t] = rows.square().sum(dim=(0, 3)).sqrt()
        return [Mixing(matrix, None)]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        raise InputError(
            "an LSTM is not linear in a stream of values, so no readout turns its matrix into y: call forward instead"
        )

    def links(self, time: int) -> Tensor:
        return causal_mask(time, device=self.weight_ih.device)

    def cost(self, batch: int, time: int) -> Cost:
        positions = batch * time
        products = linear_flops(positions, self.dim + self.hidden, 4 * self.hidden)
        if self.hidden != self.dim:
            products += linear_flops(positions, self.hidden, self.dim)
        size = self.weight_ih.element_size()
        state_bytes = batch * (2 * self.hidden * max(4, size) + BOOKKEEPING_BYTES)
        return Cost(
            product_flops=products,
            other_flops=positions * 32 * self.hidden,
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )


def _cell(gates_B4H: Tensor, cell_BH: Tensor) -> tuple[Tensor, Tensor]:
    """h and c of one position from the sum of both projections."""
    enter, forget, new, leave = gates_B4H.chunk(4, dim=-1)
    cell_BH = torch.sigmoid(forget) * cell_BH + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(leave) * torch.tanh(cell_BH), cell_BH


def _reset(placement: Placement, at: int, *tensors: Tensor) -> list[Tensor]:
    """The recurrent tensors (batch, hidden) before position `at`, zero in rows where a document begins there."""
    continues_B1 = (placement.runs[:, at] == (placement.runs[:, at - 1] if at else 0))[:, None]
    return [torch.where(continues_B1, tensor, tensor.new_zeros(())) for tensor in tensors]


def _run_loop(
    x_BTD: Tensor, hidden_BH: Tensor, cell_BH: Tensor, weights: list[Tensor], placement: Placement
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence as it is written: h at every position, and h and c after the last."""
    weight_ih, weight_hh, *biases = weights
    gates_BT4H = F.linear(x_BTD, weight_ih, biases[0] + biases[1] if biases else None)
    outputs = []
    for t, gates_B4H in enumerate(gates_BT4H.unbind(1)):
        if placement.packed:
            hidden_BH, cell_BH = _reset(placement, t, hidden_BH, cell_BH)
        hidden_BH, cell_BH = _cell(torch.addmm(gates_B4H, hidden_BH, weight_hh.t()), cell_BH)
        outputs.append(hidden_BH)
    return torch.stack(outputs, dim=1), hidden_BH, cell_BH


def _run_fused(
    x_BTD: Tensor, hidden_BH: Tensor, cell_BH: Tensor, weights: list[Tensor], placement: Placement
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_run_loop`, through torch's fused LSTM over the spans of time in which no row begins a document."""
    time, has_biases = x_BTD.shape[1], len(weights) == 4
    starts = _border_columns(placement.runs) if placement.packed else [0]
    if len(starts) > 1 and time < SHORTEST_SPAN * len(starts):
        return _run_loop(x_BTD, hidden_BH, cell_BH, weights, placement)
    outputs = []
    for start, end in zip(starts, [*starts[1:], time], strict=True):
        if placement.packed:
            hidden_BH, cell_BH = _reset(placement, start, hidden_BH, cell_BH)
        before = (hidden_BH[None], cell_BH[None])
        y, hidden, cell = torch.lstm(x_BTD[:, start:end], before, weights, has_biases, 1, 0.0, False, False, True)
        hidden_BH, cell_BH = hidden[0], cell[0]
        outputs.append(y)
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], hidden_BH, cell_BH


def _border_columns(runs: Tensor) -> list[int]:
    """0 and the positions at which any row begins a document."""
    begins = (runs[:, 1:] != runs[:, :-1]).any(dim=0)
    return [0, *(begins.nonzero()[:, 0] + 1).tolist()]
