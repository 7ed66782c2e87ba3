"""Stops a run that cannot come to anything: a loss that is no number, or one that climbs and stays up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from seqmix.errors import SeqmixError

REMEDY = "try a lower --learning-rate, a smaller --set clip, or --precision float32"


@dataclass(kw_only=True)
class LossMonitor:
    """Watches the training loss (nats per token).

    The loss is smoothed with a decaying mean of about 20 steps. A run diverges when the smoothed loss is
    more than `margin` above the first step's for `patience` steps in a row.
    """

    margin: float = 0.5
    patience: int = 30
    first: float | None = None
    smoothed: float | None = None
    steps_above: int = 0

    DECAY = 0.95

    def watch(self, step: int, loss: float, gradient_norm: float) -> None:
        """Takes in one step.

        Raises:
            SeqmixError: the run should stop; it names the step and what to try.
        """
        for name, value in (("loss", loss), ("gradient norm", gradient_norm)):
            if not math.isfinite(value):
                raise SeqmixError(f"the {name} became {value} in step {step}: {REMEDY}")
        if self.first is None or self.smoothed is None:
            self.first = self.smoothed = loss
        self.smoothed = self.DECAY * self.smoothed + (1 - self.DECAY) * loss
        self.steps_above = self.steps_above + 1 if self.smoothed > self.first + self.margin else 0
        if self.steps_above >= self.patience:
            raise SeqmixError(
                f"the loss diverges: it was {self.first:.2f} at the start and has stayed above "
                f"{self.first + self.margin:.2f} for {self.patience} steps (step {step}, now {self.smoothed:.2f}): "
                f"{REMEDY}"
            )
