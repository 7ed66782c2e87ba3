"""One deliberately broken mixer for each check of the conformance kit; each keeps every other promise it can.

`BROKEN` names for each check its mixers and, where a fault cannot be had alone, the other checks that it fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost
from seqmix.mixer import Mixed, Mixer, Mixing, State, Traits, causal_mask
from seqmix.mixers.attention import Attention
from seqmix.mixers.convolution import ConvState, DepthwiseConv, GatedConv
from seqmix.mixers.recurrent import LSTM


class _Gated(GatedConv):
    """A good mixer with projections, a gate, a bias and a state."""

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {"kernel": 4, "heads": 2, "dilation": (1, 2), "causal": True, "bias": True})]


class _Banded(DepthwiseConv):
    """A good mixer with nothing around its matrix."""

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {"kernel": 4, "heads": 2, "dilation": 1, "causal": True, "bias": False})]


class _Attending(Attention):
    """A good mixer with a growing state."""

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {field.name: field.default for field in dataclasses.fields(cls.config_class)} | {"heads": 2})]


class FirstStepWithoutBias(_Gated):
    """A decode loop that starts from nothing takes another way for its first token."""

    def step(self, x: Tensor, state: State) -> Mixed:
        is_first = (state.position == 0)[:, None]
        y, after = super().step(x, state)
        return Mixed(torch.where(is_first, 0.9 * y, y), after)


class FinalStateOfStepsIsStale(_Gated):
    """Steps after the tenth no longer count the position."""

    def step(self, x: Tensor, state: State) -> Mixed:
        position = state.position.clone()
        y, after = super().step(x, state)
        after.position = torch.where(position == 12, position, after.position)
        return Mixed(y, after)


class PieceOfOneForgets(_Gated):
    """A piece of a single position does not see the past."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        y, after = super().forward(x, state, **rest)
        if state is not None and x.shape[1] == 1 and rest.get("document_ids") is None:
            y = super().forward(x).y
        return Mixed(y, after)


class MatrixOfAnotherScale(_Gated):
    """The matrix that is shown is twice the one that is used."""

    def mixing(self, x: Tensor) -> list[Mixing]:
        return [Mixing(2 * matrix, values) for matrix, values in super().mixing(x)]


class FixedMatrixPerRow(_Gated):
    """A matrix that is the same for every input, repeated for each row."""

    def mixing(self, x: Tensor) -> list[Mixing]:
        return [Mixing(matrix.expand(len(x), -1, -1, -1), values) for matrix, values in super().mixing(x)]


class ClaimsContentDependence(_Gated):
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


class MatrixWithoutMemory(_Attending):
    """Given a second sequence, the matrix that is shown is spread evenly over it."""

    def mixing(self, x: Tensor, **memory: Tensor) -> list[Mixing]:
        parts = super().mixing(x, **memory)
        if not memory:
            return parts
        return [Mixing(torch.softmax(0 * matrix, dim=-1), values) for matrix, values in parts]


class MixingReadout(_Banded):
    """Half of one tap is taken out of the matrix and done in the readout."""

    def mixing(self, x: Tensor) -> list[Mixing]:
        (mixing,) = super().mixing(x)
        return [Mixing(mixing.matrix - 0.5 * _shift(x.shape[1]), mixing.values)]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return super().readout(mixed, x) + 0.5 * F.pad(x, (0, 0, 1, 0))[:, :-1]


class RememberingReadout(_Banded):
    """The readout returns what mixing put aside, whatever it is given."""

    def mixing(self, x: Tensor) -> list[Mixing]:
        self.aside = self(x).y
        return super().mixing(x)

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self.aside


def _shift(time: int) -> Tensor:
    return torch.ones(time - 1, dtype=torch.float64).diag(-1) if time > 1 else torch.zeros(1, 1, dtype=torch.float64)


class ValuesAreTheOutput(_Banded):
    """The values are forward seen through the inverse of an arbitrary band, so that the matrix explains nothing."""

    def _band(self, time: int, dtype: torch.dtype) -> Tensor:
        return causal_mask(time, self.config.kernel).to(dtype)

    def mixing(self, x: Tensor) -> list[Mixing]:
        band = self._band(x.shape[1], x.dtype)
        values = torch.linalg.solve_triangular(band, self(x).y, upper=False)
        return [Mixing(band.expand(1, self.dim, -1, -1), values.transpose(1, 2)[..., None])]


class ReachTooFar(_Gated):
    """Declares values that reach three positions back; they do not."""

    @property
    def traits(self) -> Traits:
        return dataclasses.replace(super().traits, reach=3)


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


class LooksAhead(_Gated):
    """Adds a little of the next input."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        y, after = super().forward(x, state, **rest)
        return Mixed(y + 0.01 * F.pad(x, (0, 0, 0, 1))[:, 1:], after)


class LinkThatIsNotThere(_Gated):
    """Declares a link one further back than the kernel goes."""

    def links(self, time: int) -> Tensor:
        links = super().links(time)
        return links | F.pad(links, (0, 1))[:, 1:] & causal_mask(time)


class LinkNotDeclared(_Gated):
    """Leaves out the links of the farthest tap."""

    def links(self, time: int) -> Tensor:
        links = super().links(time)
        return links & causal_mask(time, self.receptive_field - 1)


class FieldTooLarge(_Gated):
    """Claims to see one position more than it does."""

    @property
    def receptive_field(self) -> int:
        return super().receptive_field + 1


class FieldTooSmall(_Gated):
    """Claims to see one position less than it does."""

    @property
    def receptive_field(self) -> int:
        return super().receptive_field - 1


class FieldWithoutLimit(_Gated):
    """Claims to see every earlier position."""

    @property
    def receptive_field(self) -> None:
        return None

    @property
    def positions_seen(self) -> None:
        return None


class CountsSkippedPositions(_Gated):
    """Forgets that a dilated kernel skips positions."""

    @property
    def positions_seen(self) -> int:
        return self.receptive_field


class CrossesBorders(_Gated):
    """Reads packed documents as one sequence, and gets the bookkeeping right."""

    def forward(
        self, x: Tensor, state: State | None = None, *, document_ids: Tensor | None = None, capacity: int | None = None
    ) -> Mixed:
        if document_ids is None:
            return super().forward(x, state)
        y = super().forward(x, state).y
        return Mixed(y, super().forward(x, state, document_ids=document_ids).state)


class JoinsReturningDocuments(_Gated):
    """Takes a document whose id comes back for the same one: it masks by the id where it should by the border."""

    def forward(
        self, x: Tensor, state: State | None = None, *, document_ids: Tensor | None = None, capacity: int | None = None
    ) -> Mixed:
        mixed = super().forward(x, state, document_ids=document_ids)
        if document_ids is None or state is not None:
            return mixed
        y = torch.zeros_like(x)
        for identity in document_ids.unique():
            mask = (document_ids == identity)[:, :, None].to(x.dtype)
            y = y + super().forward(x * mask).y * mask
        return Mixed(y, mixed.state)


@dataclass
class _FirstRowsPlaces(ConvState):
    def cat(self, *others: Any) -> Any:
        joined = super().cat(*others)
        joined.position = self.position[:1].expand_as(joined.position).clone()
        return joined


class JoinedStatesShareAPosition(_Banded):
    """States of rows at different positions are joined as if all stood where the first does."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        y, after = super().forward(x, state, **rest)
        return Mixed(y, _FirstRowsPlaces(after.position, after.document, after.past))

    def step(self, x: Tensor, state: State) -> Mixed:
        y, after = super().step(x, state)
        return Mixed(y, _FirstRowsPlaces(after.position, after.document, after.past))

    def init_state(self, *args: Any, **kwargs: Any) -> State:
        state = super().init_state(*args, **kwargs)
        return _FirstRowsPlaces(state.position, state.document, state.past)


class NormalizesOverTheBatch(_Gated):
    """Takes the mean of the batch off, so that rows meet."""

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        y = super()._readout(convolved, gate)
        return y - y.mean(dim=0, keepdim=True) / 2


class DropsTheRemainder(_Gated):
    """Works in blocks of 32 and loses what is left over of a long sequence."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        y, after = super().forward(x, state, **rest)
        if x.shape[1] > 50:
            whole = x.shape[1] // 32 * 32
            y = torch.cat([y[:, :whole], torch.zeros_like(y[:, whole:])], dim=1)
        return Mixed(y, after)


class KeepsItsLastOutput(_Gated):
    """Puts its last output aside in the module."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        mixed = super().forward(x, state, **rest)
        self.last = mixed.y.detach()
        return mixed


class WritesIntoItsInput(_Gated):
    """Scales the first position of its input in place, a little."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        mixed = super().forward(x, state, **rest)
        if x.dtype == torch.float32 and not x.requires_grad:
            x[:, 0] *= 1 + 1e-6
        return mixed


class WritesIntoTheGivenState(_Gated):
    """Forward moves the position of the state that it was given."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        mixed = super().forward(x, state, **rest)
        if state is not None and x.shape[1] == 3 and rest.get("document_ids") is None:
            state.past.add_(1e-3)
        return mixed


class DrawsRandomNumbers(_Gated):
    """Takes a random number that changes nothing."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        mixed = super().forward(x, state, **rest)
        return Mixed(mixed.y + 0 * torch.rand((), device=x.device).to(x.dtype), mixed.state)


class StateInTheModule(_Banded):
    """Keeps the past in the module; the state that it hands out holds only the bookkeeping."""

    def __init__(self, dim: int, config: Any = None) -> None:
        super().__init__(dim, config)
        self.past: Tensor | None = None

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        if state is not None and self.past is not None:
            state.past = self.past.to(x.dtype)
        mixed = super().forward(x, state, **rest)
        self.past = mixed.state.past.detach().clone()
        return mixed


class DetachedGate(_Gated):
    """No gradient reaches the output gate's part of the projection."""

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        return super()._readout(convolved, None if gate is None else gate.detach())


class WrongFastGradient(_Gated):
    """The gradient of the form that is used in float32 is off, though its values are right."""

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        if convolved.dtype == torch.float32 and convolved.dim() == 3 and convolved.shape[1] == 7:
            convolved = convolved + 0.1 * (convolved - convolved.detach())
        return super()._readout(convolved, gate)


class StateBytesOffByFour(_Gated):
    """Counts numbers where bytes are asked for."""

    def cost(self, batch: int, time: int) -> Cost:
        cost = super().cost(batch, time)
        return dataclasses.replace(cost, state_bytes=cost.state_bytes // 4)


class ConstantStateThatGrows(_Attending):
    """Declares the state of softmax attention as constant."""

    @property
    def traits(self) -> Traits:
        return dataclasses.replace(super().traits, state_growth="constant")


class IgnoresItsCapacity(_Attending):
    """Takes a capacity and grows past it."""

    def forward(self, x: Tensor, state: State | None = None, *, capacity: int | None = None, **rest: Any) -> Mixed:
        return super().forward(x, state, **rest)


class CountsNoGroups(_Gated):
    """Counts a depthwise convolution as a full one."""

    def cost(self, batch: int, time: int) -> Cost:
        cost = super().cost(batch, time)
        extra = 2 * batch * time * self.dim * (self.dim - 1) * self.config.kernel
        return dataclasses.replace(cost, product_flops=cost.product_flops + extra)


class FlopsOfOneLength(_Gated):
    """Forgets that the work grows with the batch."""

    def cost(self, batch: int, time: int) -> Cost:
        return dataclasses.replace(super().cost(batch, time), product_flops=super().cost(1, time).product_flops)


@dataclass(frozen=True, kw_only=True)
class _TupleConfig:
    kernel: int = 4
    heads: int = 2
    dilation: tuple[int, ...] = (1, 2)
    causal: bool = True
    bias: bool = True


class ConfigChangesInJson(_Gated):
    """A tuple of the config comes back from JSON as a list."""

    config_class = _TupleConfig


@dataclass(kw_only=True)
class _LooseConfig:
    kernel: int = 4
    heads: int = 2
    dilation: int = 1
    causal: bool = True
    bias: bool = True


class ConfigCanBeChanged(_Banded):
    """The config is not frozen."""

    config_class = _LooseConfig


class OptionWithoutExample(_Gated):
    """Has an option that no example uses."""

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {"kernel": 4, "heads": 2, "dilation": (1, 2), "causal": True})]


class RandomScaleOutsideTheStateDict(_Gated):
    """A random number drawn by the constructor matters and is not saved."""

    def __init__(self, dim: int, config: Any = None) -> None:
        super().__init__(dim, config)
        self.scale = 1 + float(torch.rand(()))

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        return self.scale * super()._readout(convolved, gate)


class ResetForgetsAParameter(_Gated):
    """Drawing parameters anew leaves one as it was."""

    def reset_parameters(self) -> None:
        weight = self.weight.detach().clone()
        super().reset_parameters()
        if torch.isnan(weight).any():
            with torch.no_grad():
                self.weight.copy_(weight)


class ReadsANumberBack(_Gated):
    """Decides by the value of a tensor, which no graph can hold."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        mixed = super().forward(x, state, **rest)
        if mixed.y.detach().abs().max().item() > 1e30:
            return Mixed(mixed.y.clamp(-1e30, 1e30), mixed.state)
        return mixed


class LosesBitsInBetween(_Gated):
    """Adds a large number and takes it off again, which float32 survives and bfloat16 does not."""

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        return super()._readout(convolved + 30 - 30, gate)


class StepLosesBits(_Gated):
    """The same, in the steps alone."""

    def step(self, x: Tensor, state: State) -> Mixed:
        y, after = super().step(x, state)
        return Mixed(y + 30 - 30, after)


class OverflowsOnLargeInputs(_Gated):
    """Goes through an exponential that large inputs overflow."""

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        y = super()._readout(convolved, gate)
        return y if gate is None else y + 0 * gate.abs().amax(dim=-1, keepdim=True).exp()


BROKEN: dict[str, dict[type[Mixer], set[str]]] = {
    "forward_equals_steps": {FirstStepWithoutBias: set(), FinalStateOfStepsIsStale: {"pieces_equal_whole"}},
    "pieces_equal_whole": {PieceOfOneForgets: set()},
    "matrix_reproduces_forward": {
        MatrixOfAnotherScale: set(),
        FixedMatrixPerRow: set(),
        ClaimsContentDependence: set(),
        JacobianOfAnotherNorm: set(),
        MatrixWithoutMemory: {"odd_sizes"},
    },
    "readout_is_positionwise": {MixingReadout: set(), RememberingReadout: {"repeatable_and_pure"}},
    "values_are_local": {ValuesAreTheOutput: set(), ReachTooFar: set()},
    "causality": {
        LooksAhead: {
            "forward_equals_steps",
            "pieces_equal_whole",
            "matrix_reproduces_forward",
            "links_by_gradient",
            "packed_equals_separate",
            "batch_invariance",
            "odd_sizes",
            "repeatable_and_pure",
        }
    },
    "links_by_gradient": {LinkThatIsNotThere: set(), LinkNotDeclared: set()},
    "receptive_field_by_gradient": {
        FieldTooLarge: set(),
        FieldTooSmall: set(),
        FieldWithoutLimit: set(),
        CountsSkippedPositions: set(),
    },
    "packed_equals_separate": {CrossesBorders: set(), JoinsReturningDocuments: set()},
    "batch_invariance": {JoinedStatesShareAPosition: set(), NormalizesOverTheBatch: {"packed_equals_separate"}},
    "odd_sizes": {DropsTheRemainder: set()},
    "repeatable_and_pure": {
        KeepsItsLastOutput: set(),
        WritesIntoItsInput: {"state_dict_round_trip"},
        WritesIntoTheGivenState: set(),
        DrawsRandomNumbers: set(),
        StateInTheModule: {
            "forward_equals_steps",
            "pieces_equal_whole",
            "packed_equals_separate",
            "batch_invariance",
        },
    },
    "gradcheck": {DetachedGate: set(), WrongFastGradient: set()},
    "state_bytes": {
        StateBytesOffByFour: set(),
        ConstantStateThatGrows: {
            "forward_equals_steps",
            "pieces_equal_whole",
            "packed_equals_separate",
        },
        IgnoresItsCapacity: set(),
    },
    "flops": {CountsNoGroups: set(), FlopsOfOneLength: set()},
    "config_round_trip": {ConfigChangesInJson: set(), ConfigCanBeChanged: set(), OptionWithoutExample: set()},
    "state_dict_round_trip": {RandomScaleOutsideTheStateDict: set(), ResetForgetsAParameter: set()},
    "compiles": {ReadsANumberBack: set()},
    "low_precision": {LosesBitsInBetween: set(), StepLosesBits: set(), OverflowsOnLargeInputs: set()},
}

VACUOUS = [Vacuous, VacuousWithReach, VacuousWindow, VacuousWithLinks]
