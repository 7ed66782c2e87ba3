"""Llama: equal layers of attention, each with a SwiGLU feed-forward."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM

from seqmix.models.architectures.names import PLAIN, Names, common_fields, require, rope_theta, single_width
from seqmix.models.config import SeqmixConfig
from seqmix.models.language_model import SeqmixForCausalLM

NAMES: Names = (
    ("model.embed_tokens", "model.embed_tokens"),
    ("model.layers.{}.self_attn.", "model.layers.{}.mixer."),
    ("model.layers.{}.input_layernorm", "model.layers.{}.mixer_norm"),
    ("model.layers.{}.post_attention_layernorm", "model.layers.{}.feed_forward_norm"),
    ("model.layers.{}.mlp.", "model.layers.{}.feed_forward."),
    ("model.norm", "model.norm"),
    ("lm_head", "lm_head"),
)


def to_ours(model: LlamaForCausalLM) -> SeqmixConfig:
    """The config of the same model here."""
    config = model.config
    require(config, hidden_act="silu", mlp_bias=False, attention_dropout=0.0, attention_bias=False)
    mixer = {
        "name": "attention",
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rope_theta": rope_theta(config),
    }
    return SeqmixConfig(
        **common_fields(config),
        mixers=[mixer],
        feed_forward=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
    )


def to_theirs(model: SeqmixForCausalLM) -> LlamaForCausalLM:
    """A new Llama of the same shape, with weights of its own."""
    config, attention = model.config, model.model.layers[0].mixer
    require(attention.config, causal=True, bias=False, rope=True, **PLAIN)
    return LlamaForCausalLM(
        LlamaConfig(
            **common_fields(config),
            intermediate_size=single_width(config, "Llama"),
            num_attention_heads=attention.heads,
            num_key_value_heads=attention.groups,
            head_dim=attention.head_dim,
            rms_norm_eps=config.norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": attention.config.rope_theta},
        )
    )
