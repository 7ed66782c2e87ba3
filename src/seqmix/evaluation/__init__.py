"""What one model reaches: how well it predicts held-out text."""

from __future__ import annotations

from seqmix.evaluation.language import Evaluation, LossByPosition, evaluate

__all__ = ["Evaluation", "LossByPosition", "evaluate"]
