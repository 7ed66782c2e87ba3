"""Ways to generate tokens one by one, each standing at a context again and again: engines, and generate() of others.

Every way is asked for greedy tokens with one row. What has been read before is copied back outside of the clock.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from seqmix.generation import Engine, create_engine
from seqmix.models import ModelState, SeqmixForCausalLM

GENERATE = "generate"
"""The engine that is Hugging Face's generate() of the same model."""


class Decoder(ABC):
    """Reads a prompt, then generates from its end as often as wanted. model, engine: what it is called."""

    model: str
    engine: str

    @property
    def name(self) -> str:
        """Both in one, for a table of times."""
        return f"{self.model}, {self.engine}"

    @abstractmethod
    def read(self, tokens: Sequence[int]) -> None:
        """Reads a prompt from the beginning."""

    @abstractmethod
    def stand(self) -> None:
        """Goes back to the end of the prompt read last."""

    @abstractmethod
    def generate(self, count: int) -> None:
        """Generates that many tokens from where it stands."""


class EngineDecoder(Decoder):
    """An engine of `seqmix.generation`."""

    def __init__(self, name: str, engine: str, model: SeqmixForCausalLM, threads: int) -> None:
        self.model, self.engine = name, engine
        self._engine: Engine = create_engine(engine, model, threads=threads)
        self._state: ModelState | None = None
        self._first = 0

    def read(self, tokens: Sequence[int]) -> None:
        self._engine.reset()
        self._first = int(self._engine.prefill(tokens).argmax())
        self._state = None

    def stand(self) -> None:
        if self._state is None:
            self._state = self._engine.state()
        self._engine.load_state(self._state)

    def generate(self, count: int) -> None:
        token = self._first
        for _ in range(count):
            token = int(self._engine.step(token).argmax())


class GenerateDecoder(Decoder):
    """generate() of Hugging Face, going on from the cache of the prompt; of its models and of ours."""

    engine = GENERATE

    def __init__(self, name: str, model: PreTrainedModel) -> None:
        self.model = name
        self._model: Any = model
        self._prompt = torch.empty(0)
        self._cache: dict[str, Any] = {}
        self._present: dict[str, Any] = {}

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> None:
        ids = torch.tensor([list(tokens)], device=self._model.device)
        output = self._model(input_ids=ids, use_cache=True, logits_to_keep=1)
        # Mamba's cache has a name of its own.
        key = "past_key_values" if "past_key_values" in output else "cache_params"
        self._cache = {key: output[key]}
        # generate() expects all tokens, and reads those that the cache has not: the first generated one.
        self._prompt = torch.cat([ids, output.logits[:, -1].argmax(-1, keepdim=True)], dim=1)

    def stand(self) -> None:
        self._present = copy.deepcopy(self._cache)

    @torch.inference_mode()
    def generate(self, count: int) -> None:
        self._model.generate(
            self._prompt,
            attention_mask=torch.ones_like(self._prompt),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            **self._present,
        )
