"""The copy of a mixer that questions are put to: float64, and no parameter at a value that hides what it does."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from seqmix.mixer import Mixed, Mixer, Mixing, SharingMixer, State

SPREAD = 0.1


class Reference:
    """A float64 copy in eval mode; parameters whose values are all alike, such as gates that start at 0, are spread.

    A layer that the first one hands something on to is given a function of each position's own input in its place.
    """

    def __init__(self, mixer: Mixer) -> None:
        self._module = copy.deepcopy(mixer).double().eval()
        generator = torch.Generator().manual_seed(1)
        for parameter in self._module.parameters():
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.data.add_(SPREAD * noise)

    def forward(self, x: Tensor) -> Mixed:
        """As the mixer's, x (batch, time, dim)."""
        module = self._module
        if isinstance(module, SharingMixer) and module.needs_shared:
            return module.forward_sharing(x, None, _handed_on(x))[0]
        return module(x)

    def step(self, x: Tensor, state: State) -> Mixed:
        """As the mixer's, x (batch, dim)."""
        module = self._module
        if isinstance(module, SharingMixer) and module.needs_shared:
            return module.step_sharing(x, state, _handed_on(x))[0]
        return module.step(x, state)

    def mixing(self, x: Tensor) -> list[Mixing]:
        """As the mixer's, x (batch, time, dim)."""
        module = self._module
        if isinstance(module, SharingMixer) and module.needs_shared:
            return module.mixing(x, _handed_on(x))
        return module.mixing(x)


def _handed_on(x: Tensor) -> Tensor:
    return x.roll(1, dims=-1)
