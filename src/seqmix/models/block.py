"""One layer of a model: a mixer between positions, then a gated feed-forward within each.

    pre:   x <- x + mixer(norm(x));  x <- x + feed_forward(norm(x))
    post:  x <- norm(x + mixer(x));  x <- norm(x + feed_forward(x))

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from seqmix.cost import Cost, linear_flops
from seqmix.mixer import Mixed, State
from seqmix.mixers import create_mixer
from seqmix.models.config import SeqmixConfig


def make_norm(config: SeqmixConfig) -> nn.Module:
    """The norm that the config names, over the model's width."""
    if config.norm == "rms":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), each position by itself."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, width, bias=False)
        self.up_proj = nn.Linear(dim, width, bias=False)
        self.down_proj = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

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
    ) -> Mixed:
        """As the mixer's forward, x (batch, time, dim)."""
        y, after = self.mixer(
            self.mixer_norm(x) if self.is_pre_norm else x, state, document_ids=document_ids, capacity=capacity
        )
        return Mixed(self._rest(x, y), after)

    def step(self, x: Tensor, state: State) -> Mixed:
        """As the mixer's step, x (batch, dim)."""
        y, after = self.mixer.step(self.mixer_norm(x) if self.is_pre_norm else x, state)
        return Mixed(self._rest(x, y), after)

    def _rest(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The residual around the mixer's output, and the feed-forward."""
        x = x + mixed
        if not self.is_pre_norm:
            x = self.mixer_norm(x)
        if self.feed_forward is None:
            return x
        assert self.feed_forward_norm is not None
        if self.is_pre_norm:
            return x + self.feed_forward(self.feed_forward_norm(x))
        return self.feed_forward_norm(x + self.feed_forward(x))

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
