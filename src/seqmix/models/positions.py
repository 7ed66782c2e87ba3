"""Position information that is added to, or turns, the embedding; what attention does itself is in its options.

    learned:     e[t] + P[t], a table of one vector a position                       arXiv 1706.03762, section 3.5
    sinusoidal:  e[t] + s * PE[t],  PE[t, 2i] = sin(t / theta^(2i/d)),  PE[t, 2i+1] = cos(t / theta^(2i/d))   the same
    rope:        e[t] turned by its position (`mixers/rotary.py`)

The paper's embeddings have components of size 1 beside sinusoids of size 1; ours start with the standard deviation
`initializer_range`, so s is that.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqmix.errors import InputError
from seqmix.mixers.rotary import rotate, rotation
from seqmix.models.config import SeqmixConfig


class PositionEmbedding(nn.Module):
    """The embedding with its position, as the config's `embedding_position` says: none, learned, sinusoidal or rope."""

    def __init__(self, config: SeqmixConfig) -> None:
        super().__init__()
        self.kind = config.embedding_position
        self.theta, self.scale = config.rope_theta, config.initializer_range
        is_learned = self.kind == "learned"
        self.table = nn.Embedding(config.max_position_embeddings, config.hidden_size) if is_learned else None

    def forward(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """Embeddings (..., D) at positions (...), the offsets within each document.

        Raises:
            InputError: a position that the learned table does not hold.
        """
        if self.kind == "rope":
            return rotate(embeddings, positions, self.theta)
        if self.kind == "sinusoidal":
            # The last channel of an odd width keeps its sine.
            width = embeddings.shape[-1]
            cosines, sines = rotation(positions, width + width % 2, self.theta, embeddings.dtype)
            return embeddings + self.scale * torch.stack([sines, cosines], dim=-1).flatten(-2)[..., :width]
        if self.table is None:
            return embeddings
        # A graph that is being captured must not ask for a number.
        is_captured = positions.is_cuda and torch.cuda.is_current_stream_capturing()
        if positions.numel() and not (is_captured or torch.compiler.is_compiling()):
            last = int(positions.max())
            if last >= self.table.num_embeddings:
                raise InputError(
                    f"position {last} was reached, but the model has learned {self.table.num_embeddings} positions: "
                    "train it with a larger context, or with another kind of position"
                )
        return embeddings + self.table(positions)

    @property
    def longest(self) -> int | None:
        """How many positions there are; None for no bound."""
        return None if self.table is None else self.table.num_embeddings
