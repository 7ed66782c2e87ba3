"""What a checkpoint holds: weights and optimizer, in one piece, and counters and random numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seqmix.files import write_json
from seqmix.training.optimizer import load_optimizer_tensors, optimizer_tensors
from seqmix.training.progress import Progress
from seqmix.training.random_state import read_generators, restore_generators
from seqmix.training.stability import LossMonitor
from seqmix.training.weights import load_weights, weight_tensors

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def write_snapshot(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, metrics_length: int
) -> None:
    """Writes the files of a checkpoint into a folder.

    Args:
        metrics_length: the bytes of metrics.jsonl that belong to the steps done.
    """
    save_file(_on_cpu(weight_tensors(model)), folder / WEIGHTS)
    save_file(_on_cpu(optimizer_tensors(model, optimizer)), folder / OPTIMIZER)
    write_counters(folder, progress, metrics_length)


def write_counters(folder: Path, progress: Progress, metrics_length: int) -> None:
    """Writes what a checkpoint holds beside tensors."""
    write_json(
        folder / STATE,
        {
            "progress": dataclasses.asdict(progress),
            "metrics_length": metrics_length,
            "generators": read_generators(),
        },
    )


def read_snapshot(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, int]:
    """Puts a checkpoint's weights, optimizer and random numbers back; returns the counters and `metrics_length`."""
    load_weights(model, load_file(folder / WEIGHTS), f"the checkpoint {str(folder)!r}")
    load_optimizer_tensors(model, optimizer, load_file(folder / OPTIMIZER))
    return read_counters(folder)


def read_counters(folder: Path) -> tuple[Progress, int]:
    """Puts a checkpoint's random numbers back; returns the counters and `metrics_length`."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    restore_generators(state["generators"])
    counters = state["progress"]
    return Progress(**{**counters, "monitor": LossMonitor(**counters["monitor"])}), state["metrics_length"]


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
