"""RWKV-6: linear attention whose state decays by channel, as the input says, behind a token shift that it says too.

    d = shift(x) - x;   m_i = tanh((x + mu_x * d) A) B_i for each i of w, k, v, r, g       arXiv 2404.05892, section 4
    x_i = x + (mu_i + m_i) * d
    r, k, v = W_r x_r, W_k x_k, W_v x_v;   g = silu(W_g x_g);   w = exp(-exp(w0 + tanh(x_w W1) W2))
    s[t] = S[t-1] r[t] + (r[t] · u * k[t]) v[t];   S[t] = S[t-1] diag(w[t]) + v[t] k[t]ᵀ    for each head
    y = W_o(GroupNorm(s) * g)

As a matrix: values are v; M[t, s] = r[t] · w[s+1] * ... * w[t-1] * k[s], and r[t] · u * k[t] on the diagonal; the norm,
the gate and W_o are the readout.

Sizes and starting values are RWKV-LM's. Its optimizer decays the weights of the five square projections alone
(`no_decay` names all others) and gives w0 twice the learning rate (`rate_scales`).

Shapes: B batch, T time, D model width, H heads, N head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.decayed_attention import (
    decayed_attention,
    decayed_attention_step,
    mixing_weights,
    scan_flops,
    step_flops,
)
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixer, Mixing, State, Traits, causal_mask, place
from seqmix.mixers.rwkv.parts import LayerConfig, LowRank, head_width, line, norm_heads, orthogonal_, ramp
from seqmix.mixers.rwkv.token_shift import ShiftState, last_input, shift_alone, token_shift

MU_POWERS = {"w": 1.0, "k": 1.0, "v": 1.0, "r": 0.5, "g": 0.5}
"""Who reads x beside the input before it: in the first layer mu of channel c starts at 1 - (c / D)^power."""


@dataclass
class RWKV6State(ShiftState):
    """matrix: (batch, heads, value width, key width), S after the last position, in float32 or wider."""

    matrix: Tensor


@dataclass(frozen=True, kw_only=True)
class RWKV6Config(LayerConfig):
    """The sizes of RWKV-6, and where the layer stands in its model.

    head_dim: N; None takes the largest divisor of dim up to 64. mix_rank, decay_rank: of the low-rank projections of
        the m and of w. norm_eps: of the norm of the heads. chunk: positions the scan handles at once; it changes the
        speed and nothing else.
    """

    head_dim: int | None = None
    mix_rank: int = 32
    decay_rank: int = 64
    norm_eps: float = 64e-5
    chunk: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mix_rank", "decay_rank", "chunk"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1")


class _Projected(NamedTuple):
    """All that the scan reads of a position, (..., H, N) each."""

    r: Tensor
    log_decay: Tensor
    k: Tensor
    v: Tensor


class RWKV6(Mixer):
    """y = W_o(GroupNorm(decayed attention of r, w, k, v) * g), all from x and the input before it."""

    config_class = RWKV6Config
    config: RWKV6Config

    def __init__(self, dim: int, config: RWKV6Config | None = None) -> None:
        super().__init__(dim, config)
        config = self.config
        self.head_dim = head_width(dim, config.head_dim)
        self.num_heads = dim // self.head_dim
        self.mu = nn.ParameterDict({name: nn.Parameter(torch.empty(dim)) for name in ("x", *MU_POWERS)})
        self.mix_down = nn.Parameter(torch.empty(dim, len(MU_POWERS) * config.mix_rank))
        self.mix_up = nn.Parameter(torch.empty(len(MU_POWERS), config.mix_rank, dim))
        self.decay = LowRank(dim, config.decay_rank, torch.tanh)
        self.bonus = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
        self.receptance, self.key, self.value, self.gate, self.output = (
            nn.Linear(dim, dim, bias=False) for _ in range(5)
        )
        self.norm = nn.GroupNorm(self.num_heads, dim, eps=config.norm_eps)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (8, {"head_dim": 4, "mix_rank": 2, "decay_rank": 3, "chunk": 7}),
            (6, {"layer": 1, "layers": 3, "norm_eps": 1e-3}),
        ]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        config, dim = self.config, self.dim
        self.mu["x"].copy_(1 - ramp(dim) ** config.falling)
        for name, power in MU_POWERS.items():
            self.mu[name].copy_(1 - ramp(dim) ** (power * config.falling))
        self.mu["v"].sub_(0.3 * config.rising)
        nn.init.zeros_(self.mix_down)
        nn.init.uniform_(self.mix_up, -0.01, 0.01)
        self.decay.start(5 * line(dim) ** (0.7 + 1.3 * config.rising) - 6)
        nn.init.uniform_(self.decay.up, -0.01, 0.01)
        zigzag = 0.1 * ((torch.arange(dim, dtype=torch.float64) + 1) % 3 - 1)
        self.bonus.copy_((config.rising * (1 - line(dim)) + zigzag).view_as(self.bonus))
        for layer, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0), (self.gate, 0.1)):
            orthogonal_(layer.weight, gain)
        nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.norm.weight, config.norm_scale)
        nn.init.zeros_(self.norm.bias)

    def no_decay(self) -> set[str]:
        decayed = {f"{name}.weight" for name in ("receptance", "key", "value", "gate", "output")}
        return {name for name, _ in self.named_parameters()} - decayed

    def rate_scales(self) -> dict[str, float]:
        return {"decay.base": 2.0}

    @property
    def traits(self) -> Traits:
        return Traits(causal=True, content_dependent=True, state_growth="constant", reach=2)

    @property
    def receptive_field(self) -> None:
        return None

    def _blends(self, x: Tensor, shifted: Tensor) -> dict[str, Tensor]:
        """What each projection reads, (..., D)."""
        away = shifted - x
        inner = torch.tanh(torch.addcmul(x, away, self.mu["x"]) @ self.mix_down)
        ranks = inner.flatten(0, -2).unflatten(-1, (len(MU_POWERS), -1)).transpose(0, 1)
        moves = torch.bmm(ranks, self.mix_up).view(len(MU_POWERS), *x.shape)
        return {
            name: torch.addcmul(x, away, self.mu[name] + move)
            for name, move in zip(MU_POWERS, moves.unbind(0), strict=True)
        }

    def _gate(self, blends: Mapping[str, Tensor]) -> Tensor:
        return F.silu(self.gate(blends["g"]))

    def _project(self, blends: Mapping[str, Tensor]) -> _Projected:
        speed = self.decay(blends["w"])
        # exp(-exp(7)) is 0 in float64 too; without a bound the gradient of what overflows would be NaN.
        log_decay = -torch.exp(speed.to(torch.promote_types(speed.dtype, torch.float32)).clamp(max=7.0))
        parts = (self.receptance(blends["r"]), log_decay, self.key(blends["k"]), self.value(blends["v"]))
        return _Projected(*(part.unflatten(-1, (self.num_heads, self.head_dim)) for part in parts))

    def _read(self, mixed: Tensor, gate: Tensor) -> Tensor:
        return self.output(norm_heads(mixed, self.norm).to(gate.dtype) * gate)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> Mixed:
        before = self.init_state(len(x), device=x.device, dtype=x.dtype) if state is None else cast(RWKV6State, state)
        placement = place(x, state, document_ids)
        blends = self._blends(x, token_shift(x, before.last, placement))
        mixed, matrix = decayed_attention(
            *self._project(blends),
            self.bonus,
            state=before.matrix,
            runs=placement.runs if placement.packed else None,
            chunk=self.config.chunk,
        )
        after = RWKV6State(placement.position, placement.document, last_input(x, before.last), matrix)
        return Mixed(self._read(mixed, self._gate(blends)), after)

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> RWKV6State:
        device = self.bonus.device if device is None else device
        dtype = dtype or self.bonus.dtype
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        last = torch.zeros(batch, self.dim, dtype=dtype, device=device)
        sizes = (batch, self.num_heads, self.head_dim, self.head_dim)
        matrix = torch.zeros(sizes, dtype=torch.promote_types(dtype, torch.float32), device=device)
        return RWKV6State(count, count.clone(), last, matrix)

    def step(self, x: Tensor, state: State) -> Mixed:
        before = cast(RWKV6State, state)
        blends = self._blends(x, before.last.to(x.dtype))
        mixed, matrix = decayed_attention_step(*self._project(blends), self.bonus, before.matrix)
        after = RWKV6State(before.position + 1, before.document, x.clone(), matrix)
        return Mixed(self._read(mixed, self._gate(blends)), after)

    def mixing(self, x: Tensor) -> list[Mixing]:
        r, log_decay, k, v = self._project(self._blends(x, shift_alone(x)))
        matrix = mixing_weights(r, log_decay, k, self.bonus, chunk=self.config.chunk)
        return [Mixing(matrix.to(x.dtype), v.transpose(1, 2))]

    def readout(self, mixed: list[Tensor], x: Tensor) -> Tensor:
        return self._read(mixed[0].transpose(1, 2), self._gate(self._blends(x, shift_alone(x))))

    def links(self, time: int) -> Tensor:
        return causal_mask(time, device=self.bonus.device)

    def _cost(self, batch: int, positions: int, scanned: int) -> Cost:
        ranks = 2 * len(MU_POWERS) * self.config.mix_rank + 2 * self.config.decay_rank
        size = self.bonus.element_size()
        matrix = self.dim * self.head_dim * max(4, size)
        state_bytes = batch * (self.dim * size + matrix + BOOKKEEPING_BYTES)
        return Cost(
            product_flops=linear_flops(positions, self.dim, 5 * self.dim + ranks) + scanned,
            other_flops=positions * (90 * self.dim + 4 * ranks),
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )

    def cost(self, batch: int, time: int) -> Cost:
        scanned = scan_flops(time, self.num_heads, self.head_dim, self.head_dim, self.config.chunk)
        return self._cost(batch, batch * time, batch * scanned)

    def step_cost(self, batch: int, position: int) -> Cost:
        return self._cost(batch, batch, batch * step_flops(self.num_heads, self.head_dim, self.head_dim))
