"""Models whose state has a fixed size because they are recurrences: state spaces, linear attention, RWKV, gates."""

from __future__ import annotations

from typing import Any

from seqmix.models.presets.base import Preset, feed_forward_width, head_count


def _mamba2(width: int, depth: int, context: int) -> dict[str, Any]:
    size = 128 if width >= 512 else 64 if width >= 96 else 32
    return {"mixers": [{"name": "mamba2", "state_size": size}]}


def _lstm(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [{"name": "lstm"}]}


def _gru(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [{"name": "gru"}]}


def _rnn(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [{"name": "rnn"}]}


def _retnet(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [{"name": "retnet", "heads": head_count(width)}], "feed_forward": feed_forward_width(width)}


def _linear_attention(width: int, depth: int, context: int) -> dict[str, Any]:
    fields = {
        "mixers": [{"name": "linear_attention", "heads": head_count(width)}],
        "feed_forward": feed_forward_width(width),
    }
    return {**fields, "embedding_position": "sinusoidal"}


def _performer(width: int, depth: int, context: int) -> dict[str, Any]:
    fields = {"mixers": [{"name": "performer", "heads": head_count(width)}], "feed_forward": feed_forward_width(width)}
    return {**fields, "embedding_position": "sinusoidal"}


def _rwkv(version: int, depth: int, hidden: int) -> dict[str, Any]:
    """Time mixing and channel mixing of one version; RWKV starts every layer differently."""
    places = [{"layer": layer, "layers": depth} for layer in range(depth)]
    mixers = [{"name": f"rwkv{version}", **place} for place in places]
    inner = [{"name": f"rwkv{version}_channel_mix", **place} for place in places]
    return {"mixers": mixers, "feed_forward": hidden, "feed_forward_mixers": inner, "norm": "layer"}


def _rwkv6(width: int, depth: int, context: int) -> dict[str, Any]:
    return _rwkv(6, depth, max(8, 8 * round(3.5 * width / 8)))


def _rwkv7(width: int, depth: int, context: int) -> dict[str, Any]:
    fields = _rwkv(7, depth, 4 * width)
    for mixer in fields["mixers"][1:]:
        mixer["value_residual"] = True
    return fields


PRESETS = (
    Preset(
        name="mamba2",
        summary="Mamba-2 blocks, no feed-forward",
        build=_mamba2,
        rate=3e-3,
        width_multiple=4,
        depth_factor=1.5,
    ),
    Preset(name="lstm", summary="LSTM layers with residuals, no feed-forward", build=_lstm, rate=3e-3),
    Preset(name="gru", summary="GRU layers with residuals, no feed-forward", build=_gru, rate=3e-3),
    Preset(name="rnn", summary="Elman's recurrent layers with residuals, no feed-forward", build=_rnn, rate=3e-3),
    Preset(
        name="retnet",
        summary="RetNet: retention with a decay for each head, SwiGLU feed-forward",
        build=_retnet,
        rate=3e-3,
    ),
    Preset(
        name="linear_attention",
        summary="linear attention (elu + 1), sinusoids on the embedding, SwiGLU feed-forward",
        build=_linear_attention,
        rate=1.5e-3,
    ),
    Preset(
        name="performer",
        summary="Performer: softmax attention by random features, sinusoids on the embedding, SwiGLU feed-forward",
        build=_performer,
        rate=1.5e-3,
    ),
    Preset(
        name="rwkv6",
        summary="RWKV-6: linear attention with a decay for each channel from the input, channel mixing with a gate",
        build=_rwkv6,
        rate=3e-3,
    ),
    Preset(
        name="rwkv7",
        summary="RWKV-7: delta rule with a decay for each channel, squared-ReLU channel mixing",
        build=_rwkv7,
        rate=3e-3,
    ),
)
