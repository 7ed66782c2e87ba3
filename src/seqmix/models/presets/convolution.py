"""Models of convolutions, and their hybrids with attention."""

from __future__ import annotations

from typing import Any

from seqmix.models.presets.preset import Preset, attention, dilations_within, feed_forward_width


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
)
