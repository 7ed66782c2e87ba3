"""The models that are measured beside each other: presets of seqmix, and the same sizes of Hugging Face.

`hf-llama` and `hf-mamba2` are LlamaForCausalLM and Mamba2ForCausalLM of transformers, with the shape that the presets
`transformer` and `mamba2` have at the size; `seqmix.bench.peers` has what is no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from seqmix.errors import InputError, unknown_name
from seqmix.models import SeqmixForCausalLM, create_model, list_models
from seqmix.models.contenders import contender
from seqmix.models.convert import to_huggingface
from seqmix.models.huggingface import HuggingFaceModel
from seqmix.models.sizing import solve

HUGGING_FACE = {"hf-llama": "transformer", "hf-mamba2": "mamba2"}
"""Whose shape each of them takes."""


def check_names(names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Refuses names that are no model and not among `others`, and names given twice."""
    known = [*list_models(), *HUGGING_FACE, *others]
    for index, name in enumerate(names):
        if ":" in name:
            contender(name)
        elif name not in known:
            raise unknown_name("model", name, known)
        if name in names[:index]:
            raise InputError(f"model {name!r} is named twice: name each model once")


def check_sizes(names: Sequence[str], params: str, vocab_size: int, contexts: Sequence[int]) -> None:
    """Refuses what `build` cannot make, without making it."""
    for name in names:
        for context in contexts:
            config = solve(HUGGING_FACE.get(name, name), params, vocab_size=vocab_size, context=context)
            pad = config.pad_token_id
            if name in HUGGING_FACE and pad is not None and pad >= vocab_size:
                raise InputError(f"vocab_size is {vocab_size}: {name} needs at least {pad + 1}, for its padding token")


def build(name: str, params: str, vocab_size: int, context: int, device: torch.device) -> PreTrainedModel:
    """A model with drawn weights, the same ones at every call."""
    torch.manual_seed(0)
    with torch.device(device):
        model = create_model(HUGGING_FACE.get(name, name), vocab_size=vocab_size, params=params, context=context)
    if isinstance(model, HuggingFaceModel):
        return model.inner
    with torch.device(device):
        return to_huggingface(model) if name in HUGGING_FACE else model


def parameters_of(model: PreTrainedModel) -> int:
    """Parameters without the tables of the embedding and the head."""
    tables = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in tables)


def is_ours(model: PreTrainedModel) -> bool:
    """Whether a model has the state as an argument and a result."""
    return isinstance(model, SeqmixForCausalLM)
