"""Mamba-2: equal layers of mamba2 without a feed-forward."""

from __future__ import annotations

import math

from transformers import Mamba2Config, Mamba2ForCausalLM

from seqmix.errors import InputError
from seqmix.models.architectures.names import Names, common_fields, require
from seqmix.models.config import SeqmixConfig
from seqmix.models.language_model import SeqmixForCausalLM

NAMES: Names = (
    ("backbone.embeddings", "model.embed_tokens"),
    ("backbone.layers.{}.mixer.conv1d.", "model.layers.{}.mixer.conv_"),
    ("backbone.layers.{}.mixer.", "model.layers.{}.mixer."),
    ("backbone.layers.{}.norm", "model.layers.{}.mixer_norm"),
    ("backbone.norm_f", "model.norm"),
    ("lm_head", "lm_head"),
)


def to_ours(model: Mamba2ForCausalLM) -> SeqmixConfig:
    """The config of the same model here."""
    config = model.config
    require(config, hidden_act="silu")
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
    return SeqmixConfig(**common_fields(config), mixers=[mixer], norm_eps=config.layer_norm_epsilon)


def to_theirs(model: SeqmixForCausalLM) -> Mamba2ForCausalLM:
    """A new Mamba-2 of the same shape, with weights of its own."""
    config, mixer = model.config, model.model.layers[0].mixer
    if any(config.feed_forward_of_layer(layer) for layer in range(config.num_hidden_layers)):
        raise InputError(f"feed_forward is {config.feed_forward}, which cannot be converted: Mamba-2 has none")
    options = mixer.config
    require(options, norm_eps=config.norm_eps)
    return Mamba2ForCausalLM(
        Mamba2Config(
            **common_fields(config),
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
