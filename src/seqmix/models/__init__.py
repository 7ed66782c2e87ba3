"""Language models over any mixers: configs, presets, sizes, and the Hugging Face side."""

from __future__ import annotations

from typing import Any, cast

from seqmix.models.config import SeqmixConfig
from seqmix.models.contenders import config_of_shape, contender, has_size, make_model
from seqmix.models.convert import from_huggingface
from seqmix.models.language_model import SeqmixForCausalLM, SeqmixModel
from seqmix.models.presets import list_models, preset
from seqmix.models.sizing import solve
from seqmix.models.state import ModelState, SeqmixCache

DEFAULT_CONTEXT = 256
DEFAULT_PARAMETERS = 1_000_000


def create_model(
    name: str, *, vocab_size: int, params: int | str | None = None, context: int | None = None, **options: Any
) -> SeqmixForCausalLM:
    """A new language model with drawn weights.

    Args:
        name: one of `list_models()`, or another name that `seqmix.models.contenders` describes. `hf:` gives a
            HuggingFaceModel, which has the calls that training, evaluation and comparison need.
        vocab_size: number of tokens.
        params: size without the embedding, such as "10M" or an int, met to 2 %; None is 1M.
        context: tokens the model is made for; None is 256.
        options: fields of SeqmixConfig that replace the preset's. With both `hidden_size` and
            `num_hidden_layers` given, nothing is solved and `params` must be None.

    Raises:
        InputError: an unknown name or option, or a size that cannot be reached.
    """
    context = DEFAULT_CONTEXT if context is None else context
    if params is None and has_size(contender(name), options):
        config = config_of_shape(name, options, vocab_size=vocab_size, context=context)
    else:
        target = DEFAULT_PARAMETERS if params is None else params
        config = solve(name, target, vocab_size=vocab_size, context=context, **options)
    return cast(SeqmixForCausalLM, make_model(config))


__all__ = [
    "ModelState",
    "SeqmixCache",
    "SeqmixConfig",
    "SeqmixForCausalLM",
    "SeqmixModel",
    "create_model",
    "from_huggingface",
    "list_models",
    "preset",
    "solve",
]
