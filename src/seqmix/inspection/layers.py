"""What each mixer of a model reads when the model reads a text.

Shapes: T time, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from seqmix.mixer import Mixer, Mixing, SharingMixer
from seqmix.models.block import Block
from seqmix.models.language_model import SeqmixForCausalLM

Slot = Literal["mixer", "feed_forward"]


@dataclass(frozen=True)
class Place:
    """A mixer in a model and its input there.

    layer: from 0. slot: where in the block it stands. name: what the registry calls it. x: (1, T, D). shared: what the
    first layer hands on to it, (1, T, D), None where nothing is.
    """

    layer: int
    slot: Slot
    name: str
    mixer: Mixer
    x: Tensor
    shared: Tensor | None

    def mixing(self) -> list[Mixing]:
        """The mixer's matrices and values on this input; see `Mixer.mixing`."""
        if isinstance(self.mixer, SharingMixer):
            return self.mixer.mixing(self.x, self.shared)
        return self.mixer.mixing(self.x)


def mixer_places(model: SeqmixForCausalLM, input_ids: Tensor) -> list[Place]:
    """Every mixer in the order that data passes them, with what it reads of one document.

    Args:
        input_ids: (1, T).
    """
    places: list[Place] = []

    def keep(layer: int, block: Block, arguments: tuple[Any, ...]) -> None:
        x, _state, _document_ids, _capacity, branch, shared = arguments
        name = model.config.mixer_of_layer(layer)["name"]
        places.append(Place(layer, "mixer", name, block.mixer, block.mixer_input(x, branch), shared))

    def keep_inner(layer: int, mixer: Mixer, arguments: tuple[Any, ...]) -> None:
        chosen = model.config.feed_forward_mixer_of_layer(layer)
        assert chosen is not None
        places.append(Place(layer, "feed_forward", chosen["name"], mixer, arguments[0], None))

    hooks = []
    for layer, block in enumerate(model.model.layers):
        hooks.append(block.register_forward_pre_hook(lambda block, given, layer=layer: keep(layer, block, given)))
        if isinstance(block.feed_forward, Mixer):
            hook = block.feed_forward.register_forward_pre_hook(
                lambda mixer, given, layer=layer: keep_inner(layer, mixer, given)
            )
            hooks.append(hook)
    try:
        with torch.no_grad():
            model.model(input_ids=input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return places
