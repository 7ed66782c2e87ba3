"""Training: one loop, budgets, checkpoints, and the run folder."""

from __future__ import annotations

from seqmix.training.metrics import read_metrics
from seqmix.training.progress import Reporter
from seqmix.training.run import TrainResult, train
from seqmix.training.run_folder import RunFolder
from seqmix.training.settings import TrainSettings, gather_values, lay_over, settings_from

__all__ = [
    "Reporter",
    "RunFolder",
    "TrainResult",
    "TrainSettings",
    "gather_values",
    "lay_over",
    "read_metrics",
    "settings_from",
    "train",
]
