"""Mixers that are wrong about documents, rows, purity, numbers, costs or what is written down.

Each keeps every other promise it can.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from good_mixers import Attending, Banded, Gated
from torch import Tensor

from seqmix.cost import Cost
from seqmix.mixer import Mixed, State, Traits
from seqmix.mixers.convolution import ConvState


class CrossesBorders(Gated):
    """Reads packed documents as one sequence, and gets the bookkeeping right."""

    def forward(
        self, x: Tensor, state: State | None = None, *, document_ids: Tensor | None = None, capacity: int | None = None
    ) -> Mixed:
        if document_ids is None:
            return super().forward(x, state)
        y = super().forward(x, state).y
        return Mixed(y, super().forward(x, state, document_ids=document_ids).state)


class JoinsReturningDocuments(Gated):
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


class JoinedStatesShareAPosition(Banded):
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


class NormalizesOverTheBatch(Gated):
    """Takes the mean of the batch off, so that rows meet."""

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        y = super()._readout(convolved, gate)
        return y - y.mean(dim=0, keepdim=True) / 2


class DropsTheRemainder(Gated):
    """Works in blocks of 32 and loses what is left over of a long sequence."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        y, after = super().forward(x, state, **rest)
        if x.shape[1] > 50:
            whole = x.shape[1] // 32 * 32
            y = torch.cat([y[:, :whole], torch.zeros_like(y[:, whole:])], dim=1)
        return Mixed(y, after)


class KeepsItsLastOutput(Gated):
    """Puts its last output aside in the module."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        mixed = super().forward(x, state, **rest)
        self.last = mixed.y.detach()
        return mixed


class WritesIntoItsInput(Gated):
    """Scales the first position of its input in place, a little."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        mixed = super().forward(x, state, **rest)
        if x.dtype == torch.float32 and not x.requires_grad:
            x[:, 0] *= 1 + 1e-6
        return mixed


class WritesIntoTheGivenState(Gated):
    """Forward moves the position of the state that it was given."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        mixed = super().forward(x, state, **rest)
        if state is not None and x.shape[1] == 3 and rest.get("document_ids") is None:
            state.past.add_(1e-3)
        return mixed


class DrawsRandomNumbers(Gated):
    """Takes a random number that changes nothing."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        mixed = super().forward(x, state, **rest)
        return Mixed(mixed.y + 0 * torch.rand((), device=x.device).to(x.dtype), mixed.state)


class StateInTheModule(Banded):
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


class DetachedGate(Gated):
    """No gradient reaches the output gate's part of the projection."""

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        return super()._readout(convolved, None if gate is None else gate.detach())


class WrongFastGradient(Gated):
    """The gradient of the form that is used in float32 is off, though its values are right."""

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        if convolved.dtype == torch.float32 and convolved.dim() == 3 and convolved.shape[1] == 7:
            convolved = convolved + 0.1 * (convolved - convolved.detach())
        return super()._readout(convolved, gate)


class StateBytesOffByFour(Gated):
    """Counts numbers where bytes are asked for."""

    def cost(self, batch: int, time: int) -> Cost:
        cost = super().cost(batch, time)
        return dataclasses.replace(cost, state_bytes=cost.state_bytes // 4)


class ConstantStateThatGrows(Attending):
    """Declares the state of softmax attention as constant."""

    @property
    def traits(self) -> Traits:
        return dataclasses.replace(super().traits, state_growth="constant")


class IgnoresItsCapacity(Attending):
    """Takes a capacity and grows past it."""

    def forward(self, x: Tensor, state: State | None = None, *, capacity: int | None = None, **rest: Any) -> Mixed:
        return super().forward(x, state, **rest)


class CountsNoGroups(Gated):
    """Counts a depthwise convolution as a full one."""

    def cost(self, batch: int, time: int) -> Cost:
        cost = super().cost(batch, time)
        extra = 2 * batch * time * self.dim * (self.dim - 1) * self.config.kernel
        return dataclasses.replace(cost, product_flops=cost.product_flops + extra)


class FlopsOfOneLength(Gated):
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


class ConfigChangesInJson(Gated):
    """A tuple of the config comes back from JSON as a list."""

    config_class = _TupleConfig


@dataclass(kw_only=True)
class _LooseConfig:
    kernel: int = 4
    heads: int = 2
    dilation: int = 1
    causal: bool = True
    bias: bool = True


class ConfigCanBeChanged(Banded):
    """The config is not frozen."""

    config_class = _LooseConfig


class OptionWithoutExample(Gated):
    """Has an option that no example uses."""

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [(6, {"kernel": 4, "heads": 2, "dilation": (1, 2), "causal": True})]


class RandomScaleOutsideTheStateDict(Gated):
    """A random number drawn by the constructor matters and is not saved."""

    def __init__(self, dim: int, config: Any = None) -> None:
        super().__init__(dim, config)
        self.scale = 1 + float(torch.rand(()))

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        return self.scale * super()._readout(convolved, gate)


class ResetForgetsAParameter(Gated):
    """Drawing parameters anew leaves one as it was."""

    is_built = False

    def __init__(self, dim: int, config: Any = None) -> None:
        super().__init__(dim, config)
        self.is_built = True

    def reset_parameters(self) -> None:
        weight = self.weight.detach().clone()
        super().reset_parameters()
        if self.is_built:
            with torch.no_grad():
                self.weight.copy_(weight)


class ReadsANumberBack(Gated):
    """Decides by the value of a tensor, which no graph can hold."""

    def forward(self, x: Tensor, state: State | None = None, **rest: Any) -> Mixed:
        mixed = super().forward(x, state, **rest)
        if mixed.y.detach().abs().max().item() > 1e30:
            return Mixed(mixed.y.clamp(-1e30, 1e30), mixed.state)
        return mixed


class LosesBitsInBetween(Gated):
    """Adds a large number and takes it off again, which float32 survives and bfloat16 does not."""

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        return super()._readout(convolved + 30 - 30, gate)


class StepLosesBits(Gated):
    """The same, in the steps alone."""

    def step(self, x: Tensor, state: State) -> Mixed:
        y, after = super().step(x, state)
        return Mixed(y + 30 - 30, after)


class OverflowsOnLargeInputs(Gated):
    """Goes through an exponential that large inputs overflow."""

    def _readout(self, convolved: Tensor, gate: Tensor | None) -> Tensor:
        y = super()._readout(convolved, gate)
        return y if gate is None else y + 0 * gate.abs().amax(dim=-1, keepdim=True).exp()
