"""Models of attention, with full, local and sparse links."""

from __future__ import annotations

from typing import Any

from seqmix.models.presets.preset import Preset, attention, feed_forward_width


def _transformer(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [attention(width)], "feed_forward": feed_forward_width(width)}


def _local_transformer(width: int, depth: int, context: int) -> dict[str, Any]:
    window = max(1, context // 4)
    return {"mixers": [attention(width, window=window)], "feed_forward": feed_forward_width(width)}


PRESETS = (
    Preset(
        name="transformer",
        summary="Llama-like: RMSNorm, softmax attention with RoPE, SwiGLU feed-forward",
        build=_transformer,
        rate=1.5e-3,
    ),
    Preset(
        name="local_transformer",
        summary="the transformer with every layer limited to a window of a quarter of the context",
        build=_local_transformer,
        rate=1.5e-3,
    ),
)
