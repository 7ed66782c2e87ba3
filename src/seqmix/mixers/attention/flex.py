"""Attention over a pattern of links by PyTorch's FlexAttention (arXiv 2412.05496), which skips blocks on a GPU.

The pattern's rule is compiled into the kernel; a table says which blocks of 128 targets and sources hold links.
On a CPU the same calls run uncompiled and without a backward pass: a check of the rule.

Shapes: B batch, H heads, G groups of heads that share keys and values, T time, K head width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from seqmix.mixers.links.pattern import Pattern

SMALLEST_WIDTH = 16
"""The narrowest head that the compiled kernels take."""


def can_run(q_BHTK: Tensor) -> bool:
    """Whether the compiled kernels take these queries: a GPU that Triton knows, a head that is wide enough."""
    from torch.utils._triton import has_triton

    return q_BHTK.device.type == "cuda" and q_BHTK.shape[-1] >= SMALLEST_WIDTH and has_triton()


@lru_cache(maxsize=1)
def _compiled() -> tuple[Any, Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask, dynamic=False)


def _plain() -> tuple[Any, Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return flex_attention, create_block_mask


def attend_by_blocks(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    pattern: Pattern,
    causal: bool,
    positions: Tensor,
    runs: Tensor | None,
    slopes_H: Tensor | None,
) -> Tensor:
    """The values mixed, (B, H, T, K); positions (B or 1, T), runs (B, T) and slopes as in `attend_by_links`."""
    run, make_mask = _compiled() if q_BHTK.device.type == "cuda" and not torch.compiler.is_compiling() else _plain()
    batch, heads, time, _ = q_BHTK.shape
    if runs is None:
        mask = _whole_mask(pattern, causal, time, q_BHTK.device, make_mask)
    else:

        def of_row(b: Tensor, h: Tensor, target: Tensor, source: Tensor) -> Tensor:
            links = pattern.allows(positions[b, target], positions[b, source], causal=causal)
            return links & (runs[b, target] == runs[b, source])

        mask = make_mask(of_row, batch, None, time, time, device=q_BHTK.device)
    change = None
    if slopes_H is not None:

        def change(score: Tensor, b: Tensor, h: Tensor, target: Tensor, source: Tensor) -> Tensor:
            return score - slopes_H[h] * (target - source).abs()

    return run(q_BHTK, k_BGTK, v_BGTK, score_mod=change, block_mask=mask, enable_gqa=heads != k_BGTK.shape[1])


@lru_cache(maxsize=8)
def _whole_mask(pattern: Pattern, causal: bool, time: int, device: torch.device, make_mask: Any) -> Any:
    """The table of blocks for single documents, the same for every row."""

    def of_document(b: Tensor, h: Tensor, target: Tensor, source: Tensor) -> Tensor:
        return pattern.allows(target, source, causal=causal)

    # Tensors made in inference mode could not be kept for a backward pass.
    with torch.inference_mode(False), torch.no_grad():
        return make_mask(of_document, None, None, time, time, device=device)
