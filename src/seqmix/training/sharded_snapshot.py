"""The tensors of a checkpoint in shards: each process writes its own, and any number of processes reads them.

torch.distributed.checkpoint plans who writes and reads what. Its usual format keeps a pickle beside the shards; the
one for Hugging Face's safetensors, which is used here, keeps the place of each shard in the header of its file.
Weights are stored under their names and what the optimizer remembers as `NAME OF PARAMETER/NAME OF VALUE`, as in a
checkpoint that is one file of each, so both are read in the same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from seqmix.training.checkpoint import hash_file
from seqmix.training.optimizer import load_optimizer_tensors, optimizer_tensors
from seqmix.training.progress import Progress
from seqmix.training.snapshot import WEIGHTS, read_counters
from seqmix.training.weights import check_weights, weight_tensors

FILE_BYTES = 1 << 28
"""The most that a process puts into one file, unless a single tensor needs more."""


def is_sharded(folder: Path) -> bool:
    """Whether the tensors of this checkpoint are in shards."""
    return not (folder / WEIGHTS).exists()


def write_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Writes this process's shards of weights and optimizer; all processes call this at once.

    Returns:
        The hash of each file that this process wrote, by its name.
    """
    tensors = {**weight_tensors(model), **optimizer_tensors(model, optimizer)}
    writer = dcp.HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=_file_numbers(tensors, dist.get_world_size()), save_distributed=True
    )
    try:
        dcp.save(tensors, storage_writer=writer)
    except CheckpointException as error:
        # It holds what went wrong in each process; a full disk then reads as it does for a single one.
        fault, _ = next(iter(error.failures.values()))
        raise fault from error
    return {file.name: hash_file(file) for file in folder.glob(f"shard-{dist.get_rank() + 1:05d}-*")}


def _file_numbers(tensors: Mapping[str, Tensor], count: int) -> dict[str, int]:
    """The file, from 1, that each tensor goes to. A file is put together in memory, so it must not be large."""
    numbers, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        share = tensor.numel() * tensor.element_size() // count
        if size and size + share > FILE_BYTES:
            number, size = number + 1, 0
        numbers[name] = number
        size += share
    return numbers


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
