"""The short causal convolution behind the two functions that other people's models call.

Signatures, shapes and meaning are those of the causal-conv1d package (github.com/Dao-AILab/causal-conv1d), so that a
model written for it runs here unchanged: on a CPU, with a kernel of any width, with initial states and documents at
once. Channels stand before time, as there; a tensor whose memory is (batch, time, dim), such as a transposed view of a
projection's output, is read where it lies and the result has the same memory.

Shapes: B batch, D channels, T time, K kernel, S length of the kept state.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels import recurrent_steps
from seqmix.kernels.depthwise_conv import DepthwiseConvState, depthwise_conv
from seqmix.kernels.documents import place_piece

ACTIVATIONS = (None, "silu", "swish")


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """activation(sum over k of weight[:, k] * x[:, :, t - (K - 1) + k] + bias), zero before the beginning.

    Args:
        x: (batch, dim, time), of any strides.
        weight: (dim, kernel); bias: (dim,).
        seq_idx: (batch, time) integers; a new document begins wherever they change, and nothing crosses a border.
        initial_states: (batch, dim, kernel - 1), the inputs before the first, the newest last. With `seq_idx` they
            belong to the first document.
        return_final_states: also give the last kernel - 1 inputs, those of the last document where there are several.
        final_states_out: (batch, dim, kernel - 1) that the final states are written to; it is what is returned then.
        activation: None, "silu" or "swish", which is the same.

    Returns:
        (batch, dim, time) in the type of x; with `return_final_states` also (batch, dim, kernel - 1).

    Raises:
        ValueError: shapes that do not fit, or an unknown activation.
    """
    _check(x, weight, activation)
    kernel = weight.shape[1]
    if x.shape[2] == 0:
        seq_idx = None
    past = None
    if initial_states is not None:
        past = _check_states("initial_states", initial_states, x, kernel).to(weight.dtype)
    y = _convolve(x.to(weight.dtype), weight, bias, seq_idx, past)
    y = _activate(y, activation).to(x.dtype)
    if not return_final_states:
        return y
    final = _final_states(x, kernel, seq_idx, initial_states)
    if final_states_out is not None:
        final = _check_states("final_states_out", final_states_out, x, kernel).copy_(final)
    return y, final


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """One or a few more inputs of sequences whose last inputs are in `conv_state`, which is brought up to date.

    Args:
        x: (batch, dim), or (batch, dim, time).
        conv_state: (batch, dim, length) with a length of kernel - 1 or more, the newest input last; written in place.
        weight, bias, activation: as in `causal_conv1d_fn`.
        cache_seqlens: (batch,) integers, how many inputs each row has had. `conv_state` is then a ring: input p
            stands in slot p mod length.
        conv_state_indices: (batch,) integers: `conv_state` has more rows, and these are the ones of x.

    Returns:
        The outputs, in the shape and type of x.

    Raises:
        ValueError: shapes that do not fit, a state shorter than kernel - 1, or an unknown activation.
    """
    if x.dim() == 2:
        one = x[:, :, None]
        return causal_conv1d_update(one, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)[
            :, :, 0
        ]
    _check(x, weight, activation)
    time, kernel, length = x.shape[2], weight.shape[1], conv_state.shape[-1]
    rows = conv_state if conv_state_indices is None else conv_state[conv_state_indices.long()]
    if rows.shape != (*x.shape[:2], length) or length < kernel - 1:
        raise ValueError(
            f"conv_state {tuple(conv_state.shape)} does not fit x {tuple(x.shape)} and a kernel of {kernel}: it must "
            f"be (batch, dim, length) with a length of at least {kernel - 1}"
        )
    in_order = cache_seqlens is None and conv_state_indices is None
    if in_order and time == 1 and recurrent_steps.can_run(conv_state, x, weight, bias):
        y = recurrent_steps.conv_step(x[:, :, 0], conv_state, weight, bias, activation is not None)
        return y[:, :, None]
    if cache_seqlens is None:
        past = rows[:, :, length - (kernel - 1) :]
    else:
        newest = torch.arange(1 - kernel, 0, device=x.device) + cache_seqlens[:, None]
        past = rows.gather(2, (newest % max(1, length))[:, None].expand(-1, x.shape[1], -1))
    inputs = torch.cat([past.to(weight.dtype), x.to(weight.dtype)], dim=2)
    with torch.no_grad():
        if cache_seqlens is None:
            latest = torch.cat([rows, x.to(rows.dtype)], dim=2)[:, :, time:] if time < length else x[:, :, -length:]
            latest = latest if length else rows
        else:
            kept = min(time, length)
            steps = torch.arange(time - kept, time, device=x.device) + cache_seqlens[:, None]
            slots = (steps % max(1, length))[:, None].expand(-1, x.shape[1], -1)
            latest = rows.scatter(2, slots, x[:, :, time - kept :].to(rows.dtype))
        if conv_state_indices is None:
            conv_state.copy_(latest)
        else:
            conv_state[conv_state_indices.long()] = latest.to(conv_state.dtype)
    if time == 1:
        y = (inputs * weight).sum(dim=2, keepdim=True)
        y = y if bias is None else y + bias[:, None]
    else:
        y = F.conv1d(inputs, weight[:, None], bias, groups=x.shape[1])
    return _activate(y, activation).to(x.dtype)


def _convolve(
    x_BDT: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, past_BDS: Tensor | None
) -> Tensor:
    x_BTD = x_BDT.transpose(1, 2)
    state = None
    if past_BDS is not None:
        # After kernel - 1 inputs the ring holds exactly them, in order of time.
        position = torch.full((len(x_BDT),), past_BDS.shape[2], device=x_BDT.device)
        document = torch.zeros_like(position) if seq_idx is None else seq_idx[:, 0].long()
        state = DepthwiseConvState(past_BDS.transpose(1, 2).flatten(1), position, document)
    documents = None if seq_idx is None else seq_idx.long()
    y_BTD, _ = depthwise_conv(x_BTD, weight, bias, state=state, document_ids=documents)
    return y_BTD.transpose(1, 2)


def _activate(y: Tensor, activation: str | None) -> Tensor:
    return y if activation is None else F.silu(y, inplace=not y.requires_grad)


def _final_states(x_BDT: Tensor, kernel: int, seq_idx: Tensor | None, past_BDS: Tensor | None) -> Tensor:
    """The last kernel - 1 inputs of the document that each row ends in, the newest last; zeros before its first."""
    time = x_BDT.shape[2]
    kept = min(time, kernel - 1)
    recent = x_BDT[:, :, time - kept :]
    if seq_idx is not None:
        runs = place_piece(len(x_BDT), time, x_BDT.device, None, None, seq_idx.long()).runs
        same = runs[:, time - kept :] == runs[:, -1:]
        recent = torch.where(same[:, None], recent, recent.new_zeros(()))
        if past_BDS is not None:
            past_BDS = torch.where((runs[:, -1] == 0)[:, None, None], past_BDS, past_BDS.new_zeros(()))
    if past_BDS is None:
        return F.pad(recent, (kernel - 1 - kept, 0))
    return torch.cat([past_BDS[:, :, kept:].to(x_BDT.dtype), recent], dim=2)


def _check(x: Tensor, weight: Tensor, activation: str | None) -> None:
    if x.dim() != 3 or weight.dim() != 2 or x.shape[1] != weight.shape[0]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit: they must be (batch, dim, time) and "
            "(dim, kernel)"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f'activation is {activation!r}: it must be None, "silu" or "swish"')


def _check_states(name: str, states: Tensor, x: Tensor, kernel: int) -> Tensor:
    expected = (*x.shape[:2], kernel - 1)
    if states.shape != expected:
        raise ValueError(f"{name} has shape {tuple(states.shape)}: it must be (batch, dim, kernel - 1) = {expected}")
    return states
