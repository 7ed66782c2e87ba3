"""The mixers, by name. Each file is one family and opens with its equation and source."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from seqmix.errors import InputError, unknown_name
from seqmix.mixer import Mixer, build_config

_BUILT_IN = {
    "attention": "seqmix.mixers.attention.attention:Attention",
    "bytenet": "seqmix.mixers.bytenet:ByteNet",
    "conv": "seqmix.mixers.full_convolution:Conv",
    "convs2s": "seqmix.mixers.convs2s:ConvS2S",
    "convsamba": "seqmix.mixers.convsamba:ConvSamba",
    "dense": "seqmix.mixers.dense:Dense",
    "depthwise_conv": "seqmix.mixers.convolution:DepthwiseConv",
    "dynamic_conv": "seqmix.mixers.dynamic_convolution:DynamicConv",
    "gated_conv": "seqmix.mixers.convolution:GatedConv",
    "gated_global_conv": "seqmix.mixers.long_convolution.global_convolution:GatedGlobalConv",
    "gated_modal_conv": "seqmix.mixers.long_convolution.modal_convolution:GatedModalConv",
    "global_conv": "seqmix.mixers.long_convolution.global_convolution:GlobalConv",
    "gru": "seqmix.mixers.recurrent.gru_rnn:GRU",
    "hyena": "seqmix.mixers.long_convolution.hyena:Hyena",
    "involution": "seqmix.mixers.involution:Involution",
    "light_conv": "seqmix.mixers.dynamic_convolution:LightConv",
    "linear_attention": "seqmix.mixers.linear_attention:LinearAttention",
    "linformer": "seqmix.mixers.linformer:Linformer",
    "lstm": "seqmix.mixers.recurrent.lstm:LSTM",
    "mamba2": "seqmix.mixers.state_space:Mamba2",
    "modal_conv": "seqmix.mixers.long_convolution.modal_convolution:ModalConv",
    "modal_hyena": "seqmix.mixers.long_convolution.modal_convolution:ModalHyena",
    "parallel": "seqmix.mixers.parallel:Parallel",
    "performer": "seqmix.mixers.performer:Performer",
    "pool": "seqmix.mixers.pool:Pool",
    "retnet": "seqmix.mixers.retention:RetNet",
    "rnn": "seqmix.mixers.recurrent.gru_rnn:RNN",
    "rwkv6": "seqmix.mixers.rwkv.rwkv6:RWKV6",
    "rwkv6_channel_mix": "seqmix.mixers.rwkv.channel_mix:RWKV6ChannelMix",
    "rwkv7": "seqmix.mixers.rwkv.rwkv7:RWKV7",
    "rwkv7_channel_mix": "seqmix.mixers.rwkv.channel_mix:RWKV7ChannelMix",
}
_registered: dict[str, type[Mixer]] = {}


def register_mixer(name: str) -> Callable[[type[Mixer]], type[Mixer]]:
    """A class decorator that makes a Mixer known to `create_mixer`, configs and commands by `name`."""

    def register(mixer_class: type[Mixer]) -> type[Mixer]:
        known = _registered.get(name)
        is_same = known is not None and known.__qualname__ == mixer_class.__qualname__
        if name in _BUILT_IN or (known is not None and not is_same):
            raise InputError(
                f"a mixer named {name!r} exists already: register {mixer_class.__name__} under another name"
            )
        _registered[name] = mixer_class
        return mixer_class

    return register


def mixer_class(name: str) -> type[Mixer]:
    """The class registered under a name."""
    if name in _registered:
        return _registered[name]
    if name not in _BUILT_IN:
        raise unknown_name("mixer", name, list_mixers())
    module, _, attribute = _BUILT_IN[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def list_mixers() -> list[str]:
    """The names of all mixers, built in and registered."""
    return sorted({**_BUILT_IN, **_registered})


def create_mixer(name: str, dim: int, **options: Any) -> Mixer:
    """A new mixer of width `dim`.

    Args:
        name: one of `list_mixers()`.
        options: fields of the mixer's config; an unknown one raises an InputError that names the nearest.
    """
    chosen = mixer_class(name)
    return chosen(dim, build_config(chosen.config_class, options, f"mixer {name!r}"))


__all__ = ["create_mixer", "list_mixers", "mixer_class", "register_mixer"]
