"""What a whole model remembers, and the wrapper that `generate()` of Hugging Face carries it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from seqmix.errors import InputError
from seqmix.mixer import State

PAD_DOCUMENT = -1
"""The document that padding belongs to; tokens without a given document belong to document 0."""


@dataclass
class ModelState(State):
    """layers: the state of each layer's mixer, first layer first."""

    layers: tuple[State, ...]


class SeqmixCache(DynamicCache):
    """A ModelState in the shape that `generate()` expects of `past_key_values`.

    state: the ModelState, None before the first token. seen: tokens read, padding included.
    """

    def __init__(self, state: ModelState | None = None, seen: int = 0) -> None:
        super().__init__()
        self.state = state
        self.seen = seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    @property
    def is_croppable(self) -> bool:
        return False

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return self.seen > 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the given rows, as beam search does after each token."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the given rows."""
        if self.state is not None:
            self.state = self.state.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times, the copies next to each other."""
        if self.state is not None:
            rows = torch.arange(len(self.state.position), device=self.state.position.device)
            self.state = self.state.select(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """Forgets everything."""
        self.state, self.seen = None, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: a state of constant size cannot unread a token."""
        raise InputError(
            f"cannot remove {abs(tokens_to_remove)} tokens from a state of constant size: "
            "clone the state before reading them"
        )

    def __repr__(self) -> str:
        size: Any = None if self.state is None else f"{self.state.nbytes} bytes"
        return f"SeqmixCache(seen={self.seen}, state={size})"
