"""Models of convolutions, and hybrids."""

from __future__ import annotations

from typing import Any

from seqmix.models.presets.base import (
    Preset,
    attention,
    dilations_within,
    feed_forward_width,
    head_count,
    shared_heads,
)


def _convsamba(width: int, depth: int, context: int) -> dict[str, Any]:
    mixer = {"name": "convsamba", "kernel": 32, "context": min(context, 8192)}
    return {"mixers": [mixer], "norm": "layer", "embedding_position": "rope"}


def _convsamba_short(width: int, depth: int, context: int) -> dict[str, Any]:
    dilations = dilations_within(context, kernel=4, most=3)[:depth]
    mixers = [{"name": "convsamba", "kernel": 4, "dilation": [dilation]} for dilation in dilations]
    return {"mixers": mixers, "norm": "layer"}


def _gated_conv(width: int, depth: int, context: int) -> dict[str, Any]:
    dilations = dilations_within(context, kernel=4, most=3)[:depth]
    mixers = [{"name": "gated_conv", "kernel": 4, "dilation": dilation} for dilation in dilations]
    return {"mixers": mixers, "feed_forward": feed_forward_width(width)}


def _convtransformer(width: int, depth: int, context: int) -> dict[str, Any]:
    mixers = [{"name": "gated_conv", "kernel": 4} for _ in range(depth)]
    for layer in range(min(2, depth - 1), depth, 4):
        mixers[layer] = attention(width)
    return {"mixers": mixers, "feed_forward": feed_forward_width(width)}


def _lfm2_like(width: int, depth: int, context: int) -> dict[str, Any]:
    mixers: list[dict[str, Any]] = [{"name": "gated_conv", "kernel": 3} for _ in range(depth)]
    # One attention layer in three, the last of them; a single layer is one.
    for layer in range(min(2, depth - 1), depth, 3):
        mixers[layer] = attention(width, qk_norm=True, qk_norm_eps=1e-5, rope_theta=1e6, **shared_heads(width, 4))
    return {"mixers": mixers, "feed_forward": feed_forward_width(width)}


def _parallel(width: int, depth: int, context: int) -> dict[str, Any]:
    parts = [attention(width, window=max(1, context // 4)), {"name": "mamba2", "state_size": 16, "expand": 1}]
    return {"mixers": [{"name": "parallel", "mixers": parts}], "feed_forward": feed_forward_width(width)}


def _bytenet(width: int, depth: int, context: int) -> dict[str, Any]:
    dilations = [1, 2, 4, 8, 16][:depth]
    mixers = [{"name": "bytenet", "kernel": 3, "dilation": dilation, "input_norm": False} for dilation in dilations]
    return {"mixers": mixers, "norm": "layer"}


def _convs2s(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [{"name": "convs2s", "kernel": 3}], "norm": "layer", "norm_position": "post"}


def _growing_kernels(name: str, depth: int, **options: Any) -> list[dict[str, Any]]:
    """The kernels by layer of LightConv and DynamicConv: 3, 7, 15, then 31."""
    return [{"name": name, "kernel": min(31, 2 ** (layer + 2) - 1), **options} for layer in range(depth)]


def _light_conv(width: int, depth: int, context: int) -> dict[str, Any]:
    mixers = _growing_kernels("light_conv", depth, heads=head_count(width))
    return {"mixers": mixers, "norm": "layer", "feed_forward": feed_forward_width(width)}


def _dynamic_conv(width: int, depth: int, context: int) -> dict[str, Any]:
    mixers = _growing_kernels("dynamic_conv", depth, heads=head_count(width))
    return {"mixers": mixers, "norm": "layer", "feed_forward": feed_forward_width(width)}


def _involution(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": _growing_kernels("involution", depth), "feed_forward": feed_forward_width(width)}


def _global_conv(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [{"name": "gated_global_conv", "length": context}], "feed_forward": feed_forward_width(width)}


def _hyena(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [{"name": "hyena", "length": context}], "feed_forward": feed_forward_width(width)}


PRESETS = (
    Preset(
        name="convsamba",
        summary="RoPE on the embedding, LayerNorm, dilated depthwise convolution of kernel 32 times a SwiGLU gate",
        build=_convsamba,
        rate=3e-3,
        depth_factor=2.0,
    ),
    Preset(
        name="convsamba_short",
        summary="ConvSamba without RoPE, with kernel 4 and dilations 1, 4, 16 by layer",
        build=_convsamba_short,
        rate=3e-3,
        depth_factor=2.0,
    ),
    Preset(
        name="gated_conv",
        summary="gated depthwise convolutions of kernel 4, dilations 1, 4, 16 by layer, SwiGLU feed-forward",
        build=_gated_conv,
        rate=3e-3,
    ),
    Preset(
        name="convtransformer",
        summary="gated convolutions of kernel 4 and attention in every fourth layer, SwiGLU feed-forward",
        build=_convtransformer,
        rate=3e-3,
    ),
    Preset(
        name="bytenet",
        summary="ByteNet's residual blocks: full convolutions of kernel 3, dilations 1, 2, 4, 8, 16 in turn",
        build=_bytenet,
        rate=3e-3,
        depth_factor=3.0,
    ),
    Preset(
        name="convs2s",
        summary="ConvS2S's decoder layers without their attention: GLU of a full convolution, LayerNorm behind",
        build=_convs2s,
        rate=3e-3,
        depth_factor=1.5,
    ),
    Preset(
        name="light_conv",
        summary="LightConv: kernels 3, 7, 15, 31 by layer that sum to 1 and are shared in a head, SwiGLU feed-forward",
        build=_light_conv,
        rate=3e-3,
    ),
    Preset(
        name="dynamic_conv",
        summary="DynamicConv: kernels 3, 7, 15, 31 by layer, computed from each position, SwiGLU feed-forward",
        build=_dynamic_conv,
        rate=3e-3,
    ),
    Preset(
        name="involution",
        summary="involutions, kernels 3, 7, 15, 31 by layer, SwiGLU feed-forward",
        build=_involution,
        rate=3e-3,
    ),
    Preset(
        name="global_conv",
        summary="gated depthwise convolutions with a tap for every position of the context, SwiGLU feed-forward",
        build=_global_conv,
        rate=3e-3,
    ),
    Preset(
        name="hyena",
        summary="Hyena of order 2: implicit filters as long as the context, SwiGLU feed-forward",
        build=_hyena,
        rate=3e-3,
    ),
    Preset(
        name="lfm2_like",
        summary="LFM2: gated convolutions of kernel 3, attention with norms on q and k in every third layer, SwiGLU",
        build=_lfm2_like,
        rate=3e-3,
    ),
    Preset(
        name="parallel",
        summary="a window of attention beside Mamba-2 in every layer (as in Hymba), SwiGLU feed-forward",
        build=_parallel,
        rate=3e-3,
    ),
)
