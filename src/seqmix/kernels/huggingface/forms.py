"""Our kernels with the signatures that transformers' models call.

A form takes the function that it stands for and gives another of the same signature. Tensors on another device than
the CPU and exports go to the original, whatever it does there.

Shapes: B batch, T time, D channels, N state, H heads, P head width, G groups, K kernel.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels import causal_conv1d, recurrent_steps
from seqmix.kernels.documents import place_piece
from seqmix.kernels.linear_recurrence import linear_recurrence
from seqmix.kernels.selective_scan import selective_scan, selective_step
from seqmix.kernels.state_space import state_space_scan, state_space_step

Function = Callable[..., Any]


def _on_cpu(ours: Function) -> Callable[[Function], Function]:
    """A form from `ours(original, *args, **kwargs)`, which is called for tensors on a CPU."""

    def form(original: Function) -> Function:
        @functools.wraps(original)
        def chosen(first: Tensor, *args: Any, **kwargs: Any) -> Any:
            if first.device.type != "cpu" or torch.compiler.is_exporting():
                return original(first, *args, **kwargs)
            return ours(original, first, *args, **kwargs)

        return chosen

    return form


def _activate(y: Tensor, activation: str | None) -> Tensor:
    """transformers' own activations, where a config asks for one that the package of the signature does not know."""
    if activation in causal_conv1d.ACTIVATIONS:
        return y
    return importlib.import_module("transformers.activations").ACT2FN[activation](y)


def _known(activation: str | None) -> str | None:
    return activation if activation in causal_conv1d.ACTIVATIONS else None


@_on_cpu
def causal_conv1d_fn(
    original: Function,
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """The short convolution of a whole sequence, (batch, channels, time)."""
    y = causal_conv1d.causal_conv1d_fn(hidden_states, weight, bias, seq_idx, activation=_known(activation))
    assert isinstance(y, Tensor)
    return _activate(y, activation)


@_on_cpu
def causal_conv1d_fn_of_one_document(original: Function, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The convolution of a model whose scan is not told where documents begin: several are refused."""
    if kwargs.get("seq_idx") is not None:
        raise ValueError(
            "seq_idx marks packed sequences, which this model's scan cannot keep apart: give them one by one"
        )
    return causal_conv1d_fn(original)(hidden_states, *args, **kwargs)


@_on_cpu
def causal_conv1d_update(
    original: Function,
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **kwargs: Any,
) -> Tensor:
    """The short convolution of the next inputs; `conv_state` is brought up to date in place."""
    y = causal_conv1d.causal_conv1d_update(hidden_states, conv_state, weight, bias, _known(activation))
    return _activate(y, activation)


@_on_cpu
def nothing_fused(original: Function, first: Tensor, *args: Any, **kwargs: Any) -> None:
    """The answer of a function that fuses a whole layer where it can: None, go on with the parts."""


@_on_cpu
def mamba_selective_scan(
    original: Function,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **kwargs: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's scan: hidden_states, dt and z (batch, channels, time), B and C (batch, state, time)."""
    y, last = selective_scan(
        hidden_states.transpose(1, 2),
        dt.transpose(1, 2),
        A,
        B.transpose(1, 2),
        C.transpose(1, 2),
        D,
        z=None if z is None else z.transpose(1, 2),
        dt_bias=delta_bias,
        dt_softplus=delta_softplus,
    )
    return (y.transpose(1, 2), last) if return_last_state else y.transpose(1, 2)


@_on_cpu
def mamba_selective_state_update(
    original: Function,
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """One position of Mamba's scan; `state` (batch, channels, state) is brought up to date in place."""
    y, after = selective_step(hidden_states, dt, A, B, C, state, D, z=z, dt_bias=dt_bias, dt_softplus=dt_softplus)
    state.copy_(after)
    return y


@_on_cpu
def mamba2_chunk_scan(
    original: Function,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    seq_idx: Tensor | None = None,
    z: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2's scan, (batch, time, heads, width); the chunk is ours, it changes nothing but the speed."""
    wide = torch.promote_types(dt.dtype, torch.float32)
    dt = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide)
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    batch, time = dt.shape[:2]
    runs = None if seq_idx is None else place_piece(batch, time, dt.device, None, None, seq_idx.long()).runs
    D = A.new_zeros(A.shape) if D is None else D
    y, last = state_space_scan(hidden_states, dt, A, B, C, D, state=initial_states, runs=runs)
    y = y if z is None else y * F.silu(z)
    return (y, last) if return_final_states else y


@_on_cpu
def mamba2_selective_state_update(
    original: Function,
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """One position of Mamba-2's scan; `state` (batch, heads, width, state) is brought up to date in place.

    The package of the signature takes a decay for every channel and state; the models give one for each head, spread
    by strides of zero.
    """
    spread = (dt.stride(2), A.stride(1), A.stride(2), *(each.stride(1) for each in (D, dt_bias) if each is not None))
    if any(spread):
        return original(state, hidden_states, dt, A, B, C, D, dt_bias=dt_bias, dt_softplus=dt_softplus, z=z, **kwargs)
    dt_BH, A_H = dt[:, :, 0], A[:, 0, 0]
    D_H, bias_H = (None if each is None else each[:, 0] for each in (D, dt_bias))
    if recurrent_steps.can_run(state, hidden_states, dt_BH, A_H, B, C, D_H, bias_H):
        y = recurrent_steps.state_space_step(hidden_states, dt_BH, A_H, B, C, state, D_H, bias_H, dt_softplus)
    else:
        dt_BH = dt_BH.to(state.dtype) if bias_H is None else dt_BH.to(state.dtype) + bias_H
        dt_BH = F.softplus(dt_BH) if dt_softplus else dt_BH
        D_H = torch.zeros_like(A_H) if D_H is None else D_H
        y, after = state_space_step(hidden_states, dt_BH, A_H, B, C, D_H, state)
        state.copy_(after)
    return y if z is None else y * F.silu(z)


def rnn_scan(original: Function) -> Function:
    """The recurrence of Griffin's RG-LRU, a method: hidden_states and recurrent_gate (batch, time, channels)."""

    @functools.wraps(original)
    def chosen(
        self: Any,
        hidden_states: Tensor,
        recurrent_gate: Tensor,
        reset: Tensor,
        recurrent_states: Tensor | None,
        *rest: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        alone = hidden_states.shape[1] == 1 or hidden_states.device.type != "cpu" or torch.compiler.is_exporting()
        if alone or rest or kwargs:
            return original(self, hidden_states, recurrent_gate, reset, recurrent_states, *rest, **kwargs)
        return linear_recurrence(recurrent_gate * ~reset, hidden_states, state=recurrent_states)

    return chosen


@_on_cpu
def without_warning(original: Function, first: Tensor, *args: Any, **kwargs: Any) -> Any:
    """transformers' own form in plain torch, which is what runs anyway, without the advice to install a package.

    Packed documents go to the original, which says that it cannot keep them apart.
    """
    packed = kwargs.get("cu_seqlens") is not None or kwargs.get("seq_idx") is not None
    return (original if packed else getattr(original, "__wrapped__", original))(first, *args, **kwargs)


FORMS: dict[str, tuple[Callable[[Function], Function], tuple[str, ...]]] = {
    "causal_conv1d_fn": (causal_conv1d_fn, ("hidden_states", "weight", "bias", "activation")),
    "causal_conv1d_update": (
        causal_conv1d_update,
        ("hidden_states", "conv_state", "weight", "bias", "activation"),
    ),
    "mamba_inner_fn": (nothing_fused, ("xz",)),
    "mamba2_split_conv1d_scan_combined": (nothing_fused, ("zxbcdt",)),
    "mamba_selective_scan": (
        mamba_selective_scan,
        ("hidden_states", "dt", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus", "return_last_state"),
    ),
    "mamba_selective_state_update": (
        mamba_selective_state_update,
        ("state", "hidden_states", "dt", "A", "B", "C", "D", "dt_bias", "dt_softplus", "z"),
    ),
    "mamba2_chunk_scan": (
        mamba2_chunk_scan,
        (
            *("hidden_states", "dt", "A", "B", "C", "chunk_size", "D", "dt_bias", "initial_states", "dt_softplus"),
            *("dt_limit", "return_final_states"),
        ),
    ),
    "mamba2_selective_state_update": (
        mamba2_selective_state_update,
        ("state", "hidden_states", "dt", "A", "B", "C", "D", "dt_bias", "dt_softplus", "z"),
    ),
    "RecurrentGemmaRglru._rnn_scan": (
        rnn_scan,
        ("self", "hidden_states", "recurrent_gate", "reset", "recurrent_states", "acc_dtype"),
    ),
    "torch_chunk_gated_delta_rule": (without_warning, ("query", "key", "value")),
    "torch_recurrent_gated_delta_rule": (without_warning, ("query", "key", "value")),
    "chunk_kimi_delta_attention": (without_warning, ("query", "key", "value")),
    "recurrent_kimi_delta_attention": (without_warning, ("query", "key", "value")),
}
"""By the name in transformers, of a function or of a class and its method: our form, and the parameters that the
original must begin with."""
