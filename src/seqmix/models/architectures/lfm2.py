"""LFM2 (arXiv 2511.23404): layers of gated short convolution and of attention with norms on queries and keys.

Hugging Face's config counts the feed-forward by a rule (two thirds of `intermediate_size`, times a factor, up to a
multiple) unless `block_auto_adjust_ff_dim` is False. Ours is the width itself, so what goes back says False and the
width. Other engines read the width as `block_ff_dim`, the tied embedding as `tie_embedding` and the attention layers
as `full_attn_idxs`; all three are written too.
"""

from __future__ import annotations

from typing import Any

from transformers import Lfm2Config, Lfm2ForCausalLM

from seqmix.errors import InputError
from seqmix.models.architectures.names import PLAIN, Names, common_fields, require, rope_theta, single_width
from seqmix.models.config import SeqmixConfig
from seqmix.models.language_model import SeqmixForCausalLM

NAMES: Names = (
    ("model.embed_tokens", "model.embed_tokens"),
    ("model.layers.{}.self_attn.q_proj", "model.layers.{}.mixer.q_proj"),
    ("model.layers.{}.self_attn.k_proj", "model.layers.{}.mixer.k_proj"),
    ("model.layers.{}.self_attn.v_proj", "model.layers.{}.mixer.v_proj"),
    ("model.layers.{}.self_attn.out_proj", "model.layers.{}.mixer.o_proj"),
    ("model.layers.{}.self_attn.q_layernorm", "model.layers.{}.mixer.q_norm"),
    ("model.layers.{}.self_attn.k_layernorm", "model.layers.{}.mixer.k_norm"),
    ("model.layers.{}.conv.in_proj", "model.layers.{}.mixer.in_proj"),
    ("model.layers.{}.conv.out_proj", "model.layers.{}.mixer.out_proj"),
    ("model.layers.{}.conv.conv.weight", "model.layers.{}.mixer.weight"),
    ("model.layers.{}.operator_norm", "model.layers.{}.mixer_norm"),
    ("model.layers.{}.ffn_norm", "model.layers.{}.feed_forward_norm"),
    ("model.layers.{}.feed_forward.w1", "model.layers.{}.feed_forward.gate_proj"),
    ("model.layers.{}.feed_forward.w2", "model.layers.{}.feed_forward.down_proj"),
    ("model.layers.{}.feed_forward.w3", "model.layers.{}.feed_forward.up_proj"),
    ("model.embedding_norm", "model.norm"),
    ("lm_head", "lm_head"),
)


def to_ours(model: Lfm2ForCausalLM) -> SeqmixConfig:
    """The config of the same model here."""
    config = model.config
    require(config, conv_bias=False)
    layers: dict[str, dict[str, Any]] = {
        "conv": {"name": "gated_conv", "kernel": config.conv_L_cache},
        "full_attention": {
            "name": "attention",
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "qk_norm": True,
            "qk_norm_eps": config.norm_eps,
            "rope_theta": rope_theta(config),
        },
    }
    return SeqmixConfig(
        **common_fields(config),
        mixers=[layers[kind] for kind in config.layer_types or ()],
        feed_forward=model.model.layers[0].feed_forward.w1.out_features,
        norm_eps=config.norm_eps,
        max_position_embeddings=config.max_position_embeddings,
    )


def has_its_layers(config: Any) -> bool:
    """Whether the layers are of LFM2's kinds; their options may still not be."""
    entries = [config.mixer_of_layer(layer) for layer in range(config.num_hidden_layers)]
    attention = [entry for entry in entries if entry["name"] == "attention"]
    others = {entry["name"] for entry in entries} - {"attention"}
    return others <= {"gated_conv"} and bool(attention) and all(entry.get("qk_norm") for entry in attention)


def to_theirs(model: SeqmixForCausalLM) -> Lfm2ForCausalLM:
    """A new LFM2 of the same shape, with weights of its own."""
    config = model.config
    types, attention, kernels = [], [], []
    for layer, block in enumerate(model.model.layers):
        mixer = block.mixer
        is_attention = config.mixer_of_layer(layer)["name"] == "attention"
        types.append("full_attention" if is_attention else "conv")
        if is_attention:
            require(mixer.config, causal=True, bias=False, rope=True, qk_norm_eps=config.norm_eps, **PLAIN)
            if mixer.head_dim * mixer.heads != config.hidden_size:
                raise InputError(
                    f"{mixer.heads} heads of width {mixer.head_dim} cannot be converted: "
                    f"LFM2's heads share out the width of {config.hidden_size}"
                )
            attention.append((mixer.heads, mixer.groups, mixer.config.rope_theta))
        else:
            require(mixer.config, causal=True, bias=False)
            if mixer.dilations.span != mixer.config.kernel - 1:
                raise InputError(f"dilation is {mixer.config.dilation}, which cannot be converted: only 1 can")
            kernels.append(mixer.config.kernel)
    for what, found in (("heads, kv_heads and rope_theta", attention), ("kernel", kernels)):
        if len(set(found)) > 1:
            raise InputError(f"{what} differ by layer ({found}), which cannot be converted: LFM2 has them once")
    heads, groups, theta = attention[0]
    width = single_width(config, "LFM2")
    theirs = Lfm2Config(
        **common_fields(config),
        intermediate_size=width,
        block_auto_adjust_ff_dim=False,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        conv_L_cache=kernels[0] if kernels else 3,
        layer_types=types,
        full_attn_idxs=[layer for layer, kind in enumerate(types) if kind == "full_attention"],
        norm_eps=config.norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    theirs.block_ff_dim, theirs.tie_embedding = width, config.tie_word_embeddings
    return Lfm2ForCausalLM(theirs)
