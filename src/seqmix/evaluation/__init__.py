"""What one model reaches: how well it predicts held-out text, how fast it is, how large its state is."""

from __future__ import annotations

from seqmix.evaluation.language import Evaluation, LossByPosition, evaluate
from seqmix.evaluation.sliding import evaluate_sliding
from seqmix.evaluation.speed import CONTEXTS, Speed, measure_speed, measure_speeds

__all__ = [
    "CONTEXTS",
    "Evaluation",
    "LossByPosition",
    "Speed",
    "evaluate",
    "evaluate_sliding",
    "measure_speed",
    "measure_speeds",
]
