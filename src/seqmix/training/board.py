"""TensorBoard, for those who want it; metrics.jsonl holds the same and more."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from seqmix.errors import InputError

_VALUES = ("loss", "learning_rate", "gradient_norm", "bits_per_byte", "accuracy")


def require_tensorboard() -> None:
    """Raises an InputError where the tensorboard package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the tensorboard package: pip install 'seqmix[tensorboard]'")


class Board:
    """Copies the records of metrics.jsonl into event files that TensorBoard shows.

    Args:
        folder: for the event files. step: where a resumed run goes on; what was written beyond it is hidden.
    """

    def __init__(self, folder: Path, step: int) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(folder, purge_step=step or None)

    def add(self, *records: dict[str, Any]) -> None:
        """Takes in records of metrics.jsonl; those without a number to draw are left out."""
        for record in records:
            for name in _VALUES:
                if record.get(name) is not None:
                    self._writer.add_scalar(f"{record['kind']}/{name}", record[name], record["step"])

    def close(self) -> None:
        """Writes out what is still held back."""
        self._writer.close()
