"""The selective scan in plain torch: a loop over time whose gradient keeps one state for each chunk.

Autograd through a loop would keep every state, (batch, time, channels, states); here the backward computes those of
one chunk at a time once more, and everything but the recurrence itself is done for the whole chunk at once.

Shapes: B batch, T time, D channels, N states of a channel, Q positions of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqmix.kernels.selective_scan.reference import borders, skip_and_gate, step_sizes

CHUNK = 32


def scan(
    x_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None,
    z_BTD: Tensor | None,
    dt_bias_D: Tensor | None,
    state_BDN: Tensor,
    runs_BT: Tensor | None,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """As the reference: y (batch, time, channels) and the state after the last position."""
    s_BTD = step_sizes(dt_BTD, dt_bias_D, dt_softplus)
    starts_BT = None if runs_BT is None else borders(runs_BT)
    y_BTD, after_BDN = _Recurrence.apply(s_BTD, s_BTD * x_BTD, A_DN, B_BTN, C_BTN, state_BDN, starts_BT)
    return skip_and_gate(y_BTD, x_BTD, D_D, z_BTD), after_BDN


class _Recurrence(torch.autograd.Function):
    """h[t] = exp(s[t] A) h[t-1] + u[t] (outer) B[t];  y[t] = h[t] · C[t]."""

    @staticmethod
    def forward(
        ctx: Any, s: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(u)
        kept = []
        for begin in range(0, u.shape[1], CHUNK):
            piece = slice(begin, begin + CHUNK)
            kept.append(state)
            states = _states_of(s[:, piece], u[:, piece], A, B[:, piece], state, _piece(starts, piece))[0]
            y[:, piece] = torch.einsum("bqdn,bqn->bqd", states[:, 1:], C[:, piece])
            state = states[:, -1].clone()
        kept_states = torch.stack(kept, dim=1) if kept else state[:, None]
        ctx.save_for_backward(s, u, A, B, C, starts, kept_states)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_y, grad_h = grads
        s, u, A, B, C, starts, kept = ctx.saved_tensors
        grad_s, grad_u, grad_B, grad_C = (torch.empty_like(leaf) for leaf in (s, u, B, C))
        grad_A = torch.zeros_like(A)
        for begin in reversed(range(0, u.shape[1], CHUNK)):
            piece = slice(begin, begin + CHUNK)
            u_BQD, B_BQN, grad_BQD = u[:, piece], B[:, piece], grad_y[:, piece]
            states, decays = _states_of(s[:, piece], u_BQD, A, B_BQN, kept[:, begin // CHUNK], _piece(starts, piece))
            grad_C[:, piece] = torch.einsum("bqd,bqdn->bqn", grad_BQD, states[:, 1:])
            grad_states = grad_BQD[..., None] * C[:, piece, None]
            for t in reversed(range(grad_states.shape[1])):
                grad_states[:, t] += grad_h
                grad_h = grad_states[:, t] * decays[:, t]
            grad_u[:, piece] = torch.einsum("bqdn,bqn->bqd", grad_states, B_BQN)
            grad_B[:, piece] = torch.einsum("bqdn,bqd->bqn", grad_states, u_BQD)
            grad_exponents = grad_states.mul_(decays).mul_(states[:, :-1])
            grad_s[:, piece] = torch.einsum("bqdn,dn->bqd", grad_exponents, A)
            grad_A += torch.einsum("bqdn,bqd->dn", grad_exponents, s[:, piece])
        return grad_s, grad_u, grad_A, grad_B, grad_C, grad_h, None


def _piece(starts: Tensor | None, piece: slice) -> Tensor | None:
    return None if starts is None else starts[:, piece]


def _states_of(
    s_BQD: Tensor, u_BQD: Tensor, A_DN: Tensor, B_BQN: Tensor, state_BDN: Tensor, starts_BQ: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The states of a chunk, (batch, 1 + positions, channels, states) with the one before it, and the decays."""
    decays = torch.exp(s_BQD[..., None] * A_DN)
    if starts_BQ is not None:
        decays = decays.masked_fill_(starts_BQ[:, :, None, None], 0.0)
    states = torch.empty(decays.shape[0], decays.shape[1] + 1, *decays.shape[2:], dtype=s_BQD.dtype, device=A_DN.device)
    states[:, 0] = state_BDN
    torch.mul(u_BQD[..., None], B_BQN[:, :, None], out=states[:, 1:])
    for t in range(decays.shape[1]):
        states[:, t + 1].addcmul_(decays[:, t], states[:, t])
    return states, decays
