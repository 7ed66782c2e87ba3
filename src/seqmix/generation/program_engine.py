"""What the engines that run a model's step program share: its states, in memory that the engine is told of."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Self

from seqmix.export.lowering import lower
from seqmix.generation.engine import Engine
from seqmix.generation.states import StepStates
from seqmix.generation.weights import WeightType
from seqmix.models import ModelState, SeqmixForCausalLM


class ProgramEngine(Engine):
    """An engine whose states stand in arrays of its own; `_place` is called whenever these have moved."""

    def __init__(self, model: SeqmixForCausalLM, weights: WeightType, ring_type: str) -> None:
        super().__init__(model, weights)
        self.program = lower(self.model)
        self._states = StepStates(self.program, ring_type)

    @abstractmethod
    def _place(self) -> None:
        """Tells whatever runs the program where the states are."""

    @property
    def position(self) -> int:
        return self._states.position

    @property
    def state_bytes(self) -> int:
        return self._states.nbytes

    def reset(self) -> None:
        self._states.reset()
        self._place()

    def branch(self) -> Self:
        other = copy.copy(self)
        other._states = self._states.copy()
        other._place()
        return other

    def state(self) -> ModelState:
        return self._states.to_state(self.model)

    def load_state(self, state: ModelState) -> None:
        self._states.load(state)
        self._place()
