"""Models of Hugging Face as seqmix models and back, with the same weights: Llama, Mamba-2 and LFM2.

Each architecture has a file in `architectures`: a table of names, and its config in both directions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Lfm2ForCausalLM, LlamaForCausalLM, Mamba2ForCausalLM, PreTrainedModel

from seqmix.errors import InputError
from seqmix.models.architectures import lfm2, llama, mamba2
from seqmix.models.architectures.names import copy_weights, renamer, require
from seqmix.models.language_model import SeqmixForCausalLM

_ARCHITECTURES: tuple[tuple[type[PreTrainedModel], Any], ...] = (
    (LlamaForCausalLM, llama),
    (Mamba2ForCausalLM, mamba2),
    (Lfm2ForCausalLM, lfm2),
)


def from_huggingface(model: PreTrainedModel) -> SeqmixForCausalLM:
    """A seqmix model with the weights (copied), the precision and the device of a Hugging Face one.

    Args:
        model: a LlamaForCausalLM, a Mamba2ForCausalLM or an Lfm2ForCausalLM.

    Raises:
        InputError: another architecture, or an option that seqmix cannot express.
    """
    found = [architecture for kind, architecture in _ARCHITECTURES if isinstance(model, kind)]
    if not found:
        known = ", ".join(kind.__name__ for kind, _ in _ARCHITECTURES)
        raise InputError(f"a {type(model).__name__} cannot be converted: give one of {known}")
    config = found[0].to_ours(model)
    with torch.device(model.device):
        ours = SeqmixForCausalLM(config).to(model.dtype)  # type: ignore[arg-type]  # a decorator hides its signature
    copy_weights(model, ours, renamer(found[0].NAMES, forward=True))
    return ours.train(model.training)


def to_huggingface(model: SeqmixForCausalLM) -> PreTrainedModel:
    """The Hugging Face model (Llama, Mamba-2 or LFM2) with the weights of a seqmix one that has its layers.

    Raises:
        InputError: layers of another kind, or an option that the architecture cannot express.
    """
    config = model.config
    architecture = _architecture(config)
    require(config, norm="rms", norm_position="pre", embedding_position="none", feed_forward_mixers=None)
    with torch.device(model.device):
        theirs = architecture.to_theirs(model).to(model.dtype)
    copy_weights(model, theirs, renamer(architecture.NAMES, forward=False))
    return theirs.train(model.training)


def _architecture(config: Any) -> Any:
    """The file of the architecture that has such layers."""
    mixers = [config.mixer_of_layer(layer) for layer in range(config.num_hidden_layers)]
    if lfm2.has_its_layers(config):
        return lfm2
    for name, architecture in (("attention", llama), ("mamba2", mamba2)):
        if mixers[0]["name"] == name and all(mixer == mixers[0] for mixer in mixers):
            return architecture
    kinds = ", ".join(sorted({mixer["name"] for mixer in mixers}))
    raise InputError(
        f"layers of {kinds} have no counterpart: only equal layers of attention or of mamba2 have one, "
        "and layers of gated_conv and of attention with qk_norm as LFM2 has them"
    )


__all__ = ["from_huggingface", "to_huggingface"]
