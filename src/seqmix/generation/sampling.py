"""From logits to a token: temperature, the k likeliest, the likeliest that make up a share p, and a seed.

One uniform number is drawn for each token and looked up in the cumulative distribution, so that engines whose logits
differ by rounding alone give the same text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqmix.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """temperature: what logits are divided by, 0 for always the likeliest token.

    top_k: draw among the k likeliest alone; None for all. top_p: among the likeliest that together reach this
    probability, at least one. seed: the same seed gives the same text.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature}: give a number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}: it must be at least 1")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: give a share above 0 and at most 1")
        if self.seed < 0:
            raise InputError(f"the seed is {self.seed}: it must not be negative")


class Sampler:
    """Draws one token after another."""

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config
        self._random = np.random.default_rng(config.seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """The next token, from logits (vocab,).

        Raises:
            InputError: logits that are not numbers.
        """
        if self.config.temperature == 0:
            token = int(np.argmax(logits))
            if math.isnan(logits[token]):
                raise _not_numbers()
            return token
        probabilities = self.probabilities(logits)
        ladder = np.cumsum(probabilities)
        drawn = self._random.random() * ladder[-1]
        # A token of probability 0 is a step of height 0, which side="right" passes over.
        return min(int(np.searchsorted(ladder, drawn, side="right")), int(np.flatnonzero(probabilities)[-1]))

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """What is drawn from, (vocab,), in float64; it sums to 1."""
        highest = float(logits.max())
        if not math.isfinite(highest):
            raise _not_numbers()
        config = self.config
        weights = np.exp((logits.astype(np.float64) - highest) / max(config.temperature, np.finfo(np.float64).tiny))
        if (config.top_k is None or config.top_k >= len(weights)) and config.top_p == 1:
            return weights / weights.sum()
        # Stable, so that of equal logits the lower token stays.
        order = np.argsort(-logits, kind="stable")
        kept = len(order) if config.top_k is None else min(config.top_k, len(order))
        if config.top_p < 1:
            reached = np.cumsum(weights[order[:kept]])
            kept = int(np.searchsorted(reached, config.top_p * reached[-1])) + 1
        weights[order[kept:]] = 0
        return weights / weights.sum()


def _not_numbers() -> InputError:
    return InputError("the model's logits are not finite numbers: its training went wrong, train again")
