"""seqmix: convolution, attention or a recurrence, settled by measurement on your own sequences."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Cost": "seqmix.cost",
    "InputError": "seqmix.errors",
    "Mixed": "seqmix.mixer",
    "Mixer": "seqmix.mixer",
    "Mixing": "seqmix.mixer",
    "SeqmixError": "seqmix.errors",
    "State": "seqmix.mixer",
    "Traits": "seqmix.mixer",
    "create_mixer": "seqmix.mixers",
    "create_model": "seqmix.models",
    "from_huggingface": "seqmix.models",
    "list_mixers": "seqmix.mixers",
    "list_models": "seqmix.models",
    "register_mixer": "seqmix.mixers",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    try:
        return importlib.import_module(f"seqmix.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"seqmix.{name}":
            raise
        raise AttributeError(f"module 'seqmix' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return __all__
