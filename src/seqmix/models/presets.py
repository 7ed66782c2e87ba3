"""The presets: small functions from a size to a complete config, and the learning rate each was found to like.

A preset's shape is a width and a depth; everything else follows from those two and the context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from seqmix.errors import unknown_name
from seqmix.models.config import SeqmixConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A family of models.

    name: as the commands know it. summary: one line. build: (width, depth, context) -> config fields.
    rate: peak learning rate at a million non-embedding parameters; `learning_rate` scales it.
    width_multiple: widths are multiples of it. depth_factor: layers beside those of a transformer of the same size,
        above 1 where a layer has fewer parameters.
    """

    name: str
    summary: str
    build: Callable[[int, int, int], dict[str, Any]]
    rate: float
    width_multiple: int = 8
    depth_factor: float = 1.0

    def config(self, *, vocab_size: int, context: int, width: int, depth: int, **options: Any) -> SeqmixConfig:
        """The config of this preset at a size; `options` are fields of SeqmixConfig that replace the preset's."""
        known = SeqmixConfig.__dataclass_fields__
        for option in options:
            if option not in known:
                raise unknown_name(f"option of model {self.name!r}", option, known)
        fields: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": width,
            "num_hidden_layers": depth,
            "max_position_embeddings": context,
            "preset": self.name,
            **self.build(width, depth, context),
            **options,
        }
        return SeqmixConfig(**fields)

    def learning_rate(self, parameters: int) -> float:
        """Peak rate at a number of non-embedding parameters: rate * (parameters / 10^6)^(-1/4), at most 4 * rate."""
        return self.rate * min(4.0, (max(parameters, 1) / 1e6) ** -0.25)


def feed_forward_width(width: int) -> int:
    """Llama's: 8/3 of the width, to a multiple of 8."""
    return max(8, 8 * round(width / 3))


def head_count(width: int) -> int:
    """Heads of an even width of about 32 in small models, 64 in middle and 128 in large ones."""
    head_dim = 32 if width < 256 else 64 if width < 2048 else 128
    return max(h for h in range(1, max(1, width // head_dim) + 1) if width % (2 * h) == 0)


def dilations_within(context: int, kernel: int, most: int) -> list[int]:
    """1, kernel, kernel^2, ...: at most `most` of them, while kernel * dilation stays within the context.

    A layer of each then sees kernel^count positions without a gap and none of them twice.
    """
    return [kernel**power for power in range(most) if power == 0 or kernel ** (power + 1) <= context]


def _attention(width: int, **options: Any) -> dict[str, Any]:
    return {"name": "attention", "heads": head_count(width), **options}


def _transformer(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [_attention(width)], "feed_forward": feed_forward_width(width)}


def _local_transformer(width: int, depth: int, context: int) -> dict[str, Any]:
    window = max(1, context // 4)
    return {"mixers": [_attention(width, window=window)], "feed_forward": feed_forward_width(width)}


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
        mixers[layer] = _attention(width)
    return {"mixers": mixers, "feed_forward": feed_forward_width(width)}


def _mamba2(width: int, depth: int, context: int) -> dict[str, Any]:
    size = 128 if width >= 512 else 64 if width >= 96 else 32
    return {"mixers": [{"name": "mamba2", "state_size": size}]}


def _lstm(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [{"name": "lstm"}]}


PRESETS = {
    preset.name: preset
    for preset in (
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
            name="mamba2",
            summary="Mamba-2 blocks, no feed-forward",
            build=_mamba2,
            rate=3e-3,
            width_multiple=4,
            depth_factor=1.5,
        ),
        Preset(name="lstm", summary="LSTM layers with residuals, no feed-forward", build=_lstm, rate=3e-3),
    )
}


def preset(name: str) -> Preset:
    """The preset of a name."""
    if name not in PRESETS:
        raise unknown_name("model", name, PRESETS)
    return PRESETS[name]


def list_models() -> list[str]:
    """The names of all presets."""
    return sorted(PRESETS)
