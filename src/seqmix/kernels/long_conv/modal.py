"""The long convolution with a sum of decaying waves for its filter, which a state of fixed size is enough for.

    taps[k] = Re sum over n of R_n lambda_n^k,  lambda = exp(-decay + i angle)
    s[t] = lambda s[t - 1] + u[t];   y[t] = Re sum over n of R_n s_n[t]            at a document's beginning s is zero

`scan_by_step` is that loop; `scan` takes chunks of positions: inside each a convolution with the first taps, from one
to the next the state.

Shapes: B batch, J chunks, Q positions of a chunk, T time, D channels, N modes; M = 2 N, the last axis of a state, holds
the real parts of all modes, then the imaginary ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from seqmix.kernels.long_conv.fft import convolve

CHUNK = 128
"""Positions of a chunk."""


class Modes(NamedTuple):
    """decay (above 0), angle, real, imaginary: (dim, modes); the last two are of R."""

    decay: Tensor
    angle: Tensor
    real: Tensor
    imaginary: Tensor

    def powers(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts of lambda^first ... lambda^(last - 1), (dim, modes, last - first)."""
        steps = torch.arange(first, last, device=self.decay.device, dtype=self.decay.dtype)
        size, phase = torch.exp(-self.decay[..., None] * steps), self.angle[..., None] * steps
        return size * phase.cos(), size * phase.sin()

    def taps(self, count: int) -> Tensor:
        """(dim, count)."""
        real, imaginary = self.powers(0, count)
        return (self.real[..., None] * real - self.imaginary[..., None] * imaginary).sum(dim=1)


def step(u_BD: Tensor, modes: Modes, state_BDM: Tensor) -> tuple[Tensor, Tensor]:
    """y (batch, dim) of one more input, and the state after it."""
    after = _turned(state_BDM, modes, 1)
    after = torch.cat([after[..., : modes.decay.shape[1]] + u_BD[..., None], after[..., modes.decay.shape[1] :]], dim=2)
    return (after * torch.cat([modes.real, -modes.imaginary], dim=1)).sum(dim=2), after


def scan_by_step(u_BTD: Tensor, modes: Modes, state_BDM: Tensor, runs_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (batch, time, dim) and the last state, position by position."""
    outputs = []
    for t in range(u_BTD.shape[1]):
        if runs_BT is not None:
            same = runs_BT[:, t] == (runs_BT[:, t - 1] if t else torch.zeros_like(runs_BT[:, 0]))
            state_BDM = torch.where(same[:, None, None], state_BDM, state_BDM.new_zeros(()))
        y, state_BDM = step(u_BTD[:, t], modes, state_BDM)
        outputs.append(y)
    return (torch.stack(outputs, dim=1) if outputs else torch.zeros_like(u_BTD)), state_BDM


def scan(u_BTD: Tensor, modes: Modes, state_BDM: Tensor, runs_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `scan_by_step`, chunk by chunk."""
    batch, time, _ = u_BTD.shape
    if time == 0:
        return torch.zeros_like(u_BTD), state_BDM
    length = min(CHUNK, time)
    count = -(-time // length)
    fill = count * length - time
    u_BJQD = F.pad(u_BTD, (0, 0, 0, fill)).unflatten(1, (count, length))
    packed = runs_BT is not None
    runs_BT = u_BTD.new_zeros((batch, time), dtype=torch.int64) if runs_BT is None else runs_BT
    runs_BJQ = F.pad(runs_BT, (0, fill), value=-1).unflatten(1, (count, length))
    last_BJ = torch.cat([runs_BJQ[:, :-1, -1], runs_BT[:, -1:]], dim=1)
    before_BJ = torch.cat([torch.zeros_like(last_BJ[:, :1]), last_BJ[:, :-1]], dim=1)

    inside = convolve(
        u_BJQD.flatten(0, 1), modes.taps(length), None, runs_BJQ.flatten(0, 1) if packed else None
    ).unflatten(0, (batch, count))

    # What a chunk hands on: from the document that its last position is in.
    handed = torch.where((runs_BJQ == last_BJ[..., None])[..., None], u_BJQD, u_BJQD.new_zeros(()))
    real_DNQ, imaginary_DNQ = modes.powers(0, length)
    late_DMQ = torch.cat([real_DNQ, imaginary_DNQ], dim=1).flip(2)
    tail = time - (count - 1) * length
    new_BJDM = _sums(handed[:, :-1], late_DMQ)
    new_BDM = _sums(handed[:, -1:, :tail], late_DMQ[:, :, length - tail :])[:, 0]

    states = []
    keeps_BJ = (last_BJ == before_BJ)[..., None, None]
    for j in range(count):
        states.append(state_BDM)
        state_BDM = torch.where(keeps_BJ[:, j], state_BDM, state_BDM.new_zeros(()))
        is_last = j == count - 1
        state_BDM = _turned(state_BDM, modes, tail if is_last else length) + (new_BDM if is_last else new_BJDM[:, j])

    real_DNQ, imaginary_DNQ = modes.powers(1, length + 1)
    R, I = modes.real[..., None], modes.imaginary[..., None]  # noqa: E741
    read_DMQ = torch.cat([R * real_DNQ - I * imaginary_DNQ, -R * imaginary_DNQ - I * real_DNQ], dim=1)
    states_DXM = torch.stack(states, dim=1).flatten(0, 1).transpose(0, 1)
    carried = torch.bmm(states_DXM, read_DMQ).permute(1, 2, 0).unflatten(0, (batch, count))
    hears = (runs_BJQ == before_BJ[..., None])[..., None]
    y = inside + torch.where(hears, carried, carried.new_zeros(()))
    return y.flatten(1, 2)[:, :time], state_BDM


def _sums(u_BJQD: Tensor, late_DMQ: Tensor) -> Tensor:
    """(batch, chunks, dim, M): sum over q of u[q] late[q]."""
    u_DXQ = u_BJQD.flatten(0, 1).permute(2, 0, 1)
    return torch.bmm(u_DXQ, late_DMQ.transpose(1, 2)).transpose(0, 1).unflatten(0, u_BJQD.shape[:2])


def _turned(state_BDM: Tensor, modes: Modes, steps: int) -> Tensor:
    """The state after `steps` positions without input."""
    real, imaginary = (part[..., 0] for part in modes.powers(steps, steps + 1))
    a, b = state_BDM.chunk(2, dim=2)
    return torch.cat([a * real - b * imaginary, a * imaginary + b * real], dim=2)


def scan_flops(time: int, modes: int) -> int:
    """Product FLOPs of `scan` for one channel of one row: what chunks hand on, and what they are handed."""
    length = min(CHUNK, time)
    return 4 * modes * (time + -(-time // max(1, length)) * length)
