"""One layer of a model: a mixer between positions, then a gated feed-forward within each.

    pre:   x <- x + mixer(norm(x));  x <- x + feed_forward(norm(x))
    post:  x <- norm(x + mixer(x));  x <- norm(x + feed_forward(x))

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from seqmix.cost import Cost, linear_flops
from seqmix.kernels.gate import swiglu
from seqmix.kernels.recompute import offer, recomputing
from seqmix.mixer import BOOKKEEPING_BYTES, Mixer, SharingMixer, State
from seqmix.mixers import create_mixer
from seqmix.mixers.norms import LayerNorm, RMSNorm
from seqmix.models.config import SeqmixConfig


def make_norm(config: SeqmixConfig) -> RMSNorm | LayerNorm:
    """The norm that the config names, over the model's width."""
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class Pending(NamedTuple):
    """What a block returns: its output is x + branch, a sum that the next norm forms on its way (None: x alone).

    shared: what the first layer hands on, None where no mixer does.
    """

    x: Tensor
    branch: Tensor | None
    state: State | None
    shared: Tensor | None


class Stepped(NamedTuple):
    """What a block's step returns; the fields are those of Pending."""

    x: Tensor
    state: State
    shared: Tensor | None


@dataclass
class BlockState(State):
    """The states of a block whose feed-forward is a mixer too; any other block's state is its mixer's."""

    mixer: State
    feed_forward: State


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
        self.feed_forward: FeedForward | Mixer | None = None
        inner = config.feed_forward_mixer_of_layer(layer)
        if inner is not None:
            self.feed_forward = create_mixer(inner.pop("name"), config.hidden_size, **inner)
        elif width:
            self.feed_forward = FeedForward(config.hidden_size, width)
        self.feed_forward_norm = make_norm(config) if width else None
        self.is_pre_norm = config.norm_position == "pre"
        for mixer in self.mixers:
            mixer.check_context(config.max_position_embeddings)

    @property
    def mixers(self) -> list[Mixer]:
        """The mixers that a position goes through, in this order."""
        return [self.mixer, self.feed_forward] if isinstance(self.feed_forward, Mixer) else [self.mixer]

    def init_state(self, batch: int, capacity: int | None = None, **where: Any) -> State:
        """The state before the first token, as the mixer's."""
        state = self.mixer.init_state(batch, capacity, **where)
        if not isinstance(self.feed_forward, Mixer):
            return state
        inner = self.feed_forward.init_state(batch, capacity, **where)
        return BlockState(state.position.clone(), state.document.clone(), state, inner)

    def mixer_input(self, x: Tensor, branch: Tensor | None) -> Tensor:
        """What the mixer reads when the block reads x + branch."""
        return self.mixer_norm.with_residual(x, branch)[1] if self.is_pre_norm else x

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        document_ids: Tensor | None = None,
        capacity: int | None = None,
        branch: Tensor | None = None,
        shared: Tensor | None = None,
    ) -> Pending:
        """As the mixer's forward on x (batch, time, dim), or on x + branch."""
        # Checkpointing keeps nothing of a block, and must see what is kept inside.
        is_kept = not self.training or self.gradient_checkpointing or torch.compiler.is_compiling()
        with nullcontext() if is_kept or not torch.is_grad_enabled() else recomputing():
            if self.is_pre_norm:
                return self._forward_pre(x, state, document_ids, capacity, branch, shared)
            assert branch is None
            y, after, shared = self._mix(x, state, document_ids, capacity, shared)
            x = self.mixer_norm.with_residual(x, y)[1]
            if self.feed_forward is not None:
                y, after = self._feed(x, state, after, document_ids, capacity)
                x = self._feed_forward_norm().with_residual(x, y)[1]
            return Pending(x, None, after, shared)

    def _forward_pre(
        self,
        x: Tensor,
        state: State | None,
        document_ids: Tensor | None,
        capacity: int | None,
        branch: Tensor | None,
        shared: Tensor | None,
    ) -> Pending:
        x, inner = self.mixer_norm.with_residual(x, branch)
        offer(inner, partial(self.mixer_norm, x.detach()))
        y, after, shared = self._mix(inner, state, document_ids, capacity, shared)
        if self.feed_forward is None:
            return Pending(x, y, after, shared)
        norm = self._feed_forward_norm()
        x, inner = norm.with_residual(x, y)
        offer(inner, partial(norm, x.detach()))
        y, after = self._feed(inner, state, after, document_ids, capacity)
        return Pending(x, y, after, shared)

    def _mix(
        self,
        x: Tensor,
        state: State | None,
        document_ids: Tensor | None,
        capacity: int | None,
        shared: Tensor | None,
    ) -> tuple[Tensor, State | None, Tensor | None]:
        """The mixer's output, its state, and what is handed on."""
        own = state.mixer if isinstance(state, BlockState) else state
        if isinstance(self.mixer, SharingMixer):
            (y, after), shared = self.mixer.forward_sharing(
                x, own, shared, document_ids=document_ids, capacity=capacity
            )
        else:
            y, after = self.mixer(x, own, document_ids=document_ids, capacity=capacity)
        return y, after, shared

    def _feed(
        self,
        x: Tensor,
        state: State | None,
        after: State | None,
        document_ids: Tensor | None,
        capacity: int | None,
    ) -> tuple[Tensor, State | None]:
        """The feed-forward's output, and the block's state once the mixer's is `after`."""
        assert self.feed_forward is not None
        if not isinstance(self.feed_forward, Mixer):
            return self.feed_forward(x), after
        own = state.feed_forward if isinstance(state, BlockState) else None
        y, inner = self.feed_forward(x, own, document_ids=document_ids, capacity=capacity)
        assert after is not None
        return y, BlockState(after.position, after.document, after, inner)

    def step(self, x: Tensor, state: State, shared: Tensor | None = None) -> Stepped:
        """As the mixer's step, x (batch, dim)."""
        own = state.mixer if isinstance(state, BlockState) else state
        given = self.mixer_norm(x) if self.is_pre_norm else x
        if isinstance(self.mixer, SharingMixer):
            (y, after), shared = self.mixer.step_sharing(given, own, shared)
        else:
            y, after = self.mixer.step(given, own)
        x = x + y if self.is_pre_norm else self.mixer_norm(x + y)
        if self.feed_forward is None:
            return Stepped(x, after, shared)
        norm = self._feed_forward_norm()
        given = norm(x) if self.is_pre_norm else x
        if isinstance(self.feed_forward, Mixer):
            assert isinstance(state, BlockState)
            y, inner = self.feed_forward.step(given, state.feed_forward)
            after = BlockState(after.position, after.document, after, inner)
        else:
            y = self.feed_forward(given)
        return Stepped(x + y if self.is_pre_norm else norm(x + y), after, shared)

    def _feed_forward_norm(self) -> RMSNorm | LayerNorm:
        assert self.feed_forward_norm is not None
        return self.feed_forward_norm

    def _norms_cost(self, positions: int) -> Cost:
        """The cost of norms and residuals."""
        norms = [norm for norm in (self.mixer_norm, self.feed_forward_norm) if norm is not None]
        weights = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
        return Cost(other_flops=len(norms) * 6 * positions * self.mixer.dim, parameters=weights)

    def cost(self, batch: int, time: int) -> Cost:
        """The cost of forward over `batch` rows of `time` positions."""
        cost = self.mixer.cost(batch, time) + self._norms_cost(batch * time)
        if isinstance(self.feed_forward, Mixer):
            return cost + self.feed_forward.cost(batch, time) + Cost(state_bytes=batch * BOOKKEEPING_BYTES)
        return cost if self.feed_forward is None else cost + self.feed_forward.cost(batch * time)

    def step_cost(self, batch: int, position: int) -> Cost:
        """The cost of one step with `position` tokens already read."""
        cost = self.mixer.step_cost(batch, position) + self._norms_cost(batch)
        if isinstance(self.feed_forward, Mixer):
            return cost + self.feed_forward.step_cost(batch, position) + Cost(state_bytes=batch * BOOKKEEPING_BYTES)
        return cost if self.feed_forward is None else cost + self.feed_forward.cost(batch)
