"""Causal language models of Hugging Face beside seqmix's own: trained from a config, measured by their own cache."""

from __future__ import annotations

from seqmix.models.huggingface.behaviour import Behaviour, behaviour_of
from seqmix.models.huggingface.configs import (
    PREFIX,
    HuggingFaceFamily,
    config_document,
    config_from_document,
    context_of,
    fitted_field,
    open_inner,
)
from seqmix.models.huggingface.model import HuggingFaceModel, HuggingFaceState

__all__ = [
    "PREFIX",
    "Behaviour",
    "HuggingFaceFamily",
    "HuggingFaceModel",
    "HuggingFaceState",
    "behaviour_of",
    "config_document",
    "config_from_document",
    "context_of",
    "fitted_field",
    "open_inner",
]
