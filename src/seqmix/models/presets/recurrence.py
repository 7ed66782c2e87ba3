"""Models whose state has a fixed size because they are recurrences."""

from __future__ import annotations

from typing import Any

from seqmix.models.presets.preset import Preset


def _mamba2(width: int, depth: int, context: int) -> dict[str, Any]:
    size = 128 if width >= 512 else 64 if width >= 96 else 32
    return {"mixers": [{"name": "mamba2", "state_size": size}]}


def _lstm(width: int, depth: int, context: int) -> dict[str, Any]:
    return {"mixers": [{"name": "lstm"}]}


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
)
