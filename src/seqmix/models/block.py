"""One layer of a model: a mixer between positions, then a gated feed-forward within each.

    pre:   x <- x + mixer(norm(x));  x <- x + feed_forward(norm(x))
    post:  x <- norm(x + mixer(x));  x <- norm(x + feed_forward(x))

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from seqmix.cost import Cost, linear_flops
from seqmix.kernels.gate import swiglu
from seqmix.kernels.norm import add_norm
from seqmix.kernels.recompute import offer, recomputing
from seqmix.mixer import Mixed, State
from seqmix.mixers import create_mixer
from seqmix.models.config import SeqmixConfig


class RMSNorm(nn.RMSNorm):
    """torch's, through our kernels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.with_residual(x, None)[1]

    def with_residual(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x + y, or x without y; its norm)."""
        assert self.eps is not None
        return add_norm(x, y, self.weight, eps=self.eps)


class LayerNorm(nn.LayerNorm):
    """torch's, through our kernels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.with_residual(x, None)[1]

    def with_residual(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x + y, or x without y; its norm)."""
        return add_norm(x, y, self.weight, self.bias, eps=self.eps, centred=True)


def make_norm(config: SeqmixConfig) -> RMSNorm | LayerNorm:
    """The norm that the config names, over the model's width."""
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class Pending(NamedTuple):
    """What a block returns: its output is x + branch, a sum that the next norm forms on its way (None: x alone)."""

    x: Tensor
    branch: Tensor | None
    state: State | None


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), each position by itself."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, width, bias=False)
        self.up_proj = nn.Linear(dim, width, bias=False)
        self.down_proj = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        product = swiglu(gate, up)
        offer(product, partial(swiglu, gate.detach(), up.detach()))
        return self.down_proj(product)

    def cost(self, positions: int) -> Cost:
        dim, width = self.gate_proj.in_features, self.gate_proj.out_features
        return Cost(
            product_flops=linear_flops(positions, dim, 3 * width),
            other_flops=positions * 6 * width,
            parameters=3 * dim * width,
            bytes_moved=3 * dim * width * self.gate_proj.weight.element_size(),
        )


class Block(GradientCheckpointingLayer):
    """A mixer with its norm and residual, and the feed-forward with its own, where the config has one."""

    def __init__(self, config: SeqmixConfig, layer: int) -> None:
        super().__init__()
        options = dict(config.mixer_of_layer(layer))
        self.mixer = create_mixer(options.pop("name"), config.hidden_size, **options)
        self.mixer_norm = make_norm(config)
        width = config.feed_forward_of_layer(layer)
        self.feed_forward = FeedForward(config.hidden_size, width) if width else None
        self.feed_forward_norm = make_norm(config) if width else None
        self.is_pre_norm = config.norm_position == "pre"

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
        branch: Tensor | None = None,
    ) -> Pending:
        """As the mixer's forward on x (batch, time, dim), or on x + branch."""
        # Checkpointing keeps nothing of a block, and must see what is kept inside.
        is_kept = not self.training or self.gradient_checkpointing or torch.compiler.is_compiling()
        with nullcontext() if is_kept or not torch.is_grad_enabled() else recomputing():
            if self.is_pre_norm:
                return self._forward_pre(x, state, document_ids, capacity, branch)
            assert branch is None
            y, after = self.mixer(x, state, document_ids=document_ids, capacity=capacity)
            x = self.mixer_norm.with_residual(x, y)[1]
            if self.feed_forward is not None:
                x = self._feed_forward_norm().with_residual(x, self.feed_forward(x))[1]
            return Pending(x, None, after)

    def _forward_pre(
        self, x: Tensor, state: State | None, document_ids: Tensor | None, capacity: int | None, branch: Tensor | None
    ) -> Pending:
        x, inner = self.mixer_norm.with_residual(x, branch)
        offer(inner, partial(self.mixer_norm, x.detach()))
        y, after = self.mixer(inner, state, document_ids=document_ids, capacity=capacity)
        if self.feed_forward is None:
            return Pending(x, y, after)
        norm = self._feed_forward_norm()
        x, inner = norm.with_residual(x, y)
        offer(inner, partial(norm, x.detach()))
        return Pending(x, self.feed_forward(inner), after)

    def step(self, x: Tensor, state: State) -> Mixed:
        """As the mixer's step, x (batch, dim)."""
        if not self.is_pre_norm:
            y, after = self.mixer.step(x, state)
            x = self.mixer_norm(x + y)
            return Mixed(x if self.feed_forward is None else self._feed_forward_norm()(x + self.feed_forward(x)), after)
        y, after = self.mixer.step(self.mixer_norm(x), state)
        x = x + y
        return Mixed(x if self.feed_forward is None else x + self.feed_forward(self._feed_forward_norm()(x)), after)

    def _feed_forward_norm(self) -> RMSNorm | LayerNorm:
        assert self.feed_forward_norm is not None
        return self.feed_forward_norm

    def _around_mixer(self, positions: int) -> Cost:
        """The cost of norms, residuals and feed-forward."""
        norms = [norm for norm in (self.mixer_norm, self.feed_forward_norm) if norm is not None]
        weights = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
        cost = Cost(other_flops=len(norms) * 6 * positions * self.mixer.dim, parameters=weights)
        return cost if self.feed_forward is None else cost + self.feed_forward.cost(positions)

    def cost(self, batch: int, time: int) -> Cost:
        """The cost of forward over `batch` rows of `time` positions."""
        return self.mixer.cost(batch, time) + self._around_mixer(batch * time)

    def step_cost(self, batch: int, position: int) -> Cost:
        """The cost of one step with `position` tokens already read."""
        return self.mixer.step_cost(batch, position) + self._around_mixer(batch)
