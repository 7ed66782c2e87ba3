"""How the GPU programs of the depthwise convolution are cut: outputs, taps and channels of a program.

The interpreter gets small sizes, so that small tensors meet every border.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "yes", "on", "y"}
"""Whether Triton runs its programs in Python, on any device; it asks the same when it is imported."""

MAX_TAPS = 32
"""Taps whose weights and inputs a program keeps in registers; a wider kernel goes in several passes."""

MAX_BLOCK = 256
"""Channels of a block."""

CHANNELS_PER_WARP = 64
"""Two for each thread: one register holds two numbers of 16 bits when they are loaded."""

SHORT_KERNEL = 8
WIDE_OUTPUTS = 32
SHORT_OUTPUTS = 16
BORDER_OUTPUTS = 8
"""Outputs of a program for one channel: for kernels above SHORT_KERNEL, up to it, and for wide ones at a border."""

PROGRAMS_PER_PROCESSOR = 2
"""Programs of the weight gradient for each multiprocessor: more hide more latency, and leave more sums to add."""


class GradientSizes(NamedTuple):
    """Of a program of the weight gradient: positions of a segment, segments side by side, channels, warps."""

    outputs: int
    segments: int
    block: int
    warps: int


GRADIENT = GradientSizes(16, 4, 64, 4)

_INTERPRETED_OUTPUTS, _INTERPRETED_TAPS, _INTERPRETED_BLOCK, _INTERPRETED_PROCESSORS = 4, 3, 8, 1


def gradient_sizes() -> GradientSizes:
    """The sizes of the weight gradient's programs."""
    return GradientSizes(_INTERPRETED_OUTPUTS, 2, _INTERPRETED_BLOCK, 1) if IS_INTERPRETED else GRADIENT


def by_outputs(dilations: Sequence[int], kernel: int, time: int, is_past: bool) -> dict[int, tuple[int, ...]]:
    """The groups that go together in one launch, by the number of outputs a program makes."""
    many = _INTERPRETED_OUTPUTS if IS_INTERPRETED else WIDE_OUTPUTS if kernel > SHORT_KERNEL else SHORT_OUTPUTS
    found: dict[int, list[int]] = {}
    for index, dilation in enumerate(dilations):
        in_column = kernel - 1 if is_past else -(-time // dilation)
        # Where a column of time has few positions, most of many outputs would stand behind its end.
        found.setdefault(many if in_column > many // 4 else max(1, many // 4), []).append(index)
    return {outputs: tuple(members) for outputs, members in found.items()}


def part_of(outputs: int, kernel: int) -> int:
    """The outputs that a program makes at once at a border; few of a wide kernel, so that it compiles in seconds."""
    if IS_INTERPRETED:
        return max(1, outputs // 2)
    return outputs if kernel <= SHORT_KERNEL else min(outputs, BORDER_OUTPUTS)


def block_of(width: int) -> int:
    """Channels of a block for groups of at most that width."""
    if IS_INTERPRETED:
        return _INTERPRETED_BLOCK
    return min(MAX_BLOCK, max(CHANNELS_PER_WARP, 1 << (width - 1).bit_length()))


def passes_of(kernel: int) -> tuple[int, int]:
    """(taps handled at once, how often): as few passes as `MAX_TAPS` allows, and as equal as can be."""
    passes = -(-kernel // (_INTERPRETED_TAPS if IS_INTERPRETED else MAX_TAPS))
    return -(-kernel // passes), passes


@functools.cache
def table_of(
    borders: tuple[int, ...],
    dilations: tuple[int, ...],
    kernel: int,
    block: int,
    device: torch.device,
    members: tuple[int, ...] | None = None,
) -> tuple[Tensor, int]:
    """The blocks of channels of the groups (of some of them), and what divides all their borders.

    It is kept for good, so that a captured CUDA graph finds it where it was.
    """
    rows, offset = [], 0
    for index, dilation in enumerate(dilations):
        first, last = borders[index], borders[index + 1]
        if members is None or index in members:
            rows += [(begin, first, last, dilation, offset) for begin in range(first, last, block)]
        offset += (kernel - 1) * dilation * (last - first)
    common = math.gcd(block, *(number for row in rows for number in (row[0], row[2])))
    return torch.tensor(rows, dtype=torch.int64, device=device), common & -common


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def sum_type(tensor: Tensor) -> torch.dtype:
    """What is summed in: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def triton_type(kind: torch.dtype) -> Any:
    """The name that Triton has for what is summed in."""
    import triton.language as tl

    return tl.float64 if kind == torch.float64 else tl.float32
