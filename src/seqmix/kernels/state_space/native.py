"""The scan through the compiled CPU kernel, forward and backward, as operations that torch.compile and autograd know.

With u = dt x and a = exp(dt A) the scan and each of its gradients are the same sum, linear attention with a decay:

    y[t]  = sum_{s <= t} (C[t] · B[s]) a(s -> t) u[s]                   keys B, values u, queries C
    gC[t] = sum_{s <= t} (gy[t] · u[s]) a(s -> t) B[s]                  keys u, values B, queries gy
    gu[t] = sum_{s >= t} (B[t] · C[s]) a(t -> s) gy[s]                  backwards: keys C, values gy, queries B
    gB[t] = sum_{s >= t} (u[t] · gy[s]) a(t -> s) C[s]                  backwards: keys gy, values C, queries u

so nothing but the inputs is kept between forward and backward. The logarithm of a decay gets the inner product of the
state before it, decayed, and the state's gradient after it: the third pass keeps its states before each chunk, and
the last computes the states of a chunk once more while it has their gradients in hand.

Shapes: B batch, T time, H heads, P head width, G groups, N state.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqmix.kernels.documents import begins
from seqmix.kernels.library import function
from seqmix.kernels.library import is_available as is_built

CHUNK = 32
"""SEQMIX_ATTENTION_CHUNK of native/linear_attention.h, positions between two states that a backward keeps."""

_Address = ctypes.c_void_p
_Size = ctypes.c_int64


class _Heads(ctypes.Structure):
    _fields_ = [("data", _Address), *[(name, _Size) for name in ("batch", "time", "head", "share")]]


class _Call(ctypes.Structure):
    """SeqmixLinearAttention of native/linear_attention.h."""

    _fields_ = [
        *[(name, _Size) for name in ("batch", "time", "heads", "keys", "values", "backwards", "sum", "parts")],
        ("threads", _Size),
        *[(name, _Heads) for name in ("key", "value", "query")],
        *[(name, _Address) for name in ("log_decay", "state", "output", "final_state")],
        *[(name, _Address) for name in ("kept", "against")],
        ("against_value", _Heads),
        *[(name, _Address) for name in ("against_decay", "grad_log")],
    ]


class _Ends(ctypes.Structure):
    """SeqmixStateSpaceEnds of native/linear_attention.h."""

    _fields_ = [
        *[(name, _Size) for name in ("batch", "time", "heads", "width", "threads")],
        ("x", _Heads),
        ("grad_y", _Heads),
        *[(name, _Address) for name in ("grad_written", "dt", "D", "grad_x", "grad_dt", "grad_D")],
    ]


def is_available(x: Tensor) -> bool:
    """Whether the compiled kernel can take x; it computes in float32 on a CPU."""
    return is_built() and x.device.type == "cpu" and x.dtype != torch.float64


def scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    state_BHPN: Tensor,
    runs_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """y (batch, time, heads, width) and the state after the last position; `chunk` only says how FLOPs are counted."""
    return _forward(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, state_BHPN, runs_BT, chunk)


@torch.library.custom_op("seqmix::state_space_scan", mutates_args=())
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    runs: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    written = dt[..., None] * x
    y, after = attend(B, written, C, _log_decays(dt, A, runs), state.transpose(2, 3))
    return y.addcmul_(x, D[:, None]), after.transpose(2, 3).contiguous()


@_forward.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    runs: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)


@torch.library.custom_op("seqmix::state_space_scan_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_after: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    runs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, dt, A, B, C, D and state."""
    written = dt[..., None] * x
    logs = _log_decays(dt, A, runs)
    # Backwards, a state's gradient is multiplied by the decay of the position after it.
    shifted = torch.cat([logs[:, 1:], torch.zeros_like(logs[:, :1])], dim=1)
    before = state.new_empty(*state.shape[:2], -(-x.shape[1] // CHUNK), *state.shape[2:])
    grad_logs = logs.new_empty(logs.shape)
    grad_C, _ = attend(written, B, grad_y, logs, state, sum_to=B.shape[2], kept=before)
    grad_written, _ = attend(C, grad_y, B, shifted, grad_after.transpose(2, 3), backwards=True)
    grad_B, first = attend(
        grad_y,
        C,
        written,
        shifted,
        grad_after,
        backwards=True,
        sum_to=B.shape[2],
        against=Against(before, B, logs, grad_logs),
    )
    grad_x, grad_dt, grad_D = _ends(x, grad_y, grad_written, dt, D)
    return (
        grad_x,
        grad_dt.addcmul_(grad_logs, A),
        (grad_logs * dt).sum((0, 1)),
        grad_B,
        grad_C,
        grad_D.sum((0, 1)),
        first * logs[:, 0].exp()[:, :, None, None],
    )


@_backward.register_fake
def _(
    grad_y: Tensor,
    grad_after: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    runs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x_, dt_, A_, B_, C_, D_, state_ = (each.new_empty(each.shape) for each in (x, dt, A, B, C, D, state))
    return x_, dt_, A_, B_, C_, D_, state_


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:-1])


def _differentiate(ctx: Any, grad_y: Tensor, grad_after: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(grad_y, grad_after, *ctx.saved_tensors), None, None)


_forward.register_autograd(_differentiate, setup_context=_save)


class Against(NamedTuple):
    """For a call backwards: the call in order of time whose decays' gradients are wanted.

    Its queries must be the backward call's values, and its keys the queries. states: what it kept. value, log_decay:
    its own. grad_log: (batch, time, heads), written.
    """

    states: Tensor
    value: Tensor
    log_decay: Tensor
    grad_log: Tensor


def attend(
    key: Tensor,
    value: Tensor,
    query: Tensor,
    log_decay: Tensor,
    state: Tensor,
    *,
    backwards: bool = False,
    sum_to: int | None = None,
    kept: Tensor | None = None,
    against: Against | None = None,
) -> tuple[Tensor, Tensor]:
    """S[t] = exp(log_decay[t]) S[t-1] + key[t] (outer) value[t];  output[t] = query[t] · S[t], for every head.

    key and query (batch, time, heads or fewer, keys), value (batch, time, heads or fewer, values), log_decay (batch,
    time, heads), state (batch, heads, keys, values); fewer heads are shared by neighbours. Backwards, time runs from
    the last position to the first. With `sum_to` the outputs of neighbouring heads are added up to so many. The
    states before each chunk are written to `kept` (batch, heads, chunks, keys, values).

    Returns:
        output (batch, time, heads or `sum_to`, values) and the last state.
    """
    batch, time, heads = log_decay.shape
    outputs = heads if sum_to is None else sum_to
    threads = torch.get_num_threads()
    # Where the outputs are fewer than the threads, parts of their heads are summed apart.
    parts = max(1, min(heads // outputs, -(-threads // max(1, batch * outputs))))
    key, value, query = (_last_contiguous(each) for each in (key, value, query))
    log_decay, state = log_decay.contiguous(), state.contiguous()
    output = value.new_empty(parts, batch, time, outputs, value.shape[3])
    after = state.new_empty(state.shape)
    described = [_Heads(each.data_ptr(), *each.stride()[:3], heads // each.shape[2]) for each in (key, value, query)]
    sizes = (batch, time, heads, key.shape[3], value.shape[3], int(backwards), heads // outputs, parts, threads)
    addresses = [each.data_ptr() for each in (log_decay, state, output, after)]
    call = _Call(*sizes, *described, *addresses, None if kept is None else kept.data_ptr())
    if against is not None:
        other_value, other_log = _last_contiguous(against.value), against.log_decay.contiguous()
        call.against, call.against_decay = against.states.data_ptr(), other_log.data_ptr()
        call.against_value = _heads(other_value, heads)
        call.grad_log = against.grad_log.data_ptr()
    function("linear_attention")(ctypes.byref(call))
    return (output[0] if parts == 1 else output.sum(0)), after


def _ends(x: Tensor, grad_y: Tensor, grad_written: Tensor, dt: Tensor, D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dt grad_u + D grad_y, grad_u · x, and grad_y · x for every position, from the gradient of u = dt x."""
    grad_x = grad_written.new_empty(x.shape)
    grad_dt, grad_D = dt.new_empty(dt.shape), dt.new_empty(dt.shape)
    x, grad_y, dt, D = _last_contiguous(x), _last_contiguous(grad_y), dt.contiguous(), D.contiguous()
    heads = x.shape[2]
    read = (_heads(x, heads), _heads(grad_y, heads))
    call = _Ends(*x.shape, torch.get_num_threads(), *read, *(t.data_ptr() for t in (grad_written, dt, D)))
    call.grad_x, call.grad_dt, call.grad_D = grad_x.data_ptr(), grad_dt.data_ptr(), grad_D.data_ptr()
    function("state_space_ends")(ctypes.byref(call))
    return grad_x, grad_dt, grad_D


def _heads(tensor: Tensor, heads: int) -> _Heads:
    return _Heads(tensor.data_ptr(), *tensor.stride()[:3], heads // tensor.shape[2])


def _last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _log_decays(dt: Tensor, A: Tensor, runs: Tensor | None) -> Tensor:
    """(batch, time, heads); minus infinity where a document begins."""
    logs = dt * A
    if runs is None:
        return logs
    return logs.masked_fill_(begins(runs)[:, :, None], -torch.inf)
