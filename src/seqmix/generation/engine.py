"""Engines: what reads tokens with a trained model and gives the logits of the next one, one sequence at a time.

All engines give the same numbers up to rounding; they differ in speed. A prompt is read by torch in pieces, whatever
the engine, and the state is then handed over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from seqmix.errors import InputError
from seqmix.generation.weights import WeightType, rounded_weights, with_packed_weights
from seqmix.models import ModelState, SeqmixForCausalLM

PIECE = 1024
"""Tokens of a prompt that are read at once, which bounds what attention needs at a time."""

Logits = NDArray[np.float32]


class CannotRunError(InputError):
    """An engine that cannot run a model, or cannot run here; another one can."""


class Engine(ABC):
    """Reads one sequence token by token.

    Args:
        model: in evaluation mode; it is not changed.
        weights: the type that matrices are rounded to, "f32", "bf16" or "int8"; see `seqmix.generation.weights`.
    """

    name: str

    def __init__(self, model: SeqmixForCausalLM, weights: WeightType = "f32") -> None:
        self.model = rounded_weights(model, weights)
        self.weights = weights
        self.vocab_size = model.config.vocab_size

    @property
    @abstractmethod
    def position(self) -> int:
        """How many tokens were read."""

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """The bytes of what is remembered of the tokens read."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets everything."""

    @abstractmethod
    def branch(self) -> Self:
        """An engine of the same weights that stands where this one does; the two go on independently."""

    @abstractmethod
    def state(self) -> ModelState:
        """A copy of what is remembered, as the model's own state of one row."""

    @abstractmethod
    def load_state(self, state: ModelState) -> None:
        """Goes on from a copy of a model's state of one row."""

    @abstractmethod
    def step(self, token: int) -> Logits:
        """Logits (vocab,) after one more token. They are valid until the next call."""

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Logits (vocab,) after more tokens, which torch reads in pieces.

        Raises:
            InputError: no tokens, or one outside of the vocabulary.
        """
        self.check_tokens(tokens)
        if len(tokens) == 1:
            return self.step(tokens[0])
        logits, state = self._read(tokens, self.state() if self.position else None)
        self.load_state(state)
        return logits

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuses an empty piece and tokens that the model does not have."""
        if not len(tokens):
            raise InputError("there are 0 tokens to read: give at least one")
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < self.vocab_size:
                raise InputError(
                    f"token {token} is not one of the {self.vocab_size} of the model: encode the text anew"
                )

    @torch.inference_mode()
    def _read(self, tokens: Sequence[int], state: ModelState | None) -> tuple[Logits, ModelState]:
        """Logits after the last token, and the state there; `state` is consumed."""
        ids = torch.as_tensor(tokens, dtype=torch.int64, device=self.model.device)[None]
        state = None if state is None else state.to(self.model.device)
        for piece in ids.split(PIECE, dim=1):
            logits, state = self.model.prefill(piece, state)
        assert state is not None
        return logits[0].float().cpu().numpy(), state


class TorchEngine(Engine):
    """The model's own `step`, on the device where the model is; int8 and bfloat16 matrices stay packed."""

    name = "torch"

    def __init__(self, model: SeqmixForCausalLM, weights: WeightType = "f32") -> None:
        super().__init__(model, weights)
        self._stepping = with_packed_weights(self.model, weights)
        self.reset()

    @property
    def position(self) -> int:
        return self._position

    @property
    def state_bytes(self) -> int:
        return self._state.nbytes

    def reset(self) -> None:
        self._state = self.model.init_state(1)
        self._position = 0

    def branch(self) -> Self:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._state = self._state.clone()
        return other

    def state(self) -> ModelState:
        return self._state.clone()

    def load_state(self, state: ModelState) -> None:
        self._state = state.to(self.model.device).clone()
        self._position = int(state.position[0])

    @torch.inference_mode()
    def step(self, token: int) -> Logits:
        if not 0 <= token < self.vocab_size:
            self.check_tokens([token])
        ids = torch.tensor([token], device=self.model.device)
        logits, self._state = self._stepping.step(ids, self._state)
        self._position += 1
        return logits[0].float().cpu().numpy()
