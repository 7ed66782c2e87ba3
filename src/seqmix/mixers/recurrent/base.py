"""What the recurrences through products share: their state, the projections around the loop, the Jacobian, the cost.

No matrix times values gives their y; the matrix that tells who listens to whom is the Jacobian: the Frobenius norm of
dy[t] / dx[s], which depends on the input.

Shapes: B batch, T time, D model width, H hidden width, G H gates.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.documents import Placement
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place


@dataclass
class RecurrentState(State):
    """hidden: (batch, hidden), h after the last position, in float32 or wider."""

    hidden: Tensor

    @property
    def memories(self) -> tuple[Tensor, ...]:
        """All that a cell reads of the past."""
        return (self.hidden,)

    @classmethod
    def make(cls, position: Tensor, document: Tensor, memories: Sequence[Tensor]) -> Self:
        """The state of these memories."""
        return cls(position, document, *memories)


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """hidden: the width of h, None for the model's width. bias: of the gates and the output projection."""

    hidden: int | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        if self.hidden is not None and self.hidden < 1:
            raise InputError(f"hidden is {self.hidden}: it must be at least 1, or None for the width of the model")


class Recurrent(Mixer):
    """y = W_out h, with h from a loop of cells; W_out is there only where `hidden` differs from `dim`.

    Parameters are laid out as torch's, gates one after another in the rows of W_ih and W_hh.
    """

    config: RecurrentConfig
    state_class: ClassVar[type[RecurrentState]] = RecurrentState
    gates: ClassVar[int]
    memories: ClassVar[int] = 1
    """How many vectors of the hidden width a cell reads of the input, and how many of the past."""

    def __init__(self, dim: int, config: RecurrentConfig | None = None) -> None:
        super().__init__(dim, config)
        self.hidden = self.config.hidden or dim
        rows, bias = self.gates * self.hidden, self.config.bias
        self.weight_ih = nn.Parameter(torch.empty(rows, dim))
        self.weight_hh = nn.Parameter(torch.empty(rows, self.hidden))
        self.bias_ih = nn.Parameter(torch.empty(rows)) if bias else None
        self.bias_hh = nn.Parameter(torch.empty(rows)) if bias else None
        self.out_proj = nn.Linear(self.hidden, dim, bias=bias) if self.hidden != dim else nn.Identity()
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {}), (5, {"hidden": 7}), (6, {"hidden": 3, "bias": False})]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        bound = 1 / math.sqrt(self.hidden)
        for parameter in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

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

    @abstractmethod
    def _loop(
        self, x: Tensor, memories: Sequence[Tensor], placement: Placement, implementation: str | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """h at every position of x (batch, time, dim), and the memories after the last; x is float32 or wider."""

    @abstractmethod
    def _cell(self, gates: Tensor, recurrent: Tensor, memories: Sequence[Tensor]) -> Sequence[Tensor]:
        """The memories after one more position, h first, from both projections with their biases, (batch, rows)."""

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        if state is None:
            before = self.init_state(len(x), device=x.device, dtype=x.dtype)
        else:
            before = cast(RecurrentState, state)
        placement = place(x, state, document_ids)
        if x.shape[1] == 0:
            return Mixed(x.clone(), before.clone())
        with torch.autocast(x.device.type, enabled=False):
            hidden, memories = self._loop(x.to(before.hidden.dtype), before.memories, placement)
        after = self.state_class.make(placement.position, placement.document, memories)
        return Mixed(self.out_proj(hidden.to(x.dtype)), after)

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> RecurrentState:
        device = self.weight_ih.device if device is None else device
        wide = torch.promote_types(dtype or self.weight_ih.dtype, torch.float32)
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        hidden = torch.zeros(batch, self.hidden, dtype=wide, device=device)
        return self.state_class.make(count, count.clone(), [hidden.clone() for _ in range(self.memories)])

    def step(self, x: Tensor, state: State) -> Mixed:
        before = cast(RecurrentState, state)
        wide = before.hidden.dtype
        gates = F.linear(x, self.weight_ih, self.bias_ih).to(wide)
        recurrent = F.linear(before.hidden.to(x.dtype), self.weight_hh, self.bias_hh).to(wide)
        memories = self._cell(gates, recurrent, before.memories)
        after = self.state_class.make(before.position + 1, before.document, memories)
        return Mixed(self.out_proj(memories[0].to(x.dtype)), after)

    def mixing(self, x: Tensor) -> list[Mixing]:
        """One head: the Frobenius norm of dy[t] / dx[s], by one batch of backward passes for each t. No values."""
        batch, time, dim = x.shape
        basis = torch.eye(dim, dtype=x.dtype, device=x.device)[:, None].expand(-1, batch, -1)
        matrix = x.new_zeros(batch, 1, time, time)
        with torch.enable_grad():
            source = x.detach().requires_grad_()
            start = self.init_state(batch, device=x.device, dtype=x.dtype)
            wide = source.to(start.hidden.dtype)
            # The operators' backward takes no batch of gradients.
            hidden, _ = self._loop(wide, start.memories, place(x, None, None), implementation="reference")
            y = self.out_proj(hidden.to(x.dtype))
            for t in range(time):
                (rows,) = torch.autograd.grad(y[:, t], source, basis, retain_graph=True, is_grads_batched=True)
                matrix[:, 0, t] = rows.square().sum(dim=(0, 3)).sqrt()
        return [Mixing(matrix, None)]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        raise InputError(
            f"{type(self).__name__} is not linear in a stream of values, so no readout turns its matrix into y: call "
            "forward instead"
        )

    def links(self, time: int) -> Tensor:
        return causal_mask(time, device=self.weight_ih.device)

    def cost(self, batch: int, time: int) -> Cost:
        positions = batch * time
        products = linear_flops(positions, self.dim + self.hidden, self.gates * self.hidden)
        if self.hidden != self.dim:
            products += linear_flops(positions, self.hidden, self.dim)
        size = self.weight_ih.element_size()
        state_bytes = batch * (self.memories * self.hidden * max(4, size) + BOOKKEEPING_BYTES)
        return Cost(
            product_flops=products,
            other_flops=positions * 8 * self.gates * self.hidden,
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )


def runs_of(placement: Placement) -> Tensor | None:
    """The runs of documents, None where no border is possible."""
    return placement.runs if placement.packed else None
