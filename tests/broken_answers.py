"""Mixers that answer wrongly: steps, pieces, the matrix, its links, how far they see.

Each keeps every other promise it can.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from good_mixers import Attending, Banded, Gated
from torch import Tensor
from torch.nn import functional as F

from seqmix.mixer import Mixed, Mixing, State, Traits, causal_mask
from seqmix.mixers.recurrent.lstm import LSTM


class FirstStepWithoutBias(Gated):
    """A decode loop that starts from nothing takes another way for its first token."""

    def step(self, x: Tensor, state: State) -> Mixed:
        is_first = (state.position == 0)[:, None]
        y, after = super().step(x, state)
        return Mixed(torch.where(is_first, 0.9999 * y, y), after)


class FinalStateOfStepsIsStale(Gated):
    """Steps after the tenth no longer count the position."""

    def step(self, x: Tensor, state: State) -> Mixed:
        position = state.position.clone()
        y, after = super().step(x, state)
        after.position = torch.where(position == 12, position, after.position)
        return Mixed(y, after)


class PieceOfOneForgets(Gated):
    """A piece of a single position does not see the past."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        y, after = super().forward(x, state, **rest)
        if state is not None and x.shape[1] == 1 and rest.get("document_ids") is None:
            y = super().forward(x).y
        return Mixed(y, after)


class MatrixOfAnotherScale(Gated):
    """The matrix that is shown is twice the one that is used."""

    def mixing(self, x: Tensor) -> list[Mixing]:
        return [Mixing(2 * matrix, values) for matrix, values in super().mixing(x)]


class FixedMatrixPerRow(Gated):
    """A matrix that is the same for every input, repeated for each row."""

    def mixing(self, x: Tensor) -> list[Mixing]:
        return [Mixing(matrix.expand(len(x), -1, -1, -1), values) for matrix, values in super().mixing(x)]


class ClaimsContentDependence(Gated):
    """A fixed kernel that says its weights follow from the input."""

    @property
    def traits(self) -> Traits:
        return dataclasses.replace(super().traits, content_dependent=True)


class JacobianOfAnotherNorm(LSTM):
    """A Jacobian mixer that shows the squared norm."""

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(4, {field.name: field.default for field in dataclasses.fields(cls.config_class)})]

    def mixing(self, x: Tensor) -> list[Mixing]:
        return [Mixing(matrix.square(), values) for matrix, values in super().mixing(x)]


class MatrixWithoutMemory(Attending):
    """Given a second sequence, the matrix that is shown is spread evenly over it."""

    def mixing(self, x: Tensor, **memory: Tensor) -> list[Mixing]:
        parts = super().mixing(x, **memory)
        if not memory:
            return parts
        return [Mixing(torch.softmax(0 * matrix, dim=-1), values) for matrix, values in parts]


class MixingReadout(Banded):
    """Half of one tap is taken out of the matrix and done in the readout."""

    def mixing(self, x: Tensor) -> list[Mixing]:
        (mixing,) = super().mixing(x)
        return [Mixing(mixing.matrix - 0.5 * _shift(x.shape[1]), mixing.values)]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return super().readout(mixed, x) + 0.5 * F.pad(x, (0, 0, 1, 0))[:, :-1]


class RememberingReadout(Banded):
    """The readout returns what mixing put aside, whatever it is given."""

    def mixing(self, x: Tensor) -> list[Mixing]:
        self.aside = self(x).y
        return super().mixing(x)

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self.aside


def _shift(time: int) -> Tensor:
    return torch.ones(time - 1, dtype=torch.float64).diag(-1) if time > 1 else torch.zeros(1, 1, dtype=torch.float64)


class ValuesAreTheOutput(Banded):
    """The values are forward seen through the inverse of an arbitrary band, so that the matrix explains nothing."""

    def _band(self, time: int, dtype: torch.dtype) -> Tensor:
        return causal_mask(time, self.config.kernel).to(dtype)

    def mixing(self, x: Tensor) -> list[Mixing]:
        band = self._band(x.shape[1], x.dtype)
        values = torch.linalg.solve_triangular(band, self(x).y, upper=False)
        return [Mixing(band.expand(1, self.dim, -1, -1), values.transpose(1, 2)[..., None])]


class ReachTooFar(Gated):
    """Declares values that reach three positions back; they do not."""

    @property
    def traits(self) -> Traits:
        return dataclasses.replace(super().traits, reach=3)


class LooksAhead(Gated):
    """Adds a little of the next input."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        y, after = super().forward(x, state, **rest)
        return Mixed(y + 0.01 * F.pad(x, (0, 0, 0, 1))[:, 1:], after)


class LinkThatIsNotThere(Gated):
    """Declares a link one further back than the kernel goes."""

    def links(self, time: int) -> Tensor:
        links = super().links(time)
        return links | F.pad(links, (0, 1))[:, 1:] & causal_mask(time)


class LinkNotDeclared(Gated):
    """Leaves out the links of the farthest tap."""

    def links(self, time: int) -> Tensor:
        links = super().links(time)
        return links & causal_mask(time, self.receptive_field - 1)


class FieldTooLarge(Gated):
    """Claims to see one position more than it does."""

    @property
    def receptive_field(self) -> int:
        return super().receptive_field + 1


class FieldTooSmall(Gated):
    """Claims to see one position less than it does."""

    @property
    def receptive_field(self) -> int:
        return super().receptive_field - 1


class FieldWithoutLimit(Gated):
    """Claims to see every earlier position."""

    @property
    def receptive_field(self) -> None:
        return None

    @property
    def positions_seen(self) -> None:
        return None


class CountsSkippedPositions(Gated):
    """Forgets that a dilated kernel skips positions."""

    @property
    def positions_seen(self) -> int:
        return self.receptive_field


class HeadsAllAsWide(Gated):
    """Says that every head sees what the one with the widest dilation sees."""

    @property
    def head_spans(self) -> None:
        return None


class HeadsInAnotherOrder(Gated):
    """Names the spans of its heads from the last to the first."""

    @property
    def head_spans(self) -> list[int | None]:
        return super().head_spans[::-1]


class HeadWithoutLimit(Gated):
    """Claims that one of its heads has no bound."""

    @property
    def head_spans(self) -> list[int | None]:
        return [None, *super().head_spans[1:]]


class OneHeadTooFew(Gated):
    """Leaves out a head."""

    @property
    def head_spans(self) -> list[int | None]:
        return super().head_spans[1:]


class BlocksNotSaid(Attending):
    """Positions of a block see different spans, which it does not say."""

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(dim, {**options, "pattern": "window(2, block=3)"}) for dim, options in super().examples()]

    @property
    def period(self) -> int:
        return 1
