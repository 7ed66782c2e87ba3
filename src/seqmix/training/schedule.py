"""The budget and what follows it: the learning rate rises, then falls as half a cosine.

    lr(s) = peak * s / w                                               while s < w
    lr(s) = peak * (m + (1 - m) * (1 + cos(pi * (s - w) / (1 - w))) / 2)   afterwards

s is the share of the budget that is spent, w the warm-up's share, m the last rate over the peak (SGDR without
restarts, arXiv 1608.03983).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from seqmix.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate at each share of the budget. The first rate is never zero: a step should move something."""

    peak: float
    warmup_share: float
    min_lr_share: float

    def learning_rate(self, share: float) -> float:
        """The rate when `share` (0 to 1) of the budget is spent."""
        share = min(1.0, max(0.0, share))
        if share < self.warmup_share:
            return self.peak * max(share / self.warmup_share, 0.01)
        if self.warmup_share == 1:
            return self.peak
        falling = (share - self.warmup_share) / (1 - self.warmup_share)
        return self.peak * (self.min_lr_share + (1 - self.min_lr_share) * (1 + math.cos(math.pi * falling)) / 2)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When training stops, in tokens or in seconds of training steps; the other is None."""

    tokens: int | None
    seconds: float | None
    tokens_per_step: int

    @classmethod
    def of(cls, settings: TrainSettings) -> Budget:
        """The budget that the settings state."""
        return cls(tokens=settings.tokens, seconds=settings.seconds, tokens_per_step=settings.tokens_per_step)

    @property
    def steps(self) -> int | None:
        """The number of steps, where it is known beforehand."""
        return None if self.tokens is None else math.ceil(self.tokens / self.tokens_per_step)

    def share(self, step: int, seconds: float) -> float:
        """The share that is spent after `step` steps and `seconds` of them."""
        if self.seconds is not None:
            return seconds / self.seconds
        return step / math.ceil((self.tokens or 1) / self.tokens_per_step)

    def share_of_next(self, step: int, seconds: float) -> float:
        """The share that will be spent once the next step is done, the time of a step being the mean so far."""
        return self.share(step + 1, seconds + (seconds / step if step else 0.0))

    def time_left(self, step: int, seconds: float, seconds_per_step: float) -> float:
        """The seconds of training that are still to come."""
        if self.seconds is not None:
            return max(0.0, self.seconds - seconds)
        return max(0, (self.steps or 0) - step) * seconds_per_step
