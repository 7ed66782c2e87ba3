"""RWKV-7: a matrix state that decays by channel, removes what a key holds and writes something new (a delta rule).

    x_i = x + mu_i * (shift(x) - x) for each i of r, w, k, v, a, g                 arXiv 2503.14456, section 4
    r, k, v = W_r x_r, W_k x_k, W_v x_v
    w = exp(-sigmoid(w0 + tanh(x_w W1) W2) / sqrt(e))          a = sigmoid(a0 + x_a A1 A2)
    g = sigmoid(x_g G1) G2                                     kappa = normalize(k * k_k), each head
    v = v + (v_first - v) * sigmoid(v0 + x_v V1 V2)            above the first layer, whose v is v_first
    k = k * (1 + (a - 1) * k_a)
    S[t] = S[t-1] diag(w) - (S[t-1] kappa)(a * kappa)ᵀ + v kᵀ      for each head
    y = W_o((GroupNorm(S r) + (r · k * r_k) v) * g)

As matrices: values are v; M[t, s] = k[s]ᵀ G[s+1] ... G[t] r[t] with G = diag(w) - kappa (a * kappa)ᵀ, and beside it,
past the norm, a diagonal one, r · k * r_k. The rest is the readout.

Sizes and starting values are RWKV-LM's. Its optimizer decays the weights of the four square projections alone
(`no_decay` names all others) and gives w0 twice the learning rate (`rate_scales`).

Shapes: B batch, T time, D model width, H heads, N head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqmix.cost import Cost, linear_flops
from seqmix.errors import InputError
from seqmix.kernels.delta_rule import delta_rule, delta_rule_step, mixing_weights, scan_flops, step_flops
from seqmix.mixer import BOOKKEEPING_BYTES, Mixed, Mixing, SharingMixer, State, Traits, causal_mask, place
from seqmix.mixers.rwkv.parts import (
    LayerConfig,
    LowRank,
    default_rank,
    head_width,
    line,
    norm_heads,
    orthogonal_,
    ramp,
)
from seqmix.mixers.rwkv.token_shift import ShiftState, last_input, shift_alone, token_shift

MU_POWERS = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
"""Who reads x beside the input before it: in the first layer mu of channel c starts at 1 - (c / D)^power."""


@dataclass
class RWKV7State(ShiftState):
    """matrix: (batch, heads, value width, key width), S after the last position, in float32 or wider."""

    matrix: Tensor


@dataclass(frozen=True, kw_only=True)
class RWKV7Config(LayerConfig):
    """The sizes of RWKV-7, and where the layer stands in its model.

    head_dim: N; None takes the largest divisor of dim up to 64. value_residual: whether v moves towards the first
        layer's, which must then be handed on (every layer but the first). decay_rank, rate_rank, value_rank, gate_rank:
        of the low-rank projections of w, a, v and g; None takes 2.5, 2.5, 1.7 and 5 times the square root of dim to
        the nearest multiple of 32. norm_eps: of the norm of the heads. chunk: positions the scan handles at once; it
        changes the speed and nothing else.
    """

    head_dim: int | None = None
    value_residual: bool = False
    decay_rank: int | None = None
    rate_rank: int | None = None
    value_rank: int | None = None
    gate_rank: int | None = None
    norm_eps: float = 64e-5
    chunk: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decay_rank", "rate_rank", "value_rank", "gate_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1, or None for RWKV-7's rule")
        if not 1 <= self.chunk <= 64:
            raise InputError(f"chunk is {self.chunk}: it must be between 1 and 64")


class _Projected(NamedTuple):
    """All that a position reads, (..., H, N) each: r, logarithm of w, k, v, kappa, a; and g (..., D)."""

    r: Tensor
    log_decay: Tensor
    k: Tensor
    v: Tensor
    kappa: Tensor
    a: Tensor
    g: Tensor

    @property
    def scanned(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.r, self.log_decay, self.k, self.v, self.kappa, self.a


class RWKV7(SharingMixer):
    """y = W_o((GroupNorm(delta rule of r, w, k, v, kappa, a) + bonus * v) * g), all from x and the input before it."""

    config_class = RWKV7Config
    config: RWKV7Config

    def __init__(self, dim: int, config: RWKV7Config | None = None) -> None:
        super().__init__(dim, config)
        config = self.config
        self.head_dim = head_width(dim, config.head_dim)
        self.num_heads = dim // self.head_dim
        self.mu = nn.ParameterDict({name: nn.Parameter(torch.empty(dim)) for name in MU_POWERS})
        self.decay = LowRank(dim, config.decay_rank or default_rank(dim, 2.5), torch.tanh)
        self.rate = LowRank(dim, config.rate_rank or default_rank(dim, 2.5))
        self.gate = LowRank(dim, config.gate_rank or default_rank(dim, 5), torch.sigmoid, has_base=False)
        self.residual = LowRank(dim, config.value_rank or default_rank(dim, 1.7)) if config.value_residual else None
        self.k_k = nn.Parameter(torch.empty(dim))
        self.k_a = nn.Parameter(torch.empty(dim))
        self.r_k = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
        self.receptance, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.norm = nn.GroupNorm(self.num_heads, dim, eps=config.norm_eps)
        self.reset_parameters()

    @classmethod
    def examples(cls) -> Sequence[tuple[int, Mapping[str, Any]]]:
        ranks = {"decay_rank": 3, "rate_rank": 4, "value_rank": 2, "gate_rank": 5}
        return [
            (8, {"head_dim": 4, "chunk": 4, **ranks}),
            (6, {"head_dim": 3, "value_residual": True, "layer": 1, "layers": 3, "norm_eps": 1e-3, **ranks}),
            (5, {"value_residual": True, "chunk": 64}),
        ]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        config, dim, width = self.config, self.dim, self.head_dim
        for name, power in MU_POWERS.items():
            self.mu[name].copy_(1 - ramp(dim) ** (power * config.falling))
        middle = (width - 1) / 2
        wave = (torch.arange(dim, dtype=torch.float64) % width - middle) / middle
        wave, linear = wave * wave.abs(), line(dim) - 0.5
        bases = {self.decay: 6 * line(dim) ** (1 + config.rising**0.3) - 5.5 + 2.5 * wave}
        bases[self.rate] = -0.19 + 0.3 * wave + 0.4 * linear
        if self.residual is not None:
            bases[self.residual] = 0.73 - 0.4 * linear
        for part, base in bases.items():
            part.start(base)
        self.gate.start()
        self.k_k.copy_(0.71 - 0.1 * linear)
        nn.init.constant_(self.k_a, 1.02)
        nn.init.constant_(self.r_k, -0.04)
        for layer, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
            orthogonal_(layer.weight, gain)
        nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.norm.weight, config.norm_scale)
        nn.init.zeros_(self.norm.bias)

    def no_decay(self) -> set[str]:
        decayed = {f"{name}.weight" for name in ("receptance", "key", "value", "output")}
        return {name for name, _ in self.named_parameters()} - decayed

    def rate_scales(self) -> dict[str, float]:
        return {"decay.base": 2.0}

    @property
    def traits(self) -> Traits:
        return Traits(causal=True, content_dependent=True, state_growth="constant", reach=2)

    @property
    def receptive_field(self) -> None:
        return None

    @property
    def head_spans(self) -> list[int | None]:
        # The heads of the bonus see what their own position holds.
        return [None] * self.num_heads + [self.traits.reach] * self.num_heads

    @property
    def needs_shared(self) -> bool:
        return self.config.value_residual

    def _shifted(self, name: str, x: Tensor, away: Tensor) -> Tensor:
        return torch.addcmul(x, away, self.mu[name])

    def _project(self, x: Tensor, shifted: Tensor, first: Tensor | None) -> tuple[_Projected, Tensor]:
        """What the scan and the readout need at each position, and the values to hand on (..., D)."""
        away = shifted - x
        r, w, k, v, a, g = (self._shifted(name, x, away) for name in MU_POWERS)
        wide = torch.promote_types(x.dtype, torch.float32)
        value = handed_on = self.value(v)
        if self.residual is not None:
            if first is None:
                raise InputError(
                    "value_residual is on but nothing was handed on: give forward_sharing the values that the first "
                    "layer returned, or build this layer with value_residual=False"
                )
            value = value + (first.to(value.dtype) - value) * torch.sigmoid(self.residual(v))
            handed_on = first
        rate, key = torch.sigmoid(self.rate(a)), self.key(k)
        kappa = F.normalize(self._heads(key * self.k_k).to(wide), dim=-1)
        key = key * (1 + (rate - 1) * self.k_a)
        log_decay = -math.exp(-0.5) * torch.sigmoid(self.decay(w).to(wide))
        r, log_decay, key, value, rate = (
            self._heads(part) for part in (self.receptance(r), log_decay, key, value, rate)
        )
        return _Projected(r, log_decay, key, value, kappa, rate, self.gate(g)), handed_on

    def _heads(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (self.num_heads, self.head_dim))

    def _bonus(self, projected: _Projected) -> Tensor:
        """(..., H, 1): r · k * r_k."""
        return (projected.r * projected.k * self.r_k).sum(-1, keepdim=True)

    def _read(self, read: Tensor, bonus: Tensor, gate: Tensor) -> Tensor:
        """From what the states gave and the bonus times v, (..., H, N) each, to y."""
        return self.output((norm_heads(read, self.norm) + bonus.flatten(-2)).to(gate.dtype) * gate)

    def forward_sharing(
        self,
        x: Tensor,
        state: State | None,
        shared: Tensor | None,
        *,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
    ) -> tuple[Mixed, Tensor]:
        before = self.init_state(len(x), device=x.device, dtype=x.dtype) if state is None else cast(RWKV7State, state)
        placement = place(x, state, document_ids)
        projected, first = self._project(x, token_shift(x, before.last, placement), shared)
        runs = placement.runs if placement.packed else None
        read, matrix = delta_rule(*projected.scanned, state=before.matrix, runs=runs, chunk=self.config.chunk)
        y = self._read(read, self._bonus(projected) * projected.v, projected.g)
        after = RWKV7State(placement.position, placement.document, last_input(x, before.last), matrix)
        return Mixed(y, after), first

    def init_state(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> RWKV7State:
        device = self.k_k.device if device is None else device
        dtype = dtype or self.k_k.dtype
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        last = torch.zeros(batch, self.dim, dtype=dtype, device=device)
        sizes = (batch, self.num_heads, self.head_dim, self.head_dim)
        matrix = torch.zeros(sizes, dtype=torch.promote_types(dtype, torch.float32), device=device)
        return RWKV7State(count, count.clone(), last, matrix)

    def step_sharing(self, x: Tensor, state: State, shared: Tensor | None) -> tuple[Mixed, Tensor]:
        before = cast(RWKV7State, state)
        projected, first = self._project(x, before.last.to(x.dtype), shared)
        read, matrix = delta_rule_step(*projected.scanned, before.matrix)
        y = self._read(read, self._bonus(projected) * projected.v, projected.g)
        return Mixed(y, RWKV7State(before.position + 1, before.document, x.clone(), matrix)), first

    def mixing(self, x: Tensor, shared: Tensor | None = None) -> list[Mixing]:
        """The states' matrices, and the diagonal ones of the bonus, which is not normalised."""
        projected, _ = self._project(x, shift_alone(x), shared)
        r, log_decay, k, v, kappa, a = projected.scanned
        matrix = mixing_weights(r, log_decay, k, kappa, a, chunk=self.config.chunk).to(x.dtype)
        bonus = torch.diag_embed(self._bonus(projected)[..., 0].transpose(1, 2))
        return [Mixing(matrix, v.transpose(1, 2)), Mixing(bonus, v.transpose(1, 2))]

    def readout(self, mixed: list[Tensor], x: Tensor, shared: Tensor | None = None) -> Tensor:
        gate = self.gate(self._shifted("g", x, shift_alone(x) - x))
        read, bonus = (part.transpose(1, 2) for part in mixed)
        return self._read(read, bonus, gate)

    def links(self, time: int) -> Tensor:
        return causal_mask(time, device=self.k_k.device)

    def _cost(self, batch: int, positions: int, scanned: int) -> Cost:
        parts = (self.decay, self.rate, self.gate, self.residual)
        ranks = sum(part.rank for part in parts if part is not None)
        products = linear_flops(positions, self.dim, 4 * self.dim + 2 * ranks)
        size = self.k_k.element_size()
        matrix = self.dim * self.head_dim * max(4, size)
        state_bytes = batch * (self.dim * size + matrix + BOOKKEEPING_BYTES)
        return Cost(
            product_flops=products + scanned,
            other_flops=positions * (70 * self.dim + 4 * ranks),
            parameters=self.num_parameters,
            state_bytes=state_bytes,
            bytes_moved=size * (self.num_parameters + 2 * positions * self.dim) + state_bytes,
        )

    def cost(self, batch: int, time: int) -> Cost:
        scanned = scan_flops(time, self.num_heads, self.head_dim, self.head_dim, self.config.chunk)
        return self._cost(batch, batch * time, batch * scanned)

    def step_cost(self, batch: int, position: int) -> Cost:
        return self._cost(batch, batch, batch * step_flops(self.num_heads, self.head_dim, self.head_dim))
