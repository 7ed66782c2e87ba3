"""Strangers whose matrix explains nothing: the identity around a forward that is hidden in the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost
from seqmix.mixer import Mixed, Mixer, Mixing, State, Traits, causal_mask


@dataclass(frozen=True, kw_only=True)
class VacuousConfig:
    """No options."""


class Vacuous(Mixer):
    """A stranger's mixer: the values are its whole forward, the matrix is the identity, the readout returns it."""

    config_class = VacuousConfig
    reach = 1
    span: int | None = None
    is_honest_about_links = True

    def __init__(self, dim: int, config: Any = None) -> None:
        super().__init__(dim, config)
        self.mean = nn.Linear(dim, dim, bias=False)

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {})]

    @property
    def traits(self) -> Traits:
        return Traits(causal=True, content_dependent=False, state_growth="constant", reach=self.reach)

    @property
    def receptive_field(self) -> int | None:
        return self.span

    def _hidden(self, x: Tensor) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return self.mean(x).cumsum(dim=1) / counts

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        return Mixed(self._hidden(x), None)

    def mixing(self, x: Tensor) -> list[Mixing]:
        return [Mixing(torch.eye(x.shape[1], dtype=x.dtype)[None, None], self._hidden(x)[:, None])]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return mixed[0][:, 0]

    def links(self, time: int) -> Tensor:
        return torch.eye(time, dtype=torch.bool) if self.is_honest_about_links else causal_mask(time)

    def cost(self, batch: int, time: int) -> Cost:
        return Cost()


class VacuousWithReach(Vacuous):
    """The same, with a reach that no check could look past if it took the reach at its word."""

    reach = 500


class VacuousWindow(Vacuous):
    """The same for a mean over three positions, honestly declared as the reach of its values."""

    reach = 3
    span = 3

    def _hidden(self, x: Tensor) -> Tensor:
        padded = F.pad(self.mean(x), (0, 0, 2, 0))
        return padded.unfold(1, 3, 1).mean(dim=-1)


class VacuousWithLinks(Vacuous):
    """The same, with all the links that its forward has, none of which its matrix uses."""

    is_honest_about_links = False


VACUOUS = [Vacuous, VacuousWithReach, VacuousWindow, VacuousWithLinks]
