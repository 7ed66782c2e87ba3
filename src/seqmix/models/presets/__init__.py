"""The presets of language models, by name."""

from __future__ import annotations

from seqmix.errors import unknown_name
from seqmix.models.presets import attention, convolution, recurrence
from seqmix.models.presets.base import POSITIONS, Preset

PRESETS = {preset.name: preset for family in (attention, convolution, recurrence) for preset in family.PRESETS}


def preset(name: str) -> Preset:
    """The preset of a name."""
    if name not in PRESETS:
        raise unknown_name("model", name, PRESETS)
    return PRESETS[name]


def list_models() -> list[str]:
    """The names of all presets."""
    return sorted(PRESETS)


__all__ = ["POSITIONS", "PRESETS", "Preset", "list_models", "preset"]
