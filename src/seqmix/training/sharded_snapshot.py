"""The tensors of a checkpoint in shards: each process writes its own, and any number of processes reads them.

torch.distributed.checkpoint plans who writes and reads what. Its usual format keeps a pickle beside the shards; the
one for Hugging Face's safetensors, which is used here, keeps the place of each shard in the header of its file.
Weights are stored under their names and what the optimizer remembers as `NAME OF PARAMETER/NAME OF VALUE`, as in a
checkpoint that is one file of each, so both are read in the same way.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from seqmix.training.optimizer import load_optimizer_tensors, optimizer_tensors
from seqmix.training.progress import Progress
from seqmix.training.snapshot import WEIGHTS, read_counters
from seqmix.training.weights import check_weights, weight_tensors


def is_sharded(folder: Path) -> bool:
    """Whether the tensors of this checkpoint are in shards."""
    return not (folder / WEIGHTS).exists()


def write_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes this process's shards of weights and optimizer; all processes call this at once."""
    tensors = {**weight_tensors(model), **optimizer_tensors(model, optimizer)}
    try:
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        # It holds what went wrong in each process; a full disk then reads as it does for a single one.
        fault, _ = next(iter(error.failures.values()))
        raise fault from error


def read_sharded_snapshot(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, alone: bool = True
) -> tuple[Progress, int]:
    """As `read_snapshot`, from a checkpoint in shards, or in one piece when the model itself is in shards.

    Args:
        alone: whether this process reads everything by itself; otherwise all processes call this at once.
    """
    reader = dcp.HuggingFaceStorageReader(str(folder))
    shapes = {
        name: stored.size
        for name, stored in reader.read_metadata().state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata)
    }
    weights = weight_tensors(model)
    check_weights(
        model, {name: shape for name, shape in shapes.items() if "/" not in name}, f"the checkpoint {str(folder)!r}"
    )
    memory: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key in (key for key in shapes if key.rpartition("/")[0] == name):
            like = shapes[key] == parameter.shape
            memory[key] = torch.zeros_like(parameter.detach()) if like else torch.zeros(shapes[key])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        dcp.load({**weights, **memory}, storage_reader=reader, no_dist=alone)
    load_optimizer_tensors(model, optimizer, memory)
    return read_counters(folder)
