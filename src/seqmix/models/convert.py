"""Models of Hugging Face as seqmix models and back, with the same weights: Llama and Mamba-2.

A conversion is a table of names; every weight is copied, none is changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2ForCausalLM, PreTrainedModel

from seqmix.errors import InputError
from seqmix.models.config import SeqmixConfig
from seqmix.models.language_model import SeqmixForCausalLM

_LLAMA_NAMES: tuple[tuple[str, str], ...] = (
    ("model.embed_tokens", "model.embed_tokens"),
    ("model.layers.{}.self_attn.", "model.layers.{}.mixer."),
    ("model.layers.{}.input_layernorm", "model.layers.{}.mixer_norm"),
    ("model.layers.{}.post_attention_layernorm", "model.layers.{}.feed_forward_norm"),
    ("model.layers.{}.mlp.", "model.layers.{}.feed_forward."),
    ("model.norm", "model.norm"),
    ("lm_head", "lm_head"),
)
_MAMBA2_NAMES: tuple[tuple[str, str], ...] = (
    ("backbone.embeddings", "model.embed_tokens"),
    ("backbone.layers.{}.mixer.conv1d.", "model.layers.{}.mixer.conv_"),
    ("backbone.layers.{}.mixer.", "model.layers.{}.mixer."),
    ("backbone.layers.{}.norm", "model.layers.{}.mixer_norm"),
    ("backbone.norm_f", "model.norm"),
    ("lm_head", "lm_head"),
)
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def _renamer(pairs: tuple[tuple[str, str], ...], forward: bool) -> Callable[[str], str]:
    """Turns names of one side into those of the other."""
    rules = []
    for theirs, ours in pairs:
        old, new = (theirs, ours) if forward else (ours, theirs)
        rules.append((re.compile("^" + re.escape(old).replace(r"\{\}", r"(\d+)")), new.replace("{}", r"\1")))

    def rename(name: str) -> str:
        for pattern, new in rules:
            if pattern.match(name):
                return pattern.sub(new, name)
        raise InputError(f"weight {name!r} has no counterpart: convert a model of an unmodified architecture")

    return rename


def _copy(source: PreTrainedModel, target: PreTrainedModel, rename: Callable[[str], str]) -> None:
    """Copies every weight of `source` into `target`, which must have them all in the same sizes."""
    wanted = target.state_dict()
    given = {rename(name): tensor for name, tensor in source.state_dict().items()}
    missing = sorted(set(wanted) ^ set(given))
    if missing:
        raise InputError(f"weight {missing[0]!r} has no counterpart: convert a model of an unmodified architecture")
    fitted: dict[str, Tensor] = {name: tensor.reshape(wanted[name].shape) for name, tensor in given.items()}
    target.load_state_dict(fitted)


def _require(config: Any, **expected: Any) -> None:
    """Refuses a config whose field differs from the only value the other side can express."""
    for name, value in expected.items():
        actual = getattr(config, name)
        if actual != value:
            raise InputError(f"{name} is {actual!r}, which cannot be converted: only {value!r} can")


def from_huggingface(model: PreTrainedModel) -> SeqmixForCausalLM:
    """A seqmix model with the weights (copied), the precision and the device of a Hugging Face one.

    Args:
        model: a LlamaForCausalLM or a Mamba2ForCausalLM.

    Raises:
        InputError: another architecture, or an option that seqmix cannot express.
    """
    if isinstance(model, LlamaForCausalLM):
        config, names = _from_llama(model.config), _LLAMA_NAMES
    elif isinstance(model, Mamba2ForCausalLM):
        config, names = _from_mamba2(model.config), _MAMBA2_NAMES
    else:
        name = type(model).__name__
        raise InputError(f"a {name} cannot be converted: give a LlamaForCausalLM or a Mamba2ForCausalLM")
    with torch.device(model.device):
        ours = SeqmixForCausalLM(config).to(model.dtype)  # type: ignore[arg-type]  # a decorator hides its signature
    _copy(model, ours, _renamer(names, forward=True))
    return ours.train(model.training)


def to_huggingface(model: SeqmixForCausalLM) -> PreTrainedModel:
    """The Hugging Face model (Llama or Mamba-2) with the weights of a seqmix one whose layers are all of that kind.

    Raises:
        InputError: layers of another kind, or an option that the architecture cannot express.
    """
    config = model.config
    mixers = [config.mixer_of_layer(layer) for layer in range(config.num_hidden_layers)]
    if any(mixer != mixers[0] for mixer in mixers) or mixers[0]["name"] not in ("attention", "mamba2"):
        kinds = ", ".join(sorted({mixer["name"] for mixer in mixers}))
        raise InputError(f"layers of {kinds} have no counterpart: only equal layers of attention or of mamba2 have one")
    _require(config, norm="rms", norm_position="pre", embedding_position="none")
    build, names = (_to_llama, _LLAMA_NAMES) if mixers[0]["name"] == "attention" else (_to_mamba2, _MAMBA2_NAMES)
    with torch.device(model.device):
        theirs = build(model).to(model.dtype)  # type: ignore[arg-type]  # as above
    _copy(model, theirs, _renamer(names, forward=False))
    return theirs.train(model.training)


def _common(config: Any) -> dict[str, Any]:
    fields = ("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings", *_SPECIAL)
    return {name: getattr(config, name) for name in fields}


def _from_llama(config: LlamaConfig) -> SeqmixConfig:
    _require(config, hidden_act="silu", mlp_bias=False, attention_dropout=0.0)
    rope = dict(config.rope_parameters or {})
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"rope_type is {rope['rope_type']!r}, which cannot be converted: only 'default' can")
    if config.attention_bias:
        raise InputError("attention_bias is True, which cannot be converted: only False can")
    mixer = {
        "name": "attention",
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rope_theta": rope["rope_theta"],
    }
    return SeqmixConfig(
        **_common(config),
        mixers=[mixer],
        feed_forward=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
    )


def _to_llama(model: SeqmixForCausalLM) -> LlamaForCausalLM:
    config, mixer = model.config, model.model.layers[0].mixer.config
    _require(mixer, window=None, causal=True, bias=False, rope=True)
    widths = {config.feed_forward_of_layer(layer) for layer in range(config.num_hidden_layers)}
    if len(widths) > 1 or 0 in widths:
        raise InputError(f"feed_forward widths {sorted(widths)} cannot be converted: Llama has one width above 0")
    attention = model.model.layers[0].mixer
    return LlamaForCausalLM(
        LlamaConfig(
            **_common(config),
            intermediate_size=widths.pop(),
            num_attention_heads=attention.heads,
            num_key_value_heads=attention.groups,
            head_dim=attention.head_dim,
            rms_norm_eps=config.norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": mixer.rope_theta},
        )
    )


def _from_mamba2(config: Mamba2Config) -> SeqmixConfig:
    _require(config, hidden_act="silu")
    low, high = (float(limit) for limit in config.time_step_limit)
    mixer = {
        "name": "mamba2",
        "state_size": config.state_size,
        "head_dim": config.head_dim,
        "expand": config.expand,
        "groups": config.n_groups,
        "conv_kernel": config.conv_kernel,
        "chunk": config.chunk_size,
        "bias": config.use_bias,
        "conv_bias": config.use_conv_bias,
        "norm_eps": config.layer_norm_epsilon,
        "dt_limit": None if (low, high) == (0.0, math.inf) else [low, high],
    }
    return SeqmixConfig(**_common(config), mixers=[mixer], norm_eps=config.layer_norm_epsilon)


def _to_mamba2(model: SeqmixForCausalLM) -> Mamba2ForCausalLM:
    config, mixer = model.config, model.model.layers[0].mixer
    if any(config.feed_forward_of_layer(layer) for layer in range(config.num_hidden_layers)):
        raise InputError(f"feed_forward is {config.feed_forward}, which cannot be converted: Mamba-2 has none")
    options = mixer.config
    _require(options, norm_eps=config.norm_eps)
    return Mamba2ForCausalLM(
        Mamba2Config(
            **_common(config),
            num_heads=mixer.num_heads,
            head_dim=mixer.head_dim,
            state_size=options.state_size,
            expand=options.expand,
            n_groups=options.groups,
            conv_kernel=options.conv_kernel,
            chunk_size=options.chunk,
            use_bias=options.bias,
            use_conv_bias=options.conv_bias,
            layer_norm_epsilon=options.norm_eps,
            time_step_limit=(0.0, math.inf) if options.dt_limit is None else options.dt_limit,
        )
    )
