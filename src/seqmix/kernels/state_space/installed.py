"""The scan through the GPU kernels of mamba_ssm or flash-linear-attention, where one of them is installed.

They are asked only for what they are made for: CUDA tensors of 16 bits, outside of torch.compile. Their sums of
float32 inputs are of lower precision than ours (TF32), so that float32 stays with `chunked.py`.

    mamba_ssm: mamba_chunk_scan_combined, our equation; `seq_idx` is `runs`, and 0 continues the initial state.
    fla:       chunk_simple_gla, o[t] = q[t] · h[t] with h[t] = exp(g[t]) h[t-1] + k[t] (outer) v[t]; so q = C, k = B,
               v = dt x, g = dt A, its state is ours transposed, and every document is a sequence of `cu_seqlens`.

Shapes: B batch, T time, H heads, P head width, G groups of heads that share B and C, N state, S documents.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK = 256
"""Positions that mamba_ssm handles at once, its own default; it takes powers of two."""

KERNELS = {
    "mamba_ssm": ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"),
    "fla": ("fla.ops.simple_gla", "chunk_simple_gla"),
}
"""Module and function by name, the preferred one first: it needs no copies of B and C for each head."""


@functools.cache
def kernel(name: str) -> Callable[..., Any] | None:
    """The function of a package, or None where it is not installed or cannot be imported on this machine."""
    module, function = KERNELS[name]
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, OSError, RuntimeError):
        # Built for another torch or CUDA, or without a driver: as good as not installed.
        return None


def choose(x: Tensor) -> str | None:
    """The package to take for inputs like x, or None: then our own form is the best there is."""
    if x.device.type != "cuda" or x.element_size() != 2 or torch.compiler.is_compiling():
        return None
    return next((name for name in KERNELS if kernel(name) is not None), None)


def scan(
    name: str,
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    state_BHPN: Tensor | None,
    runs_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (batch, time, heads, width) in the type of x, and the state after the last position in float32 or wider.

    Raises:
        ValueError: the package is not installed here.
    """
    function = kernel(name)
    if function is None:
        raise ValueError(f"implementation {name!r} needs a package that cannot be imported here: pip install {name}")
    with torch.autocast(x_BTHP.device.type, enabled=False):
        B_BTGN, C_BTGN = B_BTGN.to(x_BTHP.dtype), C_BTGN.to(x_BTHP.dtype)
        wide = torch.promote_types(x_BTHP.dtype, torch.float32)
        dt_BTH, A_H, D_H = dt_BTH.to(wide), A_H.to(wide), D_H.to(wide)
        state_BHPN = None if state_BHPN is None else state_BHPN.to(wide)
        through = _through_mamba if name == "mamba_ssm" else _through_fla
        y, after = through(function, x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, state_BHPN, runs_BT)
        return y.to(x_BTHP.dtype), after.to(wide)


def _through_mamba(
    function: Callable[..., Any],
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    state_BHPN: Tensor | None,
    runs_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return function(
        x_BTHP,
        dt_BTH,
        A_H,
        B_BTGN,
        C_BTGN,
        CHUNK,
        D=D_H,
        initial_states=state_BHPN,
        seq_idx=None if runs_BT is None else runs_BT.to(torch.int32),
        return_final_states=True,
    )


def _through_fla(
    function: Callable[..., Any],
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    state_BHPN: Tensor | None,
    runs_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, time, heads, _ = x_BTHP.shape
    share = heads // B_BTGN.shape[2]
    q, k = (tensor.repeat_interleave(share, dim=2) for tensor in (C_BTGN, B_BTGN))
    v = (dt_BTH[..., None] * x_BTHP).to(x_BTHP.dtype)
    inputs: tuple[Tensor, ...] = (q, k, v, dt_BTH * A_H)
    before = None if state_BHPN is None else state_BHPN.transpose(2, 3)
    borders = last_B = None
    if runs_BT is not None:
        begins_BT = torch.ones_like(runs_BT, dtype=torch.bool)
        begins_BT[:, 1:] = runs_BT[:, 1:] != runs_BT[:, :-1]
        starts_S = begins_BT.flatten().nonzero()[:, 0]
        borders = torch.cat([starts_S, starts_S.new_tensor([batch * time])])
        last_B = begins_BT.sum(1).cumsum(0) - 1
        first_B = torch.cat([last_B.new_zeros(1), last_B[:-1] + 1])
        inputs = tuple(tensor.flatten(0, 1)[None] for tensor in inputs)
        if before is not None:
            continued_B = (runs_BT[:, 0] == 0)[:, None, None, None]
            apart = before.new_zeros(len(starts_S), *before.shape[1:])
            before = apart.index_copy(0, first_B, before * continued_B)
    y, after = function(*inputs, scale=1.0, initial_state=before, output_final_state=True, cu_seqlens=borders)
    y = y.reshape(x_BTHP.shape) + D_H[:, None] * x_BTHP
    return y, (after if last_B is None else after[last_B]).transpose(2, 3)
