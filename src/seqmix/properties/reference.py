"""The copy of a mixer that questions are put to: float64, and no parameter at a value that hides what it does."""

from __future__ import annotations

import copy

import torch

from seqmix.mixer import Mixer

SPREAD = 0.1


@torch.no_grad()
def reference(mixer: Mixer) -> Mixer:
    """A float64 copy in eval mode; parameters whose values are all alike, such as gates that start at 0, are spread."""
    module = copy.deepcopy(mixer).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(SPREAD * noise)
    return module
