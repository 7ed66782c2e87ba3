"""Models of attention, with full, local and sparse links."""

from __future__ import annotations

from typing import Any

from seqmix.models.presets.base import Preset, attention, feed_forward_width, shared_heads


def _transformer(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [attention(width)], "feed_forward": feed_forward_width(width)}


def _local_transformer(width: int, depth: int, context: int) -> dict[str, Any]:
    window = max(1, context // 4)
    return {"mixers": [attention(width, window=window)], "feed_forward": feed_forward_width(width)}


def _longformer(width: int, depth: int, context: int) -> dict[str, Any]:
    pattern = f"longformer({max(1, context // 4)}, 1)"
    return {"mixers": [attention(width, pattern=pattern)], "feed_forward": feed_forward_width(width)}


def _bigbird(width: int, depth: int, context: int) -> dict[str, Any]:
    # The paper's blocks are 64 long for a context of 4096.
    pattern = f"bigbird(block={max(1, min(64, context // 64))})"
    return {"mixers": [attention(width, pattern=pattern)], "feed_forward": feed_forward_width(width)}


def _gemma2_like(width: int, depth: int, context: int) -> dict[str, Any]:
    shared = shared_heads(width, 2)
    mixers = [attention(width, window=max(1, context // 2), **shared), attention(width, **shared)][:depth]
    return {"mixers": mixers, "feed_forward": feed_forward_width(width)}


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
    Preset(
        name="longformer",
        summary="the transformer on Longformer's links: a window of a quarter of the context and one global token",
        build=_longformer,
        rate=1.5e-3,
    ),
    Preset(
        name="bigbird",
        summary="the transformer on BigBird's links: blocks of a window, global and random ones",
        build=_bigbird,
        rate=1.5e-3,
    ),
    Preset(
        name="gemma2_like",
        summary="Gemma 2's layers of a window and of all positions in turn, two heads a key; not its caps and norms",
        build=_gemma2_like,
        rate=1.5e-3,
    ),
)
